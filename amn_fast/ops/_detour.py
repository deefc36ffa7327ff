"""The way around a GPU kernel that failed its check: compute on the CPU, and bring the results back to the GPU."""

from typing import Any

from amn_fast.ops._arrays import gpu_verdict, is_automatic, is_tensor, like, on_gpu


def needed(operation: str, backend: str, *values: Any) -> bool:
    """Whether a value, or one in a list, is on a GPU where `backend="auto"` must not use the operation's kernel."""
    flat = [one for value in values for one in (value if isinstance(value, list | tuple) else [value])]
    return any(map(on_gpu, flat)) and is_automatic(backend) and bool(gpu_verdict(operation, "cuda"))


def to_host(value: Any) -> Any:
    """A tensor, or each of a list, as an array on the CPU; anything else as it is."""
    if isinstance(value, list | tuple):
        return [to_host(one) for one in value]
    return value.detach().cpu().numpy() if is_tensor(value) else value


def to_origin(result: Any, given: Any) -> Any:
    """A result as a tensor on the device of the tensor that it was computed from; lists one by one."""
    if isinstance(given, list | tuple):
        return [to_origin(one, origin) for one, origin in zip(result, given, strict=True)]
    return like(given, result).to(given.device) if is_tensor(given) else result
