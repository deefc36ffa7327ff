"""The affinity random walk of PyTorch tensors, registered as `torch.ops.amn_fast.random_walk`."""

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from amn_fast.errors import InputError
from amn_fast.ops import random_walk as ops
from amn_fast.ops._arrays import choose_backend


def walk_tensors(xs: list[Any], edges: list[Any], settings: ops.WalkSettings) -> list[Tensor]:
    """The walk of tensors on one device; see `random_walk`."""
    for x in xs:
        if not isinstance(x, Tensor) or x.device != xs[0].device:
            found = f"{type(x).__name__} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"x holds a {found} beside tensors on {xs[0].device}, expected tensors on one device")
    edges = [torch.as_tensor(edge, device=xs[0].device) for edge in edges]
    ops.checked_radius(settings.radius)
    ops.checked_beta(settings.beta)
    ops.polynomials([settings.exp_times], settings.method, settings.tolerance)
    backend = choose_backend(settings.backend, "random_walk", _tensor_backends(xs[0].device))
    return torch.ops.amn_fast.random_walk(xs, edges, *settings._replace(beta=float(settings.beta), backend=backend))


@torch.library.custom_op("amn_fast::random_walk", mutates_args=())
def _random_walk(
    x: list[Tensor],
    edge: list[Tensor],
    radius: int,
    beta: float,
    exp_times: int,
    method: str,
    tolerance: float,
    backend: str,
    threads: int,
) -> list[Tensor]:
    if backend == "triton":
        results = _walk_on_gpu(x, edge, radius, beta, ops.polynomials([exp_times], method, tolerance)[0], method)
    else:
        settings = ops.WalkSettings(radius, beta, exp_times, method, tolerance, backend, threads)
        arrays = ops.walk_arrays([_as_array(part) for part in x], [_as_array(part) for part in edge], settings)
        results = [torch.from_numpy(array).to(maps.device) for array, maps in zip(arrays, x, strict=True)]
    return [result.to(_result_dtype(maps)) for result, maps in zip(results, x, strict=True)]


@_random_walk.register_fake
def _(x, edge, radius, beta, exp_times, method, tolerance, backend, threads):  # type: ignore[no-untyped-def]
    return [torch.empty(maps.shape, dtype=_result_dtype(maps), device=maps.device) for maps in x]


def _walk_on_gpu(
    xs: list[Tensor], edges: list[Tensor], radius: int, beta: float, coefficients: Any, method: str
) -> list[Tensor]:
    from amn_fast.kernels.random_walk import triton

    edges = [edge[0] if edge.ndim == 3 and edge.shape[0] == 1 else edge for edge in edges]
    for x, edge in zip(xs, edges, strict=True):
        if edge.ndim != 2 or edge.numel() == 0:
            raise InputError(
                f"edge has shape {tuple(edge.shape)}, expected (h, w) or (1, h, w) with at least one pixel"
            )
        if x.ndim != 3 or x.shape[1:] != edge.shape:
            h, w = edge.shape
            raise InputError(f"x has shape {tuple(x.shape)}, expected (K, {h}, {w}) like the edge map")
    # All pictures' values in one look, so that the GPU is waited for once.
    good = [torch.isfinite(x).all() for x in xs] + [((edge >= 0) & (edge <= 1)).all() for edge in edges]
    for i, fine in enumerate(torch.stack(good).tolist()):
        if not fine and i < len(xs):
            raise InputError(f"x (picture {i}) has NaN or infinite values, expected finite numbers")
        if not fine:
            raise InputError(
                f"edge (picture {i - len(xs)}) has values outside [0, 1], expected finite numbers in [0, 1]"
            )
    return triton.random_walk(xs, edges, radius, beta, coefficients, method == "chebyshev")


def _tensor_backends(device: torch.device) -> dict[str, str]:
    others = {"cpu": ops._native.missing, "reference": ""}
    if device.type == "cuda":
        return {"triton": _triton_missing(), **others}
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and not _triton_missing()
    return {**others, "triton": "" if interpreted else f"it takes CUDA tensors, not tensors on {device}"}


def _triton_missing() -> str:
    return "" if importlib.util.find_spec("triton") else "the package triton is not installed"


def _as_array(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16


def _result_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype.is_floating_point else torch.float32
