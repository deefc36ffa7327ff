"""The balanced per-pixel classification loss by definition (AMN, Lee et al., CVPR 2022, section 3.2)."""

import torch
from torch import Tensor


def nearest_index(size: int, target: int) -> list[int]:
    """The source position of each of `target` samples along a side of `size` pixels, by Pillow's nearest rule.

    Sample i lies at floor((i + 1/2)·size / target). Pillow reaches that position by repeated addition in double
    precision. Where the exact value is an integer the two can differ by one; this function adds as Pillow does.
    """
    step = size / target
    position = 0.5 * step
    index = []
    for _ in range(target):
        index.append(min(int(position), size - 1))
        position += step
    return index


def sample_labels(labels: Tensor, height: int, width: int) -> Tensor:
    """labels (B, H, W) sampled to (B, height, width) by Pillow's nearest rule."""
    rows = torch.tensor(nearest_index(labels.shape[1], height), device=labels.device)
    columns = torch.tensor(nearest_index(labels.shape[2], width), device=labels.device)
    return labels[:, rows[:, None], columns[None, :]]


def pixel_sums(logits: Tensor, labels: Tensor, eps: float, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The loss summed over background and over foreground pixels, and the numbers of those pixels.

    Args:
        logits: (B, C + 1, h, w), any floating type; half precision is computed in single.
        labels: (B, H, W) uint8: 0, 1..C or `ignore_index`; sampled to (h, w).
        eps: a pixel of label k has the target 1 - eps on channel k and eps / C on each other one.
        ignore_index: pixels of this label count nowhere.

    Returns:
        sums (2,) and counts (2,), background first; float32, or float64 for double logits.
    """
    x = logits if logits.dtype == torch.float64 else logits.float()
    small = sample_labels(labels, x.shape[2], x.shape[3]).long()
    counted = small != ignore_index
    x = x.masked_fill(~counted[:, None], 0)  # nothing of an ignored pixel reaches the value or the gradient
    log_p = x.log_softmax(1)
    true = log_p.gather(1, small.masked_fill(~counted, 0)[:, None])[:, 0]
    others = log_p.sum(1) - true
    loss = -(1 - eps) * true - eps / (x.shape[1] - 1) * others
    sides = torch.stack([counted & (small == 0), counted & (small != 0)])
    sums = (loss * sides).flatten(1).sum(1)
    return sums, sides.flatten(1).sum(1).to(sums.dtype)
