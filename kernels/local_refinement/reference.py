"""Pixel-adaptive refinement by definition: PAR (AFA, Ru et al., CVPR 2022) and PAMR (Araslanov & Roth, CVPR 2020).

A pixel's value becomes a weighted sum of its neighbours' values, 8 for each dilation, and the weights come from the
image. What lies outside the image is the nearest pixel inside.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

KINDS = ("par", "pamr")
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
TINY = 1e-8
COLOUR_SCALE = 0.3  # PAR: of the colour and of the position term
POSITION_WEIGHT = 0.01
PAMR_SCALE = 0.1


def offsets(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """(dy, dx) of the 8 neighbours of each dilation, in the order of an affinity's second dimension."""
    return [(dy * d, dx * d) for d in dilations for dy, dx in DIRECTIONS]


def position_logits(dilations: Sequence[int]) -> list[float]:
    """PAR's position term before its softmax, of each neighbour; from its distance alone."""
    distance = torch.tensor([(dy * dy + dx * dx) ** 0.5 for dy, dx in offsets(dilations)], dtype=torch.float64)
    return (-((distance / (distance.std() + TINY) / COLOUR_SCALE) ** 2)).tolist()


def position_weights(dilations: Sequence[int]) -> list[float]:
    """What PAR adds to the affinity of each neighbour."""
    softmax = torch.tensor(position_logits(dilations), dtype=torch.float64).softmax(0)
    return (POSITION_WEIGHT * softmax).tolist()


def total_weight(kind: str) -> float:
    """The sum of a pixel's weights."""
    return 1 + POSITION_WEIGHT if kind == "par" else 1.0


def _index(shift: int, size: int, device: torch.device) -> Tensor:
    return (torch.arange(size, device=device) + shift).clamp(0, size - 1)


def neighbours(x: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """x (..., H, W) moved so that each pixel holds a neighbour's value; one tensor for each offset."""
    height, width = x.shape[-2:]
    for dy, dx in offsets(dilations):
        rows, columns = _index(dy, height, x.device), _index(dx, width, x.device)
        yield x.index_select(-2, rows).index_select(-1, columns)


def local_affinity(image: Tensor, dilations: Sequence[int], kind: str, normalise: bool) -> Tensor:
    """(B, 8 · dilations, H, W) from the image (B, C, H, W)."""
    around = torch.stack(list(neighbours(image, dilations)), 2)
    difference = (around - image[:, :, None]).abs()
    if kind == "par":
        sigma = around.std(2, keepdim=True)
        logits = -((difference / (sigma + TINY) / COLOUR_SCALE) ** 2)
        position = torch.tensor(position_weights(dilations), dtype=image.dtype, device=image.device)
        affinity = logits.mean(1).softmax(1) + position[:, None, None]
    else:
        centres = image[:, :, None].expand(-1, -1, len(dilations), -1, -1)
        sigma = torch.cat([around, centres], 2).std(2, keepdim=True)
        affinity = (-difference / (TINY + PAMR_SCALE * sigma)).mean(1).softmax(1)
    return affinity / total_weight(kind) if normalise else affinity


def propagate(mask: Tensor, affinity: Tensor, dilations: Sequence[int], iterations: int) -> Tensor:
    """mask (B, K, H, W) after `iterations` steps mask <- sum over the neighbours of affinity · neighbour's mask."""
    for _ in range(iterations):
        weights = affinity.unbind(1)
        mask = sum(  # type: ignore[assignment]
            (weight[:, None] * values for weight, values in zip(weights, neighbours(mask, dilations), strict=True)),
            torch.zeros_like(mask),
        )
    return mask
