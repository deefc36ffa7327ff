"""The bilateral filter of batches of images, by the permutohedral lattice; differentiable in the filtered values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from amn_fast import _native
from amn_fast._native import native
from amn_fast.errors import InputError
from amn_fast.kernels.common import cuda as cuda_runtime
from amn_fast.kernels.dense_crf import bilateral_reference
from amn_fast.ops._arrays import choose_backend, gpu_verdict, has_tangent, is_automatic, number


def bilateral_filter(
    image: Tensor, values: Tensor, sigma_rgb: float, sigma_xy: float, *, backend: str = "auto"
) -> Tensor:
    """A · values for A_ij = exp(-|f_i - f_j|² / 2) with f = (x / sigma_xy, y / sigma_xy, rgb / sigma_rgb).

    Equivalent to: rloss's `bilateralfilter_batch`. The sum includes the pixel itself and is not normalised. A is the
    lattice's approximation, which is not exactly symmetric; gradients use its transpose.

    Args:
        image: (B, 3, H, W) floating or uint8, usually in 0..255, in the units of sigma_rgb.
        values: (B, K, H, W) floating; differentiable (twice, too).
        sigma_rgb, sigma_xy: standard deviations, > 0, of colours and of pixel distances.
        backend: "auto", "cpu" (C++), "cuda" or "reference".

    Returns:
        (B, K, H, W) of the type of the values, computed in float32 (the reference: float64 for double values).

    Raises:
        InputError: a shape, a type, a device or a value is not as above, or image or values hold NaN or infinity, or
            the image requires a gradient.

    Examples:
        >>> import torch, amn_fast
        >>> image, values = 255 * torch.rand(1, 3, 20, 30), torch.rand(1, 2, 20, 30)
        >>> amn_fast.bilateral_filter(image, values, sigma_rgb=15, sigma_xy=50).shape
        torch.Size([1, 2, 20, 30])
    """
    operation = "bilateral_filter"
    check_image(operation, image)
    if values.shape != (len(image), values.shape[1] if values.ndim > 1 else 0, *image.shape[2:]):
        batch, _, height, width = image.shape
        found = tuple(values.shape)
        raise InputError(f"{operation}: values is {found}, expected ({batch}, K, {height}, {width}), as the image")
    if not values.is_floating_point():
        raise InputError(f"{operation}: values is {values.dtype}, expected a floating type")
    if values.device != image.device:
        raise InputError(f"{operation}: values are on {values.device}, expected {image.device}, as the image")
    check_no_tangent(operation, image, values)
    sigma_rgb, sigma_xy = check_sigmas(operation, sigma_rgb, sigma_xy)
    chosen = bilateral_backend(backend, operation, image.device.type)
    return apply_filter(image, values, sigma_rgb, sigma_xy, chosen)


def apply_filter(image: Tensor, values: Tensor, sigma_rgb: float, sigma_xy: float, backend: str) -> Tensor:
    """The filter on inputs that have been checked, on a backend that can run."""
    double = backend == "reference" and values.dtype == torch.float64
    given = values if double else values.float()
    return _bilateral_filter(image.detach().float(), given, sigma_rgb, sigma_xy, False, backend).to(values.dtype)


@torch.library.custom_op("amn_fast::bilateral_filter", mutates_args=())
def _bilateral_filter(
    image: Tensor, values: Tensor, sigma_rgb: float, sigma_xy: float, transpose: bool, backend: str
) -> Tensor:
    out = values.new_empty(values.shape)
    if not values.numel():
        return out
    if backend == "cuda":
        return _on_gpu(image, values, sigma_rgb, sigma_xy, transpose)
    if backend == "reference":
        if not bool(image.isfinite().all() & values.isfinite().all()):
            raise InputError("bilateral_filter: image or values hold NaN or infinity, expected finite numbers")
        return bilateral_reference.bilateral_filter(image, values.detach(), sigma_rgb, sigma_xy, transpose)
    image, values = image.contiguous(), values.contiguous()
    with input_errors("bilateral_filter"):
        native_kernels().bilateral_filter(
            images=image.data_ptr(),
            values=values.data_ptr(),
            shape=values.shape,
            sigma_rgb=sigma_rgb,
            sigma_xy=sigma_xy,
            transpose=transpose,
            out=out.data_ptr(),
            threads=torch.get_num_threads(),
        )
    return out


@_bilateral_filter.register_fake
def _(image: Tensor, values: Tensor, sigma_rgb: float, sigma_xy: float, transpose: bool, backend: str) -> Tensor:
    return values.new_empty(values.shape)


# The filter is linear in the values: its gradient is the transposed filter.
def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    image, _, *ctx.rest = inputs
    ctx.save_for_backward(image)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (image,) = ctx.saved_tensors
    sigma_rgb, sigma_xy, transpose, backend = ctx.rest
    back = _bilateral_filter(image, gradient, sigma_rgb, sigma_xy, not transpose, backend)
    return None, back, None, None, None, None


_bilateral_filter.register_autograd(_backward, setup_context=_setup_context)


def _on_gpu(image: Tensor, values: Tensor, sigma_rgb: float, sigma_xy: float, transpose: bool) -> Tensor:
    from amn_fast.kernels.dense_crf.cuda.host import matrix_handle

    if not bool(values.isfinite().all()):
        raise InputError("bilateral_filter: values hold NaN or infinity, expected finite numbers")
    filtered = [
        matrix_handle(bilateral_reference.features(one, sigma_rgb, sigma_xy)).filter(maps.flatten(1), transpose)
        for one, maps in zip(image, values, strict=True)
    ]
    return torch.stack(filtered).view(values.shape)


def bilateral_backend(backend: str, operation: str, device_type: str) -> str:
    """The backend for tensors on a device type. See `choose_backend` for the errors."""
    elsewhere = f"the tensors are on device '{device_type}'"
    if device_type == "cuda":
        cuda = cuda_runtime.obstacle() or (gpu_verdict("bilateral_filter", "cuda") if is_automatic(backend) else "")
        return choose_backend(backend, operation, {"cuda": cuda, "cpu": elsewhere, "reference": elsewhere})
    missing = _native.missing if device_type == "cpu" else elsewhere
    reference = "" if device_type == "cpu" else elsewhere
    return choose_backend(backend, operation, {"cpu": missing, "reference": reference, "cuda": elsewhere})


# What torch.compiler.assume_constant_result does: torch.compile keeps the answer.
bilateral_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_image(operation: str, image: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
        raise InputError(f"{operation}: image is {tuple(image.shape)}, expected (B, 3, H, W) with H, W >= 1")
    if not image.is_floating_point() and image.dtype != torch.uint8:
        raise InputError(f"{operation}: image is {image.dtype}, expected a floating type or torch.uint8")
    if image.requires_grad and torch.is_grad_enabled():
        raise InputError(f"{operation}: image requires a gradient, which is not computed; pass image.detach()")


def check_no_tangent(operation: str, *tensors: Tensor) -> None:
    """The kernels and the reference alike would drop a forward-mode derivative silently."""
    if has_tangent(*tensors):
        raise InputError(f"{operation}: an input has a forward-mode derivative, which is not computed; use backward")


def check_sigmas(operation: str, sigma_rgb: float, sigma_xy: float) -> tuple[float, float]:
    return (
        number(f"{operation}: sigma_rgb", sigma_rgb, "(0, inf)"),
        number(f"{operation}: sigma_xy", sigma_xy, "(0, inf)"),
    )


@contextmanager
def input_errors(operation: str) -> Iterator[None]:
    """The kernels' complaints about values become InputErrors."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{operation}: {error}") from None


def native_kernels() -> Any:
    assert native is not None  # `bilateral_backend` has seen to it
    return native
