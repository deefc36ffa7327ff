"""Pixel-adaptive refinement: affinities of neighbouring pixels (PAR, PAMR), and masks that propagate through them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from amn_fast._native import native
from amn_fast.errors import InputError
from amn_fast.kernels.local_refinement import reference
from amn_fast.ops._arrays import choice, forward_mode_backend, integer, tensor_backend

DILATIONS = (1, 2, 4, 8, 12, 24)


def local_affinity(
    image: Tensor,
    *,
    dilations: Sequence[int] = DILATIONS,
    kind: str = "par",
    normalise: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The affinity of each pixel to its 8 neighbours at each dilation, from the image alone.

    Equivalent to: the weights of AFA's and ToCo's `PAR` or of 1-stage-wseg's `PAMR`. Compute it once to propagate
    several masks through it with `propagate`.

    Args:
        image: (B, C, H, W) floating, in any range (the affinity is relative to the local standard deviation).
        dilations: distances of the neighbours in pixels, at least one, each >= 1; pixels outside the image are the
            nearest ones inside.
        kind: "par" or "pamr".
        normalise: divide by the sum of a pixel's weights, which is 1.01 for PAR (as published) and 1 for PAMR.
        backend: "auto", "cpu" (C++), "triton" or "reference".

    Returns:
        (B, 8 · len(dilations), H, W), float32 (float64 for double images). The order is dilation by dilation, and in
        each from the upper left to the lower right neighbour.

    Raises:
        InputError: a shape, a type or a value is not as above, or the image requires a gradient, which only
            backend="reference" computes.

    Examples:
        >>> import torch, amn_fast
        >>> affinity = amn_fast.local_affinity(torch.rand(1, 3, 8, 9))
        >>> amn_fast.propagate(torch.rand(1, 2, 8, 9), affinity).shape
        torch.Size([1, 2, 8, 9])
    """
    dilations = _check_rule("local_affinity", dilations, kind)
    _check_maps("local_affinity", "image", image)
    chosen = tensor_backend(backend, "local_affinity", image.device.type)
    chosen = forward_mode_backend(chosen, backend, "local_affinity", image)
    image = image.to(_arithmetic(image))
    if chosen == "reference":
        return reference.local_affinity(image, dilations, kind, normalise)
    _check_constant("local_affinity", "image", image)
    return _local_affinity(image.detach(), dilations, kind, normalise, chosen)


def propagate(
    mask: Tensor,
    affinity: Tensor,
    *,
    dilations: Sequence[int] = DILATIONS,
    iterations: int = 10,
    backend: str = "auto",
) -> Tensor:
    """A mask after `iterations` steps in which each pixel takes the weighted sum of its neighbours' values.

    Args:
        mask: (B, K, H, W) floating, any values; differentiable.
        affinity: (B, 8 · len(dilations), H, W), `local_affinity`'s or any other of the same order.
        dilations: as for the affinity.
        iterations: number of steps, >= 0.
        backend: "auto", "cpu" (C++), "triton" or "reference".

    Returns:
        (B, K, H, W) of the mask's type, computed in float32 (float64 for double masks).

    Raises:
        InputError: a shape, a type or a device is not as above, or the affinity requires a gradient, which only
            backend="reference" computes.

    Examples:
        >>> import torch, amn_fast
        >>> affinity = torch.full((1, 8, 4, 5), 1 / 8)
        >>> amn_fast.propagate(torch.ones(1, 1, 4, 5), affinity, dilations=[1]).mean()
        tensor(1.)
    """
    dilations = _check_rule("propagate", dilations, "par")
    _check_maps("propagate", "mask", mask)
    expected = (mask.shape[0], 8 * len(dilations), *mask.shape[2:])
    if affinity.shape != expected or not affinity.is_floating_point():
        found = f"{tuple(affinity.shape)} {affinity.dtype}"
        raise InputError(f"propagate: affinity is {found}, expected {expected} of a floating type")
    _check_device("propagate", mask, "affinity", affinity)
    iterations = integer("propagate: iterations", iterations, 0)
    chosen = tensor_backend(backend, "propagate", mask.device.type)
    chosen = forward_mode_backend(chosen, backend, "propagate", mask, affinity)
    dtype = _arithmetic(mask)
    values, weights = mask.to(dtype), affinity.to(dtype)
    if chosen == "reference":
        return reference.propagate(values, weights, dilations, iterations).to(mask.dtype)
    _check_constant("propagate", "affinity", affinity)
    return _propagate(values, weights.detach(), dilations, iterations, False, chosen).to(mask.dtype)


def pixel_adaptive_refinement(
    image: Tensor,
    mask: Tensor,
    *,
    dilations: Sequence[int] = DILATIONS,
    iterations: int = 10,
    kind: str = "par",
    normalise: bool = False,
    backend: str = "auto",
) -> Tensor:
    """A mask refined along the edges of an image: PAR (Ru et al., CVPR 2022) or PAMR (Araslanov & Roth, CVPR 2020).

    Equivalent to: `propagate(mask, local_affinity(image))` after resizing the mask to the image bilinearly
    (align_corners=True); it keeps the affinity of one image at a time.

    Args:
        image: (B, C, H, W) floating, in any range.
        mask: (B, K, h, w) floating, e.g. class scores; differentiable.
        dilations, kind, normalise: as in `local_affinity`. Without `normalise` each step of PAR multiplies a constant
            mask by 1.01, as published.
        iterations: number of steps, >= 0.
        backend: "auto", "cpu" (C++), "triton" or "reference".

    Returns:
        (B, K, H, W) of the mask's type, computed in float32 (float64 for double masks).

    Raises:
        InputError: a shape, a type, a device or a value is not as above, or the image requires a gradient, which only
            backend="reference" computes.

    Examples:
        >>> import torch, amn_fast
        >>> image, mask = torch.rand(1, 3, 32, 48), torch.rand(1, 2, 16, 24)
        >>> amn_fast.pixel_adaptive_refinement(image, mask, iterations=10).shape
        torch.Size([1, 2, 32, 48])
    """
    operation = "pixel_adaptive_refinement"
    dilations = _check_rule(operation, dilations, kind)
    _check_maps(operation, "image", image)
    _check_maps(operation, "mask", mask)
    if len(mask) != len(image):
        raise InputError(f"{operation}: mask has a batch of {len(mask)}, expected {len(image)}, as the image")
    _check_device(operation, image, "mask", mask)
    iterations = integer(f"{operation}: iterations", iterations, 0)
    chosen = tensor_backend(backend, operation, mask.device.type)
    chosen = forward_mode_backend(chosen, backend, operation, image, mask)
    dtype = _arithmetic(mask)
    values, guide = mask.to(dtype), image.to(dtype)
    if values.shape[2:] != guide.shape[2:]:
        values = F.interpolate(values, size=guide.shape[2:], mode="bilinear", align_corners=True)
    if chosen == "reference":
        affinity = reference.local_affinity(guide, dilations, kind, normalise)
        return reference.propagate(values, affinity, dilations, iterations).to(mask.dtype)
    _check_constant(operation, "image", image)
    return _refine(guide.detach(), values, dilations, iterations, kind, normalise, False, chosen).to(mask.dtype)


@torch.library.custom_op("amn_fast::local_affinity", mutates_args=())
def _local_affinity(image: Tensor, dilations: list[int], kind: str, normalise: bool, backend: str) -> Tensor:
    if backend == "triton":
        from amn_fast.kernels.local_refinement import triton

        return triton.local_affinity(image, dilations, kind, normalise)
    image = image.contiguous()
    out = _empty_affinity(image, dilations)
    _kernel("local_affinity", image)(
        image=image.data_ptr(), shape=image.shape, out=out.data_ptr(), **_rule(dilations, kind, normalise)
    )
    return out


@_local_affinity.register_fake
def _(image: Tensor, dilations: list[int], kind: str, normalise: bool, backend: str) -> Tensor:
    return _empty_affinity(image, dilations)


@torch.library.custom_op("amn_fast::propagate", mutates_args=())
def _propagate(
    mask: Tensor, affinity: Tensor, dilations: list[int], iterations: int, transpose: bool, backend: str
) -> Tensor:
    if backend == "triton":
        from amn_fast.kernels.local_refinement import triton

        return triton.propagate(mask, affinity, dilations, iterations, transpose)
    mask, affinity = mask.contiguous(), affinity.contiguous()
    out = torch.empty_like(mask)
    _kernel("local_propagate", mask)(
        affinity=affinity.data_ptr(),
        mask=mask.data_ptr(),
        shape=mask.shape,
        dilations=dilations,
        iterations=iterations,
        transpose=transpose,
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return out


@_propagate.register_fake
def _(mask: Tensor, affinity: Tensor, dilations: list[int], iterations: int, transpose: bool, backend: str) -> Tensor:
    return mask.new_empty(mask.shape)


@torch.library.custom_op("amn_fast::pixel_adaptive_refinement", mutates_args=())
def _refine(
    image: Tensor,
    mask: Tensor,
    dilations: list[int],
    iterations: int,
    kind: str,
    normalise: bool,
    transpose: bool,
    backend: str,
) -> Tensor:
    if backend == "triton":
        from amn_fast.kernels.local_refinement import triton

        affinity = triton.local_affinity(image, dilations, kind, normalise)
        return triton.propagate(mask, affinity, dilations, iterations, transpose)
    image, mask = image.contiguous(), mask.contiguous()
    out = torch.empty_like(mask)
    _kernel("local_refine", mask)(
        image=image.data_ptr(),
        image_channels=image.shape[1],
        mask=mask.data_ptr(),
        shape=mask.shape,
        iterations=iterations,
        transpose=transpose,
        out=out.data_ptr(),
        **_rule(dilations, kind, normalise),
    )
    return out


@_refine.register_fake
def _(
    image: Tensor,
    mask: Tensor,
    dilations: list[int],
    iterations: int,
    kind: str,
    normalise: bool,
    transpose: bool,
    backend: str,
) -> Tensor:
    return mask.new_empty(mask.shape)


# A step is linear in the mask: its gradient is a step through the transposed affinity.
def _propagate_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, affinity, *ctx.rest = inputs
    ctx.save_for_backward(affinity)


def _propagate_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (affinity,) = ctx.saved_tensors
    dilations, iterations, transpose, backend = ctx.rest
    return _propagate(gradient, affinity, dilations, iterations, not transpose, backend), None, None, None, None, None


_propagate.register_autograd(_propagate_backward, setup_context=_propagate_context)


def _refine_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    image, _, *ctx.rest = inputs
    ctx.save_for_backward(image)


def _refine_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (image,) = ctx.saved_tensors
    *rule, transpose, backend = ctx.rest
    return None, _refine(image, gradient, *rule, not transpose, backend), *(None,) * 6


_refine.register_autograd(_refine_backward, setup_context=_refine_context)


def _kernel(name: str, values: Tensor) -> Any:
    return getattr(native, f"{name}{64 if values.dtype == torch.float64 else 32}")


def _rule(dilations: list[int], kind: str, normalise: bool) -> dict[str, Any]:
    """How the C++ kernel makes an affinity."""
    scale = 1 / reference.total_weight(kind) if normalise else 1.0
    weights = reference.position_weights(dilations) if kind == "par" else [0.0] * (8 * len(dilations))
    return {
        "dilations": dilations,
        "kind": kind,
        "position": [scale * weight for weight in weights],
        "scale": scale,
        "threads": torch.get_num_threads(),
    }


def _empty_affinity(image: Tensor, dilations: list[int]) -> Tensor:
    return image.new_empty(image.shape[0], 8 * len(dilations), *image.shape[2:])


def _arithmetic(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _check_rule(operation: str, dilations: Sequence[int], kind: str) -> list[int]:
    if not len(dilations):
        raise InputError(f"{operation}: dilations are empty, expected at least one distance")
    choice(f"{operation}: kind", kind, reference.KINDS)
    return [integer(f"{operation}: dilations[{i}]", d, 1) for i, d in enumerate(dilations)]


def _check_maps(operation: str, name: str, values: Tensor) -> None:
    if values.ndim != 4 or 0 in values.shape[1:] or not values.is_floating_point():
        found = f"{tuple(values.shape)} {values.dtype}"
        raise InputError(f"{operation}: {name} is {found}, expected (B, channels, H, W) of a floating type, not empty")


def _check_device(operation: str, first: Tensor, name: str, second: Tensor) -> None:
    if first.device != second.device:
        raise InputError(f"{operation}: {name} is on {second.device}, expected {first.device}, as the other tensor")


def _check_constant(operation: str, name: str, values: Tensor) -> None:
    if values.requires_grad and torch.is_grad_enabled():
        raise InputError(
            f"{operation}: {name} requires a gradient, expected one without: pass {name}.detach(), or "
            "backend='reference', which differentiates it"
        )
