"""What is installed, what can run, and why something cannot."""

import importlib.util
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from amn_fast import __version__
from amn_fast._native import missing
from amn_fast.kernels.common import cuda as _cuda_kernels
from amn_fast.ops._arrays import SWITCH, thread_count

_PACKAGES = ("numpy", "opencv-python-headless", "torch", "torchvision", "timm", "triton", "cuda-core", "pillow")


def info() -> str:
    """Versions, devices and backends of this installation, one line each; a backend that cannot run says why."""
    lines = [
        f"amn_fast {__version__}, Python {platform.python_version()},"
        f" {sys.platform} {platform.machine()}, {os.cpu_count()} cores",
        "packages: " + ", ".join(f"{name} {package_version(name)}" for name in _PACKAGES),
        f"threads: {thread_count(None)} by default; {SWITCH}: {os.environ.get(SWITCH) or 'not set'}",
        "backend reference: ready",
        f"backend cpu: {'ready' if not missing else 'missing: ' + missing}",
        f"backend triton: {_triton()}",
        f"backend cuda: {_cuda()}",
    ]
    return "\n".join(lines)


def package_version(package: str) -> str:
    """The installed version of a package, or "missing"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _cuda_device() -> str:
    """Name of the first CUDA device, or "" with the reason after a colon."""
    if importlib.util.find_spec("torch") is None:
        return ": PyTorch is not installed (extra 'pipeline')"
    import torch

    if not torch.cuda.is_available():
        return ": PyTorch sees no CUDA device"
    return torch.cuda.get_device_name(0)


def _triton() -> str:
    device = _cuda_device()
    if device.startswith(":"):
        return f"missing{device}"
    if importlib.util.find_spec("triton") is None:
        return "missing: Triton is not installed (extra 'gpu')"
    return f"ready on {device}"


def _cuda() -> str:
    device = _cuda_device()
    if device.startswith(":"):
        return f"missing{device}"
    if obstacle := _cuda_kernels.obstacle_beside_device():
        return f"missing: {obstacle}"
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"ready on {device} (sm_{major}{minor}): dense_crf"
