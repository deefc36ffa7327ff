"""Runs a CRF through the CUDA launcher and cuda-core, on the stand-in driver that this process was started with.

Usage: launch_on_driver.py CUBIN DRIVER. Prints the largest difference from the reference, the stream that the last
launch went to, and the number of launches.
"""

import contextlib
import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from cuda.core import ObjectCode

from amn_fast.kernels.common import cuda as nvrtc
from amn_fast.kernels.dense_crf import cuda
from amn_fast.kernels.dense_crf.cuda import host
from amn_fast.ops.dense_crf import dense_crf

STREAM = 0x7700


def main(cubin: str, driver: str) -> None:
    code = Path(cubin).read_bytes()
    torch.cuda.current_stream = lambda device=None: SimpleNamespace(cuda_stream=STREAM)
    torch.cuda.device = lambda device: contextlib.nullcontext()
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    nvrtc.compile_cubin = lambda *arguments, **options: ObjectCode.from_cubin(code)  # NVRTC wants a real driver
    nvrtc.obstacle = lambda device=None: ""
    launcher = nvrtc.launcher(SimpleNamespace(index=0), cuda.SOURCE)
    launcher.device = torch.device("cpu")
    host.launcher_for = lambda device: launcher
    host.device_of = lambda *values: launcher.device
    host.free_bytes = lambda device: 2**33
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8).repeat(9, 0).repeat(9, 1)
    differences = []
    for labels in (2, 3, 21):
        unary = np.random.default_rng(labels).random((labels, *image.shape[:2])).astype(np.float32)
        expected = dense_crf(image, unary, backend="reference")
        differences.append(np.abs(dense_crf(image, unary, backend="cuda") - expected).max())
    library = ctypes.CDLL(driver)
    print(max(differences), *(ctypes.c_longlong.in_dll(library, name).value for name in ("last_stream", "launches")))


if __name__ == "__main__":
    main(*sys.argv[1:])
