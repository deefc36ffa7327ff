"""AMN's balanced per-pixel classification loss (Lee et al., CVPR 2022, section 3.2)."""

from typing import Any

import torch
from torch import Tensor

from amn_fast._native import native
from amn_fast.errors import InputError
from amn_fast.kernels.pixel_loss import reference
from amn_fast.ops._arrays import (
    check_tensor,
    forward_mode_backend,
    integer,
    kernel_backend,
    number,
    same_device,
    tensor_backend,
)

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # of kernels/pixel_loss/cpu.hpp


def pixel_loss(
    logits: Tensor, labels: Tensor, *, eps: float = 0.4, ignore_index: int = 255, backend: str = "auto"
) -> Tensor:
    """½ · the mean loss of background pixels + ½ · the mean loss of foreground pixels, over the whole batch.

    The loss of a pixel is the cross entropy between its softmax and a smoothed target: 1 - eps on the channel of its
    label, eps / C on each of the C other channels. A side without pixels contributes 0. The labels are sampled to the
    size of the logits by Pillow's nearest rule. On the CPU it uses `torch.get_num_threads()` threads.

    Args:
        logits: (B, C + 1, h, w) tensor of float32, float64, float16 or bfloat16, any strides. Half precision is
            computed in float32.
        labels: (B, H, W) uint8: 0 is the background, 1..C are the classes, pixels of `ignore_index` are left out.
        eps: label smoothing, in [0, 1].
        ignore_index: 0..255.
        backend: "auto", "cpu" (C++), "triton" or "reference".

    Returns:
        A scalar, float32 (float64 for double logits). It has a gradient for the logits; forward-mode derivatives are
        computed by the reference. A sampled label above C raises InputError, also in the backward pass if the labels
        were changed in between; on a GPU, where the check would wait for the device, loss and gradient are NaN.

    Raises:
        InputError: a shape, type or value is not as above.
        BackendError: the requested backend cannot run here.

    Examples:
        >>> import torch, amn_fast
        >>> logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
        >>> labels = torch.tensor([[[0, 0], [1, 255]]], dtype=torch.uint8)
        >>> round(amn_fast.pixel_loss(logits, labels, eps=0).item(), 4)  # log 2
        0.6931
    """
    sums, counts = pixel_sums(logits, labels, eps=eps, ignore_index=ignore_index, backend=backend)
    return balanced_mean(sums, counts)


def balanced_mean(sums: Tensor, counts: Tensor) -> Tensor:
    """½ Σ over both sides of sum / count, where a side without pixels contributes 0."""
    return 0.5 * (sums / counts.clamp(min=1)).sum()


def pixel_sums(
    logits: Tensor, labels: Tensor, *, eps: float = 0.4, ignore_index: int = 255, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`pixel_loss` before the division: the sums (2,) and the numbers of pixels (2,), background first.

    For means over several batches or processes: add both, then call `balanced_mean`.
    """
    eps, ignore_index = _check(logits, labels, eps, ignore_index)
    chosen = tensor_backend(backend, "pixel_loss", logits.device.type)
    if forward_mode_backend(chosen, backend, "pixel_loss", logits) == "reference":
        if not torch.compiler.is_compiling():
            small = reference.sample_labels(labels, *logits.shape[2:])
            highest = int(small.masked_fill(small == ignore_index, 0).amax()) if small.numel() else 0
            _check_labels(highest, logits.shape[1], ignore_index)
        return reference.pixel_sums(logits, labels, eps, ignore_index)
    sums, counts, _ = _pixel_sums(logits, labels, eps, ignore_index, chosen)
    return sums, counts


@torch.library.custom_op("amn_fast::pixel_sums", mutates_args=())
def _pixel_sums(
    logits: Tensor, labels: Tensor, eps: float, ignore_index: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums, the counts, and the softmax's maximum and logarithm of the sum of each pixel, (2, B, h, w)."""
    _check(logits, labels, eps, ignore_index)
    if kernel_backend(backend, "pixel_loss", logits.device.type) == "triton":
        from amn_fast.kernels.pixel_loss import triton

        return triton.forward(logits, labels, eps, ignore_index)
    dtype = _arithmetic(logits)
    normaliser = logits.new_empty((2, logits.shape[0], *logits.shape[2:]), dtype=dtype)
    sums = _problem(logits, labels, eps, ignore_index).forward(normaliser.data_ptr())
    _check_labels(sums.highest_label, logits.shape[1], ignore_index)
    return torch.tensor(sums.losses, dtype=dtype), torch.tensor(sums.pixels, dtype=dtype), normaliser


@_pixel_sums.register_fake
def _(logits: Tensor, labels: Tensor, eps: float, ignore_index: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _arithmetic(logits)
    pair = logits.new_empty(2, dtype=dtype)
    return pair, torch.empty_like(pair), logits.new_empty((2, logits.shape[0], *logits.shape[2:]), dtype=dtype)


@torch.library.custom_op("amn_fast::pixel_sums_backward", mutates_args=())
def _pixel_sums_backward(
    grad_sums: Tensor, logits: Tensor, labels: Tensor, normaliser: Tensor, eps: float, ignore_index: int, backend: str
) -> Tensor:
    _check(logits, labels, eps, ignore_index)
    expected = (2, logits.shape[0], *logits.shape[2:])
    if normaliser.shape != expected or normaliser.dtype != _arithmetic(logits) or grad_sums.shape != (2,):
        found = f"{tuple(normaliser.shape)} {normaliser.dtype} and {tuple(grad_sums.shape)}"
        raise InputError(
            f"pixel_loss: normaliser and grad_sums are {found}, expected {expected} {_arithmetic(logits)} and (2,)"
        )
    same_device("pixel_loss", logits=logits, normaliser=normaliser, grad_sums=grad_sums)
    normaliser = normaliser.contiguous()
    if kernel_backend(backend, "pixel_loss", logits.device.type) == "triton":
        from amn_fast.kernels.pixel_loss import triton

        return triton.backward(grad_sums, logits, labels, normaliser, eps, ignore_index)
    gradient = torch.empty_like(logits)
    problem = _problem(logits, labels, eps, ignore_index)
    highest = problem.backward(normaliser.data_ptr(), grad_sums.tolist(), gradient.data_ptr(), gradient.stride())
    _check_labels(highest, logits.shape[1], ignore_index)
    return gradient


@_pixel_sums_backward.register_fake
def _(
    grad_sums: Tensor, logits: Tensor, labels: Tensor, normaliser: Tensor, eps: float, ignore_index: int, backend: str
) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, ctx.eps, ctx.ignore_index, ctx.backend = inputs
    _, counts, normaliser = output
    ctx.mark_non_differentiable(counts, normaliser)
    ctx.save_for_backward(logits, labels, normaliser)


def _backward(ctx: Any, grad_sums: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    gradient = _pixel_sums_backward(grad_sums, *ctx.saved_tensors, ctx.eps, ctx.ignore_index, ctx.backend)
    return gradient, None, None, None, None


_pixel_sums.register_autograd(_backward, setup_context=_setup_context)


def _arithmetic(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _problem(logits: Tensor, labels: Tensor, eps: float, ignore_index: int) -> Any:
    """The C++ kernel's view of the tensors, which must outlive it."""
    assert native is not None  # `kernel_backend` has checked it
    return native.PixelLoss(
        logits=logits.data_ptr(),
        type=TYPES[logits.dtype],
        shape=logits.shape,
        strides=logits.stride(),
        labels=labels.data_ptr(),
        label_size=labels.shape[1:],
        label_strides=labels.stride(),
        eps=eps,
        ignore_index=ignore_index,
        threads=torch.get_num_threads(),
    )


def _check(logits: Any, labels: Any, eps: Any, ignore_index: Any) -> tuple[float, int]:
    check_tensor("pixel_loss: logits", logits)
    check_tensor("pixel_loss: labels", labels)
    if logits.ndim != 4 or logits.dtype not in TYPES or logits.shape[1] < 2:
        found = f"{tuple(logits.shape)} {logits.dtype}"
        raise InputError(f"pixel_loss: logits is {found}, expected (B, C + 1, h, w) of a floating type with C >= 1")
    if labels.dtype != torch.uint8 or labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
        found = f"{tuple(labels.shape)} {labels.dtype}"
        raise InputError(f"pixel_loss: labels is {found}, expected ({logits.shape[0]}, H, W) torch.uint8")
    if 0 in (*logits.shape[2:], *labels.shape[1:]):
        shapes = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
        raise InputError(f"pixel_loss: {shapes}: expected at least one pixel in each")
    same_device("pixel_loss", logits=logits, labels=labels)
    return number("pixel_loss: eps", eps, "[0, 1]"), integer("pixel_loss: ignore_index", ignore_index, 0, 255)


def _check_labels(highest: int, channels: int, ignore_index: int) -> None:
    if highest >= channels:
        expected = f"0..{channels - 1} (the logits' channels) or {ignore_index}"
        raise InputError(f"pixel_loss: labels hold {highest}, expected {expected}")
