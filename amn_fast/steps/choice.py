"""Choosing the seed thresholds without ground truth: candidates, what each one's head does on an image, the winner."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amn_fast.data.augment import resize_image, resize_labels
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
        regions: (h, w) region of each pixel at stride 4; of an image with a long side above `heads.LONGEST`, at that
            size.
        labels: (T, y, x) uint8, the CRF's labels for each threshold on the grid of the heads.
    """

    keys: tuple[int, ...]
    maps: list[Tensor]
    other: list[Tensor]
    regions: NDArray[np.int64]
    labels: NDArray[np.uint8]

    def with_labels(
        self,
        image: NDArray[np.uint8],
        found: Activations,
        thresholds: Sequence[float],
        bilateral: tuple[float, float, float],
    ) -> Self:
        """The same with the labels of more thresholds behind those that it has."""
        if not thresholds:
            return self
        grid = (self.labels.shape[1], self.labels.shape[2])
        more = labels_at(image, found, thresholds, bilateral, grid)
        return replace(self, labels=np.concatenate([self.labels, more]))


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
    return Candidates(tuple(found.keys.tolist()), maps, other, _regions(image)[::4, ::4], labels)


def _regions(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Regions of an image, at its size or, if its long side is above `heads.LONGEST`, at that size."""
    factor = heads.scale_of(image.shape, 1.0)
    return find_regions(resize_image(image, (round(image.shape[0] * factor), round(image.shape[1] * factor))))


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

    Examples:
        >>> separation(np.array([[0.0, 0, 1, 1], [0, 1, 0, 1]]), np.array([0, 0, 1, 1])).tolist()
        [1.0, 0.0]
    """
    sizes = np.bincount(regions)
    sums = np.stack([np.bincount(regions, one, len(sizes)) for one in p])
    mean = sums.sum(1, keepdims=True) / regions.size
    between = (sizes * (sums / np.maximum(sizes, 1) - mean) ** 2).sum(1)
    whole = (regions.size * mean * (1 - mean))[:, 0]
    return np.divide(between, whole, out=np.zeros(len(p)), where=whole > 1e-12)


def following(image: NDArray[np.uint8], masks: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How well each of the masks (P, H, W) of an image follows its regions: `separation` of the foreground, (P,)."""
    regions = _regions(image)
    size = (regions.shape[0], regions.shape[1])
    foreground = np.stack([(resize_labels(mask, size) > 0).ravel() for mask in masks])
    return separation(foreground.astype(np.float64), regions.ravel())


def agreement(first: NDArray[np.int64], second: NDArray[np.int64], n_labels: int) -> NDArray[np.float64]:
    """Mean IoU of two label maps over the labels that occur in either, (P,) from two arrays (P, n)."""
    pairs = len(first)
    joint = (np.arange(pairs)[:, None] * n_labels + first) * n_labels + second
    counts = np.bincount(joint.ravel(), minlength=pairs * n_labels**2).reshape(pairs, n_labels, n_labels)
    both = np.diagonal(counts, axis1=1, axis2=2)
    either = counts.sum(1) + counts.sum(2) - both
    iou = np.divide(both, either, out=np.zeros(both.shape), where=either > 0)
    return iou.sum(1) / np.maximum((either > 0).sum(1), 1)


MASK_THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))


@dataclass(frozen=True)
class Promise:
    """What foreground maps of an image promise, read as probabilities.

    Attributes:
        foreground: (P, T) share of the pixels above each of `MASK_THRESHOLDS`, or inside each of T masks.
        certain: (P, T) sum of these pixels over the number of all pixels.
        total: (P,) mean.
    """

    foreground: NDArray[np.float64]
    certain: NDArray[np.float64]
    total: NDArray[np.float64]


def promise(p: NDArray[np.float64], masks: Sequence[NDArray[np.bool_]] | None = None) -> Promise:
    """Of maps (P, n) with values in [0, 1]; T `masks` (P, n) stand for what is above each of `MASK_THRESHOLDS`."""
    above = [p > threshold for threshold in MASK_THRESHOLDS] if masks is None else masks
    return Promise(
        np.stack([one.mean(1) for one in above], 1), np.stack([(p * one).mean(1) for one in above], 1), p.mean(1)
    )


def expected_iou(promises: Sequence[Promise]) -> NDArray[np.float64]:
    """IoU of foreground that maps promise at each threshold, over all images: Σ p[p > t] / (Σ [p > t] + Σ p[p <= t]).

    Returns:
        (P, T).
    """
    foreground, certain = (np.mean([getattr(one, name) for one in promises], 0) for name in ("foreground", "certain"))
    total = np.mean([one.total for one in promises], 0)[:, None]
    return np.asarray(certain / np.maximum(foreground + total - certain, 1e-12))


CRF_THRESHOLDS: tuple[float, ...] = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
"""Candidates for the threshold of masks by a CRF."""
USUAL = 0.3
"""The one that is taken where nothing speaks for another."""


def crf_threshold(regions: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """The threshold of masks by a CRF.

    Args:
        regions: how well the masks at each of `CRF_THRESHOLDS` follow the regions of the images, see `following`.
        expected: the IoU that the activations promise of them.

    Returns:
        the threshold t with the highest regions * expected * (1 - (t - USUAL)^2 / 3). Where the first two are flat, as
        on MSRC v2 from .2 to .5, the last factor decides.
    """
    merit = regions * expected * (1 - (np.array(CRF_THRESHOLDS) - USUAL) ** 2 / 3)
    return CRF_THRESHOLDS[int(merit.argmax())]


@dataclass(frozen=True)
class Measured:
    """What the heads do on one image.

    Attributes:
        eta, eta_mask: (P,) `separation` of the foreground probability and of the mask.
        view: (P,) agreement of the masks of the image and of its flipped version at another scale.
        promise: of the foreground probability.
    """

    eta: NDArray[np.float64]
    eta_mask: NDArray[np.float64]
    view: NDArray[np.float64]
    promise: Promise


def measure(fitted: Tensor, image: Candidates) -> Measured:
    """What each head does on an image.

    Args:
        fitted: (P, C + 1, D + 1), from `heads.fit`.
        image: of K >= 1 classes.
    """
    size = (image.regions.shape[0], image.regions.shape[1])
    p, place = heads.foreground(heads.logits(fitted, heads.grid_features(image.maps), image.keys), size)
    q, other = heads.foreground(heads.logits(fitted, heads.grid_features(image.other), image.keys), size)
    flat, regions = p.flatten(1).numpy().astype(np.float64), image.regions.ravel()
    first, second = (torch.where(a >= 0.5, b, 0).flatten(1).numpy() for a, b in ((p, place), (q, other)))
    return Measured(
        separation(flat, regions),
        separation((flat >= 0.5).astype(np.float64), regions),
        agreement(first, second, len(image.keys) + 1),
        promise(flat),
    )


@dataclass(frozen=True)
class PairScores:
    """What the head of a pair does on all images: means of `Measured` over images.

    Attributes:
        expected_iou: IoU of foreground that the probabilities promise, at each of `MASK_THRESHOLDS`.
    """

    eta: float
    eta_mask: float
    view: float
    foreground: tuple[float, ...]
    expected_iou: tuple[float, ...]

    @property
    def score(self) -> float:
        """What the pairs are compared by; see docs/explanation/thresholds.md."""
        return self.eta * self.eta_mask * self.view**2

    def to_json(self) -> dict[str, Any]:
        """The score and its parts, six decimals."""

        def plain(value: Any) -> Any:
            return [round(one, 6) for one in value] if isinstance(value, tuple) else round(value, 6)

        return {"score": plain(self.score), **{key: plain(value) for key, value in asdict(self).items()}}


def summarise(measured: Sequence[Measured]) -> list[PairScores]:
    """Scores of each pair, from what its head does on each image."""

    def mean(name: str) -> NDArray[np.float64]:
        return np.mean([getattr(one, name) for one in measured], axis=0)

    foreground = np.mean([one.promise.foreground for one in measured], axis=0)
    expected = expected_iou([one.promise for one in measured])
    rows = zip(mean("eta"), mean("eta_mask"), mean("view"), foreground, expected, strict=True)
    return [
        PairScores(float(eta), float(mask), float(view), tuple(fore.tolist()), tuple(iou.tolist()))
        for eta, mask, view, fore, iou in rows
    ]


def best_pair(scores: Mapping[Pair, PairScores]) -> Pair:
    """The pair with the highest score; of equal ones the stricter."""
    return max(scores, key=lambda pair: (scores[pair].score, pair))


FURTHER = {"low": (0.07, 0.05, 0.03, 0.02, 0.01), "high": (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)}
"""Thresholds that extend the grid, outwards."""


def beyond_edge(pair: Pair, fg: Sequence[float], bg: Sequence[float]) -> tuple[list[float], list[float]]:
    """The next thresholds beyond each edge of the grid that a pair lies on: fg and bg, empty inside the grid."""

    def next_of(value: float, grid: Sequence[float]) -> list[float]:
        below = [t for t in FURTHER["low"] if t < min(grid)] if value == min(grid) else []
        above = [t for t in FURTHER["high"] if t > max(grid)] if value == max(grid) else []
        return [*below[:1], *above[:1]]

    return next_of(pair[0], fg), next_of(pair[1], bg)
