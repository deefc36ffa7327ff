"""What is said where the GPU kernels cannot run: one sentence."""

import contextlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from amn_fast import info
from amn_fast.errors import BackendError
from amn_fast.ops.dense_crf import DenseCRF, dense_crf, refine_seed
from amn_fast.ops.lattice import Lattice

torch = pytest.importorskip("torch")


@pytest.fixture
def machine(monkeypatch):
    """A function that makes this machine look like another."""

    def pretend(cuda=True, capability=(9, 0), cuda_core="1.2.2"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        versions = importlib.metadata.version
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name: cuda_core if name == "cuda-core" else versions(name)
        )
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")
        find = importlib.util.find_spec
        found = find("torch")  # of anything

        def find_spec(name, package=None):
            if name in ("cuda", "cuda.core"):
                return found if cuda_core else None
            return find(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)

    return pretend


OBSTACLES = [
    ({"cuda": False}, "PyTorch sees no CUDA device"),
    ({"cuda_core": ""}, "cuda-core is not installed (extra 'gpu')"),
    ({"cuda_core": "0.6.1"}, "cuda-core 0.6.1 is installed, the kernels need 1.2 or newer"),
    ({"capability": (7, 5)}, "the GPU Some GPU is sm_75, the kernels need sm_80 or newer"),
]


def test_each_obstacle_is_one_sentence(machine, monkeypatch):
    image, unary = np.zeros((4, 5, 3), np.uint8), np.zeros((2, 4, 5), np.float32)
    calls = (
        lambda **given: dense_crf(image, unary, **given),
        lambda **given: dense_crf([image], [unary], **given),
        lambda **given: DenseCRF(image, **given),
        lambda **given: refine_seed(image, unary[:1], [1], fg=0.3, bg=0.05, **given),
        lambda **given: Lattice(np.zeros((2, 5)), **given),
        lambda **given: Lattice.of_grid(4, 5, 1, 1, **given),
    )
    for state, reason in OBSTACLES:
        machine(**state)
        for call in calls:
            with pytest.raises(BackendError) as caught:
                call(backend="cuda")
            assert str(caught.value).startswith(f"dense_crf: backend 'cuda' cannot run here: {reason}; choose another")
        assert f"backend cuda: missing: {reason}" in info().splitlines()
        with monkeypatch.context() as patch:
            patch.setenv("AMN_FAST_BACKEND", "cuda")
            with pytest.raises(BackendError, match="set by AMN_FAST_BACKEND"):
                dense_crf(image, unary)


def test_info_names_the_card(machine):
    machine()
    assert "backend cuda: ready on Some GPU (sm_90): dense_crf" in info().splitlines()


def test_kernels_that_do_not_compile_are_one_sentence(machine, monkeypatch):
    pytest.importorskip("cuda.core")
    import cuda.core

    from amn_fast.kernels.common import cuda as nvrtc

    def fail(*arguments, **options):
        raise RuntimeError("no NVRTC\nanywhere")

    machine()
    monkeypatch.setattr(nvrtc, "compile_cubin", fail)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    monkeypatch.setattr(cuda.core, "Device", lambda index: SimpleNamespace(set_current=lambda: None))
    with pytest.raises(BackendError) as caught:
        nvrtc.CudaLauncher(torch.device("cuda", 0), "")
    assert str(caught.value) == "the GPU kernels cannot be compiled for sm_90: no NVRTC anywhere"


def test_other_backends_look_for_no_gpu():
    code = """
import sys
import numpy as np
from amn_fast.ops.dense_crf import dense_crf
dense_crf(np.zeros((4, 5, 3), np.uint8), np.zeros((2, 4, 5), np.float32))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
