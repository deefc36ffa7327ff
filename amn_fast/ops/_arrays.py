"""The rules that all operations share: threads, backends, devices, dtypes, and the checks of scalar arguments.

Never imports PyTorch: a caller that passes a tensor has imported it.
"""

import importlib.util
import logging
import math
import os
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast import _native
from amn_fast._cpus import available_cpus
from amn_fast.errors import BackendError, InputError

log = logging.getLogger("amn_fast")

# ------------------------------------------------------------------------------------------------------------ threads


MAX_THREADS = 65536


def thread_count(threads: int | None) -> int:
    """The number of threads to use: `threads`, or for None all CPUs that this process may use.

    These are the CPUs of its affinity mask, limited by the CPU quota of its cgroup (rounded up). Operations that run
    inside a training loop (losses, merge) have no `threads` argument and use `torch.get_num_threads()`.

    Raises:
        InputError: `threads` is neither None nor an integer in 1..65536.
    """
    if threads is not None:
        return integer("threads", threads, 1, MAX_THREADS)
    return available_cpus()


# ----------------------------------------------------------------------------------------------------------- backends

BACKENDS = ("reference", "cpu", "triton", "cuda")
SWITCH = "AMN_FAST_BACKEND"
_configured = "auto"
_logged: set[str] = set()


@contextmanager
def default_backend(name: str) -> Iterator[None]:
    """Within this context, operations called with backend="auto" use `name`. The environment switch takes precedence.

    The setting holds for the whole process. It serves the configuration key `backend`.

    Raises:
        InputError: `name` is not "auto" or one of `BACKENDS`.
    """
    global _configured
    previous, _configured = _configured, choice("backend", name, ("auto", *BACKENDS))
    try:
        yield
    finally:
        _configured = previous


def _default_backend() -> tuple[str, str]:
    """The backend that "auto" stands for, and where it was set."""
    switch = os.environ.get(SWITCH, "").strip() or "auto"
    if switch not in ("auto", *BACKENDS):
        raise InputError(f"environment variable {SWITCH} is {switch!r}, expected 'auto' or one of {_listed(BACKENDS)}")
    if switch != "auto":
        return switch, f" (set by {SWITCH})"
    return _configured, " (set by the configuration key 'backend')"


def choose_backend(backend: str, operation: str, obstacles: Mapping[str, str]) -> str:
    """The backend to run an operation on. Call it once for each call of the operation.

    "auto" stands for the backend that `AMN_FAST_BACKEND` or `default_backend` names. Without them it takes the first
    backend that can run and logs once why a better one cannot. A backend that was asked for by name, in whichever of
    these ways, never falls back.

    Args:
        backend: "auto" or a name.
        operation: for the messages.
        obstacles: the operation's backends, best first, each with the reason why it cannot run here ("": it can).

    Raises:
        InputError: `backend` or the environment switch is not one of the known names.
        BackendError: the backend asked for cannot run here, or the operation does not have it.
    """
    origin = ""
    if not isinstance(backend, str) or backend not in ("auto", *obstacles):
        raise InputError(f"{operation}: backend is {shown(backend)}, expected 'auto' or one of {_listed(obstacles)}")
    if backend == "auto":
        backend, origin = _default_backend()
    if backend == "auto":
        for name, obstacle in obstacles.items():
            if not obstacle:
                return name
            _log_once(f"{operation}: not using backend '{name}': {obstacle}")
        reasons = "; ".join(f"{name}: {obstacle}" for name, obstacle in obstacles.items())
        raise BackendError(f"{operation}: no backend can run here, not even with {SWITCH}: {reasons}")
    obstacle = obstacles.get(backend, "this operation does not have it")
    if obstacle:
        others = _listed(name for name in obstacles if name != backend)
        raise BackendError(
            f"{operation}: backend '{backend}'{origin} cannot run here: {obstacle}; "
            f"choose another with backend= or {SWITCH} ({others})"
        )
    return backend


def tensor_backend(backend: str, operation: str, device_type: str) -> str:
    """`choose_backend` for an operation on PyTorch tensors with the backends cpu, reference and triton.

    Args:
        device_type: of the tensors: "cpu", "cuda", ...
    """
    elsewhere = f"the tensors are on device '{device_type}'"
    if device_type == "cuda":
        triton = triton_obstacle() or (gpu_verdict(operation, "triton") if is_automatic(backend) else "")
        obstacles = {"triton": triton, "reference": "", "cpu": elsewhere}
    else:
        interpreted = device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        obstacles = {
            "cpu": _native.missing if device_type == "cpu" else elsewhere,
            "reference": "",
            "triton": triton_obstacle() or ("" if interpreted else f"{elsewhere}, not on a GPU"),
        }
    return choose_backend(backend, operation, obstacles)


def kernel_backend(backend: str, operation: str, device_type: str) -> str:
    """`tensor_backend` within a registered operator, which runs the compiled kernels alone.

    Raises:
        InputError: the backend is "reference".
    """
    chosen = tensor_backend(backend, operation, device_type)
    if chosen == "reference":
        raise InputError(f"{operation}: the operator has no backend 'reference': call amn_fast.{operation}")
    return chosen


# What torch.compiler.assume_constant_result does, without importing PyTorch: torch.compile keeps the answer.
tensor_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_automatic(backend: str) -> bool:
    """Whether `choose_backend` is free to choose: neither the caller nor a setting names a backend."""
    return backend == "auto" and _default_backend()[0] == "auto"


def gpu_verdict(operation: str, backend: str) -> str:
    """Why a GPU kernel must not be chosen automatically: it has failed its check on this GPU ("": it has passed)."""
    from amn_fast.ops import _verdicts

    return _verdicts.obstacle(operation, backend)


def triton_obstacle() -> str:
    """Why Triton cannot be used, or "" if it can."""
    return "" if importlib.util.find_spec("triton") else "Triton is not installed (extra 'gpu')"


def _log_once(message: str) -> None:
    if message not in _logged:
        _logged.add(message)
        log.info(message)


# ------------------------------------------------------------------------------------------------ arrays and tensors


def is_tensor(value: object) -> bool:
    """Whether `value` is a PyTorch tensor, subclasses included."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def on_gpu(value: object) -> bool:
    """Whether `value` is a tensor on a CUDA GPU."""
    return is_tensor(value) and value.device.type == "cuda"  # type: ignore[attr-defined]


def as_array(name: str, value: Any) -> NDArray[Any]:
    """An array or CPU tensor of real numbers as a NumPy array; bfloat16 becomes float32, bool stays bool.

    Shares memory with `value` where it can.

    Raises:
        InputError: `value` is not an array of real numbers, or is a tensor on another device or of a sparse layout.
    """
    if is_tensor(value):
        if value.device.type != "cpu":
            raise InputError(f"{name} is a tensor on {value.device}, expected the CPU: call .cpu() first")
        check_tensor(name, value)
        torch = sys.modules["torch"]
        value = value.detach()
        if value.is_floating_point() and value.dtype not in (torch.float16, torch.float32, torch.float64):
            value = value.float()  # NumPy has no bfloat16 and no float8
        return np.asarray(value.resolve_neg().numpy())
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {shown(value)}, expected an array of real numbers") from None
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} has dtype {array.dtype} ({type(value).__name__}), expected an array of real numbers")
    return array


def like(given: object, result: Any) -> Any:
    """`result` as a tensor where `given` is one, else as it is."""
    if not is_tensor(given) or is_tensor(result):
        return result
    return sys.modules["torch"].from_numpy(result)


def as_tensor(name: str, value: Any) -> Any:
    """A dense tensor of real numbers as it is; an array of real numbers as a CPU tensor.

    Raises:
        InputError: as for `as_array`.
    """
    if is_tensor(value):
        check_tensor(name, value)
        return value
    array = as_array(name, value)
    native = np.dtype(f"{array.dtype.kind}{min(array.dtype.itemsize, 8)}")  # PyTorch has no longdouble
    array = np.ascontiguousarray(array, native)
    return sys.modules["torch"].from_numpy(array if array.flags.writeable else array.copy())


def check_tensor(name: str, value: Any) -> None:
    """Raises InputError unless `value` is a dense PyTorch tensor of real numbers."""
    torch = sys.modules["torch"]
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{name} is {shown(value)}, expected a PyTorch tensor")
    if value.layout != torch.strided or value.is_complex() or value.is_quantized:
        raise InputError(f"{name} is {value.dtype}, {value.layout}, expected a dense tensor of real numbers")


def same_device(operation: str, **tensors: Any) -> None:
    """Raises InputError unless all tensors are on the device of the first."""
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != reference.device:
            raise InputError(f"{operation}: {name} is on {tensor.device}, expected {reference.device}, like {first}")


def has_tangent(*tensors: Any) -> bool:
    """Whether one of the tensors carries a forward-mode derivative, which a compiled kernel would drop silently."""
    torch = sys.modules["torch"]
    forward = torch.autograd.forward_ad
    if torch.compiler.is_compiling() or forward._current_level < 0:
        return False
    return any(forward.unpack_dual(tensor).tangent is not None for tensor in tensors)


def forward_mode_backend(chosen: str, requested: str, operation: str, *tensors: Any) -> str:
    """The backend where a tensor may carry a forward-mode derivative, which the kernels would drop silently.

    Raises:
        BackendError: there is such a derivative, and a backend without it was asked for by name.
    """
    if chosen == "reference" or not has_tangent(*tensors):
        return chosen
    if requested != "auto" or _default_backend()[0] != "auto":
        raise BackendError(
            f"{operation}: backend '{chosen}' has no forward-mode derivative; "
            f"use backend='reference', or 'auto' without {SWITCH}"
        )
    return "reference"


# ------------------------------------------------------------------------------------------------------------ scalars


def integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """`value` as an int within low..high.

    Raises:
        InputError: it is not an integer (a bool is not), or out of range.
    """
    good = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if good and (low is None or low <= value) and (high is None or value <= high):
        return int(value)
    if low is None and high is None:
        raise InputError(f"{name} is {shown(value)}, expected an integer")
    span = f"of at least {low}" if high is None else f"of at most {high}" if low is None else f"in {low}..{high}"
    raise InputError(f"{name} is {shown(value)}, expected an integer {span}")


def number(name: str, value: Any, interval: str = "(-inf, inf)") -> float:
    """`value` as a float within an interval such as "[0, 1)" or "(0, inf)"; NaN lies in none.

    Raises:
        InputError: it is not a real number (a bool is not), or out of range.
    """
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        low, high = (float(end) for end in interval[1:-1].split(","))
        try:
            found = float(value)
        except OverflowError:  # an int beyond the largest float
            found = math.inf
        above = found >= low if interval[0] == "[" else found > low
        below = found <= high if interval[-1] == "]" else found < high
        if above and below:
            return found
    kind = "a finite number" if interval == "(-inf, inf)" else f"a number in {interval}"
    raise InputError(f"{name} is {shown(value)}, expected {kind}")


def flag(name: str, value: Any) -> bool:
    """`value` as a bool.

    Raises:
        InputError: it is not a bool.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {shown(value)}, expected True or False")
    return bool(value)


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """`value`, one of `options`.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, str) or value not in options:
        raise InputError(f"{name} is {shown(value)}, expected one of {_listed(options)}")
    return value


def image_size(name: str, value: Any) -> tuple[int, int]:
    """`value` as (height, width), both in 1..2147483647.

    Raises:
        InputError: it is not a pair of such integers.
    """
    try:
        height, width = value
    except (TypeError, ValueError):
        raise InputError(f"{name} is {shown(value)}, expected (height, width)") from None
    most = 2**31 - 1
    return integer(f"{name}[0] (the height)", height, 1, most), integer(f"{name}[1] (the width)", width, 1, most)


def shown(value: object) -> str:
    """A value for an error message: short, and arrays by shape and dtype."""
    if isinstance(value, np.ndarray) or is_tensor(value):
        return f"{type(value).__name__} {tuple(value.shape)} {value.dtype}"  # type: ignore[attr-defined]
    return reprlib.repr(value)


def _listed(names: Any) -> str:
    return ", ".join(names)
