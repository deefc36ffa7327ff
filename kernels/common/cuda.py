"""CUDA C++ kernels: compiled by NVRTC, through cuda-core, at first use for the GPU at hand, and kept on disk.

The compiled code is in cuda-core's program cache (a folder `cuda-python` in the user's cache folder), under a key of
source, options, architecture and compiler version.
"""

import ctypes
import importlib.metadata
import importlib.util
import logging
import re
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import amn_fast.kernels
from amn_fast.errors import BackendError

log = logging.getLogger("amn_fast")

BLOCK = 256  # threads, as in kernels/dense_crf/device.hpp
OLDEST_CUDA_CORE = (1, 2)
OLDEST = (8, 0)  # compute capability: the oldest that the kernels are compiled for in the tests
KERNELS = Path(amn_fast.kernels.__file__).parent


def obstacle(device: Any = None) -> str:
    """Why CUDA kernels cannot run on `device` (None: PyTorch's current CUDA device); "" when they can."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed (extra 'pipeline')"
    import torch

    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    return obstacle_beside_device(device)


def obstacle_beside_device(device: Any = None) -> str:
    """The same where there is a CUDA device."""
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None:
        return "cuda-core is not installed (extra 'gpu')"
    version = importlib.metadata.version("cuda-core")
    if tuple(map(int, version.split(".")[:2])) < OLDEST_CUDA_CORE:
        return (
            f"cuda-core {version} is installed, the kernels need {OLDEST_CUDA_CORE[0]}.{OLDEST_CUDA_CORE[1]} or newer"
        )
    import torch

    found = torch.cuda.get_device_capability(device)
    if found < OLDEST:
        name = torch.cuda.get_device_name(device)
        return f"the GPU {name} is sm_{found[0]}{found[1]}, the kernels need sm_{OLDEST[0]}{OLDEST[1]} or newer"
    return ""


def expand(source: str) -> str:
    """`source` with the package's own files put in the place of their #include lines, each once."""
    seen: set[str] = set()

    def put_in(match: re.Match[str]) -> str:
        file = KERNELS / match[1]
        if match[1] in seen or not file.is_file():
            return ""  # what is not there is for other compilers
        seen.add(match[1])
        return expanded(file.read_text(encoding="utf-8").replace("#pragma once\n", ""))

    def expanded(text: str) -> str:
        return re.sub(r'^#include "(.+)"$', put_in, text, flags=re.MULTILINE)

    return expanded(source)


def compile_cubin(source: str, architecture: int, logs: IO[str] | None = None, cached: bool = False) -> Any:
    """The code of a CUDA C++ source for sm_`architecture`, an `ObjectCode`.

    Without fused multiply-add: it would put points into other simplices of the lattice. `logs` gets the assembler's
    report of registers and spills.
    """
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        name="amn_fast.cu",
        std="c++17",
        arch=f"sm_{architecture}",
        fma=False,
        diag_suppress=177,  # a shared header has what the GPU's kernels do not need
        ptxas_options=["-v"] if logs is not None else None,
    )
    with _cache() if cached else nullcontext() as cache:
        return Program(expand(source), "c++", options).compile("cubin", logs=logs, cache=cache)


def _cache() -> Any:
    from cuda.core.utils import FileStreamProgramCache

    try:
        return FileStreamProgramCache()
    except OSError as error:
        log.warning("the GPU kernels are compiled anew in each process: their cache cannot be written (%s)", error)
        return nullcontext()


class CudaLauncher:
    """Launches the kernels of a CUDA C++ source on a device, on PyTorch's current stream."""

    def __init__(self, device: Any, source: str) -> None:
        import torch
        from cuda.core import Device

        self.device = device
        with torch.cuda.device(device):
            torch.cuda.current_stream()  # PyTorch makes the device's context
            self._device = Device(device.index)
            self._device.set_current()
            major, minor = torch.cuda.get_device_capability(device)
            try:
                self._code = compile_cubin(source, 10 * major + minor, cached=True)
            except Exception as error:  # NVRTC is missing, or does not know the architecture
                reason = " ".join(str(error).split())
                raise BackendError(f"the GPU kernels cannot be compiled for sm_{major}{minor}: {reason}") from error
        self._kernels: dict[str, Any] = {}
        self._streams: dict[int, Any] = {}

    def launch(self, kernel: str, blocks: int, *arguments: Any, shared: int = 0) -> None:
        """Queue a kernel of `blocks` blocks; `arguments` are tensors of the device, None, and integers."""
        from cuda.core import LaunchConfig, launch

        if not blocks:
            return
        config = LaunchConfig(grid=blocks, block=BLOCK, shmem_size=shared)
        launch(self._stream(), config, self._kernel(kernel), *(_argument(one) for one in arguments))

    def _kernel(self, name: str) -> Any:
        if name not in self._kernels:
            self._kernels[name] = self._code.get_kernel(name)
        return self._kernels[name]

    def _stream(self) -> Any:
        import torch

        stream = torch.cuda.current_stream(self.device)
        if stream.cuda_stream not in self._streams:
            self._streams[stream.cuda_stream] = self._device.create_stream(_Stream(stream))
        return self._streams[stream.cuda_stream]


class _Stream:
    """A stream of PyTorch's, for cuda-core."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.stream.cuda_stream


def _argument(value: Any) -> Any:
    if value is None:
        return 0
    if isinstance(value, int):
        return ctypes.c_int64(value)
    assert value.is_contiguous()
    return value.data_ptr()


_launchers: dict[tuple[str, str], CudaLauncher] = {}
_launchers_lock = threading.Lock()


def launcher(device: Any, source: str) -> CudaLauncher:
    """The launcher of a source's kernels on a device, compiled once."""
    with _launchers_lock:
        key = (str(device), source)
        if key not in _launchers:
            _launchers[key] = CudaLauncher(device, source)
        return _launchers[key]
