"""The GPU kernels of the dense CRF as loops on the CPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = Path(__file__).parents[3] / "kernels"
COMPILER = shutil.which("g++") or shutil.which("clang++")


class HarnessLauncher:
    """A `Launcher` on CPU tensors; `workers` host threads take the blocks in turn."""

    def __init__(self, library, torch):
        self.library = library
        self.device = torch.device("cpu")
        self.workers = 1
        self.launched = []  # (kernel, blocks, shared)

    def launch(self, kernel, blocks, *arguments, shared=0):
        self.launched.append((kernel, blocks, shared))
        self.library.prepare(ctypes.c_longlong(blocks), ctypes.c_longlong(shared), self.workers)
        getattr(self.library, kernel)(*map(self.argument, arguments))

    @staticmethod
    def argument(value):
        if value is None or isinstance(value, int):
            return ctypes.c_longlong(value or 0)
        assert value.is_contiguous()
        assert value.device.type == "cpu"
        return ctypes.c_void_p(value.data_ptr())


@pytest.fixture(scope="session")
def harness(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("simt") / "simt.so"
    flags = ["-std=c++20", "-O2", "-ftree-vectorize", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    places = [f"-I{KERNELS}", f"-I{HERE}", str(HERE / "simt.cpp"), "-o", str(target)]
    done = subprocess.run([COMPILER, *flags, *places], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(target))


@pytest.fixture
def launcher(harness):
    torch = pytest.importorskip("torch")
    return HarnessLauncher(harness, torch)


@pytest.fixture
def door(launcher, monkeypatch):
    """`backend="cuda"` runs on the stand-in; gives its launcher."""
    import torch

    from amn_fast.ops import _cuda, _dense_crf_cuda, lattice

    monkeypatch.setattr(_cuda, "obstacle", lambda device=None: "")
    monkeypatch.setattr(_dense_crf_cuda, "launcher_for", lambda device: launcher)
    monkeypatch.setattr(_dense_crf_cuda, "device_of", lambda *values: torch.device("cpu"))
    monkeypatch.setattr(_dense_crf_cuda, "free_bytes", lambda device: 2**33)
    monkeypatch.setattr(lattice, "_grids", lattice.OrderedDict())
    return launcher


@pytest.fixture
def tensors_are_on_gpu(door, monkeypatch):
    """CPU tensors are taken for tensors on a GPU."""
    import torch

    from amn_fast.ops import dense_crf, lattice

    for module in (lattice, dense_crf):
        monkeypatch.setattr(module, "on_gpu", lambda value: isinstance(value, torch.Tensor))
    return door
