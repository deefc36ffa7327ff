"""Choosing the seed thresholds without ground truth: candidates, what each one's head does on an image, the winner."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amn_fast.data.store import Activations
from amn_fast.models.heads import HeadsNet
from amn_fast.ops.refine_seed import combine, crf_labels
from amn_fast.steps import heads
from amn_fast.steps.regions import find_regions

Pair = tuple[float, float]
"""Thresholds fg and bg."""

FG = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
BG = (0.05, 0.1, 0.2, 0.3, 0.4)
OTHER_SCALE = 1.0
"""Scale of the flipped image whose masks are compared with those of the image."""


def pairs_of(fg: Sequence[float], bg: Sequence[float]) -> list[Pair]:
    """All pairs with bg < fg."""
    return [(high, low) for high in fg for low in bg if low < high]


@dataclass(frozen=True)
class Candidates:
    """What is kept in memory of an image.

    Attributes:
        keys: labels of its classes, ascending.
        maps: projected features.
        other: those of the flipped image at another scale.
        regions: (h, w) region of each pixel at stride 4.
        labels: (T, y, x) uint8, the CRF's labels for each threshold on the grid of the heads.
    """

    keys: tuple[int, ...]
    maps: list[Tensor]
    other: list[Tensor]
    regions: NDArray[np.int64]
    labels: NDArray[np.uint8]


def prepare(
    net: HeadsNet,
    image: NDArray[np.uint8],
    found: Activations,
    thresholds: Sequence[float],
    bilateral: tuple[float, float, float],
    device: torch.device,
) -> Candidates:
    """Everything that a choice needs of one image, on one thread."""
    maps = heads.project(net, heads.level_maps(net, image, device))
    other = heads.project(net, heads.level_maps(net, image, device, scale=OTHER_SCALE, flip=True))
    labels = labels_at(image, found, thresholds, bilateral, (maps[0].shape[1], maps[0].shape[2]))
    return Candidates(tuple(found.keys.tolist()), maps, other, find_regions(image)[::4, ::4], labels)


def labels_at(
    image: NDArray[np.uint8],
    found: Activations,
    thresholds: Sequence[float],
    bilateral: tuple[float, float, float],
    grid: tuple[int, int],
) -> NDArray[np.uint8]:
    """The CRF's labels for each threshold on the grid of the heads, (T, *grid) uint8."""
    full = crf_labels(image, found.full, found.keys, thresholds, bilateral=bilateral, threads=1)
    return heads.grid_labels(full, grid)


def seeds(labels: NDArray[np.uint8], thresholds: Sequence[float], pairs: Sequence[Pair]) -> NDArray[np.uint8]:
    """The seed of each pair, (P, ...) uint8, from the labels at each threshold, (T, ...)."""
    place = {threshold: k for k, threshold in enumerate(thresholds)}
    return np.stack([combine(labels[place[fg]], labels[place[bg]]) for fg, bg in pairs])


def separation(p: NDArray[np.floating], regions: NDArray[np.int64]) -> NDArray[np.float64]:
    """How decided a foreground map is in units of regions: eta² = Σ_S |S| (p̄_S − m)² / (n m (1 − m)).

    Args:
        p: (P, n) values in [0, 1].
        regions: (n,) region of each pixel.

    Returns:
        (P,) in [0, 1]: 1 where each region is 0 or 1, 0 where all regions have the same mean.

    Example:
        >>> separation(np.array([[0.0, 0, 1, 1], [0, 1, 0, 1]]), np.array([0, 0, 1, 1])).tolist()
        [1.0, 0.0]
    """
    sizes = np.bincount(regions)
    sums = np.stack([np.bincount(regions, one, len(sizes)) for one in p])
    mean = sums.sum(1, keepdims=True) / regions.size
    between = (sizes * (sums / np.maximum(sizes, 1) - mean) ** 2).sum(1)
    whole = (regions.size * mean * (1 - mean))[:, 0]
    return np.divide(between, whole, out=np.zeros(len(p)), where=whole > 1e-12)


def agreement(first: NDArray[np.int64], second: NDArray[np.int64], n_labels: int) -> NDArray[np.float64]:
    """Mean IoU of two label maps over the labels that occur in either, (P,) from two arrays (P, n)."""
    pairs = len(first)
    joint = (np.arange(pairs)[:, None] * n_labels + first) * n_labels + second
    counts = np.bincount(joint.ravel(), minlength=pairs * n_labels**2).reshape(pairs, n_labels, n_labels)
    both = np.diagonal(counts, axis1=1, axis2=2)
    either = counts.sum(1) + counts.sum(2) - both
    iou = np.divide(both, either, out=np.zeros(both.shape), where=either > 0)
    return iou.sum(1) / np.maximum((either > 0).sum(1), 1)


FIGURES = ("eta", "eta_mask", "agreement")


def measure(fitted: Tensor, image: Candidates) -> NDArray[np.float64]:
    """What each head does on an image: eta² of its foreground probability and of its mask, and view agreement.

    Args:
        fitted: (P, C + 1, D + 1), from `heads.fit`.
        image: of K >= 1 classes.

    Returns:
        (3, P), in the order of `FIGURES`.
    """
    size = (image.regions.shape[0], image.regions.shape[1])
    p, place = heads.foreground(heads.logits(fitted, heads.grid_features(image.maps), image.keys), size)
    q, other = heads.foreground(heads.logits(fitted, heads.grid_features(image.other), image.keys), size)
    flat, regions = p.flatten(1).numpy().astype(np.float64), image.regions.ravel()
    first, second = (torch.where(a >= 0.5, b, 0).flatten(1).numpy() for a, b in ((p, place), (q, other)))
    return np.stack([
        separation(flat, regions),
        separation((flat >= 0.5).astype(np.float64), regions),
        agreement(first, second, len(image.keys) + 1),
    ])  # fmt: skip
