"""Merging activation maps over scales by definition (IRN's and AMN's inference)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from amn_fast.kernels.pixel_loss.reference import sample_labels

TINY = 1e-5


def strided_size(height: int, width: int) -> tuple[int, int]:
    """The stride-4 grid of an image."""
    return (height - 1) // 4 + 1, (width - 1) // 4 + 1


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if len(maps) == 0:  # an image without classes
        return maps.new_zeros(0, *size)
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def merge_cam(maps: Sequence[Tensor], size: tuple[int, int], valid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The sum over scales at stride 4 and at full size, each class divided by its maximum + 1e-5.

    The full-size maps are resized to the 16-multiple grid, where the network's cells lie, and cropped.
    """
    height, width = size
    padded = ((height - 1) // 16 + 1) * 16, ((width - 1) // 16 + 1) * 16
    kept = [m[list(valid)] for m in maps]
    strided = sum((_resize(m, strided_size(height, width)) for m in kept[1:]), _resize(kept[0], strided_size(*size)))
    full = sum((_resize(m, padded) for m in kept[1:]), _resize(kept[0], padded))[:, :height, :width]
    return tuple(m / (m.amax((1, 2), keepdim=True) + TINY) for m in (strided, full))  # type: ignore[return-value]


def merge_amn(
    maps: Sequence[Tensor], size: tuple[int, int], valid: Sequence[int], seed: Tensor
) -> tuple[Tensor, Tensor]:
    """The softmax of the mean over scales at stride 4 and at full size, for the background and the valid classes.

    Where the seed is not background (255 is not), each channel's minimum and maximum over the image are moved to 0
    and 1; elsewhere the raw probability stays.
    """

    def merged(target: tuple[int, int]) -> Tensor:
        mean = torch.stack([_resize(m, target) for m in maps]).mean(0)
        p = mean.softmax(0)[[0, *(k + 1 for k in valid)]]
        low, high = p.amin((1, 2), keepdim=True), p.amax((1, 2), keepdim=True)
        foreground = sample_labels(seed[None], *target)[0] != 0
        return torch.where(foreground, (p - low) / (high - low + TINY), p)

    return merged(strided_size(*size)), merged(size)
