"""The choice of a backend for the operations on PyTorch tensors."""

import importlib.util
import os

import torch

from amn_fast import _native
from amn_fast.ops._backend import choose


@torch.compiler.assume_constant_result
def resolve(backend: str, operation: str, device: str) -> str:
    """The backend to run on tensors of a device type ("cpu", "cuda", ...). See `choose` for the errors."""
    if device == "cuda":
        obstacles = {"triton": _triton_missing(), "reference": "", "cpu": "the tensors are on a GPU"}
    else:
        elsewhere = f"the tensors are on device '{device}'"
        interpreted = os.environ.get("TRITON_INTERPRET") == "1" and device == "cpu"
        obstacles = {
            "cpu": _native.missing if device == "cpu" else elsewhere,
            "reference": "",
            "triton": _triton_missing() or ("" if interpreted else elsewhere),
        }
    return choose(backend, operation, obstacles)


def _triton_missing() -> str:
    return "" if importlib.util.find_spec("triton") else "Triton is not installed"
