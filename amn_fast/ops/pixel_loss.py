"""The balanced per-pixel classification loss."""

import torch
from torch import Tensor

from amn_fast.errors import InputError
from amn_fast.kernels.pixel_loss import reference
from amn_fast.ops._backend import choose


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
        backend: "auto" or "reference".

    Returns:
        A scalar, float32 (float64 for double logits).

    Raises:
        InputError: a shape, a type or a value is not as above; a label above C is found before anything is computed.
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
    choose(backend, "pixel_loss", {"reference": ""})
    _check_labels(labels, logits.shape[1], ignore_index)
    return reference.pixel_sums(logits, labels, eps, ignore_index)


def _check(logits: Tensor, labels: Tensor, eps: float) -> None:
    if logits.ndim != 4 or not logits.is_floating_point() or logits.shape[1] < 2:
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


def _check_labels(labels: Tensor, channels: int, ignore_index: int) -> None:
    highest = labels.masked_fill(labels == ignore_index, 0).amax() if labels.numel() else 0
    if highest >= channels:
        expected = f"0..{channels - 1} (the logits' channels) or {ignore_index}"
        raise InputError(f"pixel_loss: labels hold {int(highest)}, expected {expected}")
