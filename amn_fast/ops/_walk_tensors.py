"""The affinity random walk of PyTorch tensors, registered as `torch.ops.amn_fast.random_walk`."""

from typing import Any

import torch
from torch import Tensor

from amn_fast.errors import InputError
from amn_fast.ops import random_walk as ops
from amn_fast.ops._arrays import as_tensor, check_tensor, tensor_backend


def walk_tensors(xs: list[Any], edges: list[Any], settings: ops.WalkSettings) -> list[Tensor]:
    """The walk of tensors on one device; see `random_walk`."""
    for name, x in zip(ops.names("x", xs), xs, strict=True):
        check_tensor(name, x)
        if x.device != xs[0].device:
            raise InputError(f"{name} is on {x.device}, expected {xs[0].device}, like x[0]")
    parts = zip(ops.names("edge", edges), edges, strict=True)
    edges = [as_tensor(name, edge).to(xs[0].device) for name, edge in parts]
    backend = tensor_backend(settings.backend, "random_walk", xs[0].device.type)
    return _random_walk(xs, edges, *settings._replace(backend=backend))


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
    if not x or len(x) != len(edge):
        raise InputError(f"edge is a list of {len(edge)}, expected as many as x ({len(x)}), at least one")
    settings = ops.checked_settings(radius, beta, exp_times, method, tolerance, backend, threads)
    if tensor_backend(backend, "random_walk", x[0].device.type) == "triton":
        results = _walk_on_gpu(x, edge, radius, beta, ops.polynomials([exp_times], method, tolerance)[0], method)
    else:
        arrays = ops.walk_arrays([part.cpu() for part in x], [part.cpu() for part in edge], settings)
        results = [torch.from_numpy(array).to(maps.device) for array, maps in zip(arrays, x, strict=True)]
    return [result.to(_result_dtype(maps)) for result, maps in zip(results, x, strict=True)]


@_random_walk.register_fake
def _(x, edge, radius, beta, exp_times, method, tolerance, backend, threads):  # type: ignore[no-untyped-def]
    return [torch.empty(maps.shape, dtype=_result_dtype(maps), device=maps.device) for maps in x]


def _backward(ctx: Any, *gradients: Any) -> None:
    raise RuntimeError("random_walk has no gradient: call it under torch.no_grad() or on detached tensors")


_random_walk.register_autograd(_backward)


def _walk_on_gpu(
    xs: list[Tensor], edges: list[Tensor], radius: int, beta: float, coefficients: Any, method: str
) -> list[Tensor]:
    from amn_fast.kernels.random_walk import triton

    x_names, edge_names = ops.names("x", xs), ops.names("edge", edges)
    flat = []
    for x_name, x, edge_name, edge in zip(x_names, xs, edge_names, edges, strict=True):
        check_tensor(x_name, x)
        check_tensor(edge_name, edge)
        ops.check_edge_shape(edge_name, edge.shape)
        flat.append(edge.reshape(edge.shape[-2:]))
        ops.check_maps_shape(x_name, x.shape, flat[-1].shape)
        if x.device != xs[0].device or edge.device != xs[0].device:
            raise InputError(f"{x_name} is on {x.device} and {edge_name} on {edge.device}, expected {xs[0].device}")
    # The values of all images in one look, which waits once for the device.
    good = [(x.double().abs() <= ops.FLOAT32_MAX).all() for x in xs]
    good += [((edge >= 0) & (edge <= 1)).all() for edge in flat]
    for name, fine in zip(x_names + edge_names, torch.stack(good).tolist(), strict=True):
        if not fine and name in x_names:
            raise InputError(f"{name} has NaN, infinite or too large values, expected finite numbers of float32")
        if not fine:
            raise InputError(f"{name} has values outside [0, 1], expected finite numbers in [0, 1]")
    return triton.random_walk(xs, flat, radius, beta, coefficients, method == "chebyshev")


def _result_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype.is_floating_point else torch.float32
