"""The GPU kernels of the dense CRF as loops on the CPU."""

import ctypes
import importlib.util
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def harness_module():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("dense_crf_harness", HERE / "harness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def harness(harness_module, shared):
    """The library; AMN_FAST_SIMT names one that was built beforehand, with a sanitizer say."""
    if ready := os.environ.get("AMN_FAST_SIMT"):
        return ctypes.CDLL(ready)
    if harness_module.compiler() is None:
        pytest.skip("no C++ compiler")
    folder = shared("simt", lambda folder: harness_module.build(folder / "simt.so"))
    return ctypes.CDLL(str(folder / "simt.so"))


@pytest.fixture
def launcher(harness, harness_module):
    return harness_module.HarnessLauncher(harness)


@pytest.fixture
def door(launcher, monkeypatch):
    """`backend="cuda"` runs on the stand-in; gives its launcher."""
    import torch

    from amn_fast.kernels.common import cuda as nvrtc
    from amn_fast.kernels.dense_crf.cuda import host
    from amn_fast.ops import lattice

    monkeypatch.setattr(nvrtc, "obstacle", lambda device=None: "")
    monkeypatch.setattr(host, "launcher_for", lambda device: launcher)
    monkeypatch.setattr(host, "device_of", lambda *values: torch.device("cpu"))
    monkeypatch.setattr(host, "free_bytes", lambda device: 2**33)
    monkeypatch.setattr(lattice, "grids", lattice.GridCache())
    return launcher


@pytest.fixture
def tensors_are_on_gpu(door, monkeypatch):
    """CPU tensors are taken for tensors on a GPU."""
    import torch

    from amn_fast.ops import _arrays

    monkeypatch.setattr(_arrays, "on_gpu", lambda value: isinstance(value, torch.Tensor))
    monkeypatch.setattr(_arrays, "gpu_verdict", lambda operation, backend: "")
    return door
