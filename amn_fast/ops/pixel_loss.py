"""The balanced per-pixel classification loss."""

from typing import Any

import torch
from torch import Tensor

from amn_fast._native import native
from amn_fast.errors import InputError
from amn_fast.kernels.pixel_loss import reference
from amn_fast.ops._arrays import tensor_backend

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # of kernels/pixel_loss/cpu.hpp


def pixel_loss(
    logits: Tensor, labels: Tensor, *, eps: float = 0.4, ignore_index: int = 255, backend: str = "auto"
) -> Tensor:
    """½ · the mean loss of background pixels + ½ · the mean loss of foreground pixels, over the whole batch.

    A pixel's loss is the cross entropy between its softmax and the target 1 - eps on its label's channel and eps / C
    on each of the C others (AMN, Lee et al., CVPR 2022). A side without pixels contributes 0. The labels are sampled
    to the logits' size by Pillow's nearest rule.

    Args:
        logits: (B, C + 1, h, w), float32, float64, float16 or bfloat16, any strides; computed in float32 or float64.
        labels: (B, H, W) uint8: 0 is background, 1..C the classes, `ignore_index` counts nowhere.
        eps: label smoothing, in [0, 1].
        backend: "auto", "cpu" (C++), "triton" or "reference".

    Returns:
        A scalar, float32 (float64 for double logits).

    Raises:
        InputError: a shape, a type or a value is not as above. Only sampled labels are looked at. On a GPU, where
            looking would wait for the device, a label above C counts nowhere and a later call raises.
    """
    sums, counts = pixel_sums(logits, labels, eps=eps, ignore_index=ignore_index, backend=backend)
    return balanced_mean(sums, counts)


def balanced_mean(sums: Tensor, counts: Tensor) -> Tensor:
    """½ Σ over both sides of sum / count, where a side without pixels contributes 0."""
    return 0.5 * (sums / counts.clamp(min=1)).sum()


def pixel_sums(
    logits: Tensor, labels: Tensor, *, eps: float = 0.4, ignore_index: int = 255, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`pixel_loss` before the division: the sums (2,) and the pixel counts (2,), background first.

    For means over more than one batch or process: add both, then `balanced_mean`.
    """
    _check(logits, labels, eps)
    chosen = tensor_backend(backend, "pixel_loss", logits.device.type)
    if chosen == "reference":
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
    dtype = _arithmetic(logits)
    if backend == "triton":
        return _triton_forward(logits, labels, eps, ignore_index)
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
    if backend == "triton":
        from amn_fast.kernels.pixel_loss import triton

        return triton.backward(grad_sums, logits, labels, normaliser, eps, ignore_index)
    gradient = torch.empty_like(logits)
    problem = _problem(logits, labels, eps, ignore_index)
    problem.backward(normaliser.data_ptr(), grad_sums.tolist(), gradient.data_ptr(), gradient.stride())
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


def _triton_forward(logits: Tensor, labels: Tensor, eps: float, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    from amn_fast.kernels.pixel_loss import triton

    _raise_found()
    sums, counts, normaliser, highest = triton.forward(logits, labels, eps, ignore_index)
    if logits.device.type == "cpu":  # interpreted
        _check_labels(int(highest), logits.shape[1], ignore_index)
    elif not torch.cuda.is_current_stream_capturing():
        found = torch.empty((), dtype=highest.dtype, pin_memory=True).copy_(highest, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        _unread.append((event, found, logits.shape[1], ignore_index))
    return sums, counts, normaliser


# The highest label of each launch on a GPU, on its way to the host: reading it at once would wait for the device.
_unread: list[tuple[Any, Tensor, int, int]] = []


def _raise_found() -> None:
    """Reads the highest labels that have arrived. Launches end in order, so the first that has not ends the search."""
    while _unread and _unread[0][0].query():
        _, found, channels, ignore_index = _unread.pop(0)
        _check_labels(int(found), channels, ignore_index)


def _arithmetic(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _problem(logits: Tensor, labels: Tensor, eps: float, ignore_index: int) -> Any:
    """The C++ kernel's view of the tensors, which must outlive it."""
    assert native is not None  # `tensor_backend` has seen to it
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


def _check(logits: Tensor, labels: Tensor, eps: float) -> None:
    if logits.ndim != 4 or logits.dtype not in TYPES or logits.shape[1] < 2:
        found = f"{tuple(logits.shape)} {logits.dtype}"
        raise InputError(f"pixel_loss: logits is {found}, expected (B, C + 1, h, w) of a floating type with C >= 1")
    if labels.dtype != torch.uint8 or labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
        found = f"{tuple(labels.shape)} {labels.dtype}"
        raise InputError(f"pixel_loss: labels is {found}, expected ({logits.shape[0]}, H, W) torch.uint8")
    if 0 in (*logits.shape[2:], *labels.shape[1:]):
        shapes = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
        raise InputError(f"pixel_loss: {shapes}: expected at least one pixel in each")
    if labels.device != logits.device:
        raise InputError(f"pixel_loss: labels are on {labels.device}, expected {logits.device}, as the logits")
    if not 0 <= eps <= 1:
        raise InputError(f"pixel_loss: eps is {eps}, expected a number in [0, 1]")


def _check_labels(highest: int, channels: int, ignore_index: int) -> None:
    if highest >= channels:
        expected = f"0..{channels - 1} (the logits' channels) or {ignore_index}"
        raise InputError(f"pixel_loss: labels hold {highest}, expected {expected}")
