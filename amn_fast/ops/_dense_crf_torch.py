"""The dense CRF of PyTorch tensors, registered as `torch.ops.amn_fast.dense_crf`."""

from typing import Any

import torch
from torch import Tensor

from amn_fast.errors import InputError
from amn_fast.ops import _arrays
from amn_fast.ops import dense_crf as ops

NOT_DIFFERENTIABLE = (
    "{} is not differentiable: call it under torch.no_grad() or on a detached tensor, "
    "or train through amn_fast.nn.MeanField"
)


def dense_crf(
    image: Tensor,
    unary: Tensor,
    gaussian: Any,
    bilateral: Any,
    iterations: int,
    normalization: str,
    prune: float,
    backend: str,
    threads: int | None,
) -> Tensor:
    """`amn_fast.dense_crf` of two tensors. Only what the operator's schema needs happens here: it is traced."""
    settings = ops.settings_of(gaussian, bilateral, normalization)
    smooth, appearance = settings.gaussian, settings.bilateral
    smooth_sigmas = [] if smooth is None else [*smooth[:2]]
    appearance_sigmas = [] if appearance is None else [*appearance[:2], *appearance[2]]
    compats = [_compat(None if kernel is None else kernel[-1]) for kernel in (smooth, appearance)]
    iterations, prune = _arrays.integer("iterations", iterations), _arrays.number("prune", prune, "[0, 1)")
    if _arrays.has_tangent(unary):
        raise InputError(NOT_DIFFERENTIABLE.format("dense_crf"))
    return torch.ops.amn_fast.dense_crf(
        image, unary, smooth_sigmas, appearance_sigmas, *compats, iterations, normalization, prune, backend, threads
    )


def _compat(compat: Any) -> Tensor | None:
    if compat is None or isinstance(compat, Tensor):
        return compat
    if isinstance(compat, int | float):
        return torch.tensor(float(compat), dtype=torch.float64)
    return torch.from_numpy(_arrays.as_array("compat", compat).astype("float64"))


@torch.library.custom_op("amn_fast::dense_crf", mutates_args=())
def _dense_crf(
    image: Tensor,
    unary: Tensor,
    gaussian: list[float],
    bilateral: list[float],
    gaussian_compat: Tensor | None,
    bilateral_compat: Tensor | None,
    iterations: int,
    normalization: str,
    prune: float,
    backend: str,
    threads: int | None,
) -> Tensor:
    smooth = (gaussian, gaussian_compat) if gaussian_compat is not None else None
    appearance = (bilateral[:2], bilateral[2:], bilateral_compat) if bilateral_compat is not None else None
    (answer,) = ops.dense_crf(
        [image],
        [unary.detach()],
        gaussian=smooth,
        bilateral=appearance,
        iterations=iterations,
        normalization=normalization,
        prune=prune,
        backend=backend,
        threads=threads,
    )
    return answer


@_dense_crf.register_fake
def _(image: Tensor, unary: Tensor, *settings: Any) -> Tensor:
    return torch.empty(unary.shape, dtype=torch.float32, device=unary.device)


def _refuse(ctx: Any, gradient: Tensor) -> Any:
    raise InputError(NOT_DIFFERENTIABLE.format("dense_crf"))


_dense_crf.register_autograd(_refuse)


class _NotDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operation: str, result: Tensor, *sources: Tensor) -> Tensor:
        ctx.operation = operation
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise InputError(NOT_DIFFERENTIABLE.format(ctx.operation))


def not_differentiable(operation: str, result: Tensor, sources: list[Tensor]) -> Tensor:
    """See `amn_fast.ops.lattice.not_differentiable`."""
    if _arrays.has_tangent(*sources):
        raise InputError(NOT_DIFFERENTIABLE.format(operation))
    if result.is_floating_point() and torch.is_grad_enabled() and any(source.requires_grad for source in sources):
        return _NotDifferentiable.apply(operation, result, *sources)
    return result
