"""How good masks are at every threshold, with intervals, from a few answers or masks: the statistics of `calibrate`.

Every pixel belongs to a cell: its best class and the bin of its score. Bins end at the candidate thresholds, so a mask
at any of them is a union of cells, whose sizes are known exactly. Unknown is what the pixels of a cell show: the cell's
own class, background, or another class. Answers about random pixels of each cell estimate that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, stdtrit

OWN, BACKGROUND, OTHER = 0, 1, 2
"""What a pixel of a cell shows."""
CANDIDATES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.65)
ANSWERS_PER_CELL = 4
FEWEST_EDGES = 3
SMOOTHING = 4.0
"""Weight, in answers, of what pixels of the same bin show over all classes, in the choice of the threshold. It makes
the choice follow single answers less. The estimate itself has no such weight: it lowered the coverage of the intervals
from 95 to 88 % with 20 classes."""
LEVEL = 0.95
FEWEST_MASKS = 5
BOOTSTRAPS = 2000

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """As a plain dictionary, rounded to four decimals; NaN as None."""
        found = (("value", self.value), ("low", self.low), ("high", self.high))
        return {name: None if math.isnan(x) else round(x, 4) for name, x in found}


@dataclass(frozen=True)
class Quality:
    """Quality of the masks at one threshold: means over the classes, background included, and the IoU of each class."""

    threshold: float
    miou: Interval
    precision: Interval
    recall: Interval
    iou: tuple[Interval, ...]

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary."""
        means = {name: getattr(self, name).to_json() for name in ("miou", "precision", "recall")}
        return {"threshold": round(self.threshold, 4), **means, "iou": [one.to_json() for one in self.iou]}


def edges_for(points: int, n_classes: int, current: float) -> tuple[float, ...]:
    """Candidate thresholds: as many as so many answers can tell apart, three or more, the current one among them.

    Examples:
        >>> edges_for(200, 3, 0.25), edges_for(200, 20, 0.3)
        ((0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.65), (0.1, 0.3, 0.65))
    """
    count = min(len(CANDIDATES), max(FEWEST_EDGES, points // (ANSWERS_PER_CELL * n_classes) - 1))
    edges = {CANDIDATES[round(place)] for place in np.linspace(0, len(CANDIDATES) - 1, count)}
    if 0 < current < 1 and current not in edges:
        edges = edges - {min(edges, key=lambda edge: abs(edge - current))} | {current}
    return tuple(sorted(edges))


def cells_of(
    scores: NDArray[np.floating], keys: NDArray[np.uint8], edges: Sequence[float]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The cell of every pixel: its best class, and the number of edges below its score.

    Args:
        scores: (K, H, W) in [0, 1], K > 0, as `amn_fast.ops.mask.mask_scores` returns them.
        keys: (K,) labels of the channels, 1..C.
        edges: B - 1 thresholds, ascending.

    Returns:
        (H, W) labels and (H, W) bins 0..B - 1. A mask at `edges[j]` is the label where the bin is above j.
    """
    highest = scores.max(0)
    bins = np.searchsorted(np.asarray(edges, highest.dtype), highest, side="left")
    return keys[scores.argmax(0)], bins.astype(np.uint8)


def cells_of_masks(
    masks: NDArray[np.uint8], scores: NDArray[np.floating], keys: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The cell of every pixel from the masks at all candidate thresholds, where a mask is more than a threshold.

    A dense CRF's foreground shrinks as its threshold rises, except at a few pixels: the number of masks in which a
    pixel is foreground takes the place of its score.

    Args:
        masks: (B - 1, H, W) the masks at the candidate thresholds, ascending.
        scores: (K, H, W), K > 0: their best class is that of the pixels that are background in all masks.
        keys: (K,) labels of the channels, 1..C.

    Returns:
        (H, W) labels, of the strictest mask that has one, and (H, W) bins 0..B - 1.
    """
    label = keys[scores.argmax(0)]
    for mask in masks:
        label = np.where(mask > 0, mask, label)
    return label, (masks > 0).sum(0).astype(np.uint8)


def allocate(sizes: Counts, points: int) -> Counts:
    """How many of `points` questions each cell gets: more where an answer moves the mIoU more.

    A cell's weight is its size relative to its class's area, times the standard deviation of an answer that its bin
    lets expect. Every cell gets a question if they suffice for that.

    Args:
        sizes: (C, B) pixels of each cell.

    Returns:
        (C, B); never more than there are pixels, `points` in all where there are as many pixels.
    """
    n_bins = sizes.shape[1]
    own = np.clip((np.arange(n_bins) + 0.5) / n_bins, 0.1, 0.9)
    area = np.maximum(sizes[:, n_bins // 3 :].sum(1, keepdims=True), 1)
    weight = np.where(sizes > 0, sizes / area * np.sqrt(own * (1 - own)), 0).ravel()
    most = sizes.ravel()
    found = np.minimum(most, 1) if np.count_nonzero(most) <= points else np.zeros_like(most)
    while (left := min(points, int(most.sum())) - int(found.sum())) > 0:
        share = np.where(found < most, weight, 0)
        share = share / share.sum() * left
        extra = np.floor(share).astype(np.int64)
        if not extra.any():  # fewer than one each: to the largest shares
            extra[np.argsort(-share, kind="stable")[:left]] = 1
        found = np.minimum(found + extra, most)
    return found.reshape(sizes.shape)


@dataclass(frozen=True)
class Answers:
    """Answers about random pixels of each cell.

    Attributes:
        sizes: (C, B) pixels of each cell.
        counts: (C, B, 3) answers OWN, BACKGROUND, OTHER.
        others: (C, C) what OTHER is in the cells of a class: shares of the classes, 0 on the diagonal.
        edges: B - 1 candidate thresholds.
        sure: pixels of images without any class: they are background.
    """

    sizes: Counts
    counts: Counts
    others: Floats
    edges: tuple[float, ...]
    sure: int = 0

    def best(self) -> int:
        """The place of the candidate with the highest expected mIoU."""
        mass = self.sizes[..., None] * self._shares(SMOOTHING)
        return int(np.argmax([_figures(*self._totals(mass, place))[0].mean() for place in range(len(self.edges))]))

    def quality(self, place: int) -> Quality:
        """Quality at the candidate `edges[place]`.

        The figures are functions of the shares of each cell. Their intervals put together the Jeffreys intervals of the
        single shares by the method of variance estimates recovery (Zou and Donner, Statistics in Medicine 2008): unlike
        a normal approximation, a cell of 30 answers without an exception does not count as free of exceptions.
        """
        shares = self._shares(0)
        mass = self.sizes[..., None] * shares
        right, predicted, true = self._totals(mass, place)
        values, by_right, by_true = _slopes(right, predicted, true)
        of_right, of_true = self._jacobians(place)
        mean = np.full(len(true), 1 / len(true))
        wanted = [(kind, mean) for kind in range(3)] + [(0, one) for one in np.eye(len(true))]
        found = []
        for kind, weights in wanted:
            slope = np.tensordot(weights * by_right[kind], of_right, 1) + np.tensordot(
                weights * by_true[kind], of_true, 1
            )
            found.append(self._interval(float(values[kind] @ weights), slope * self.sizes[..., None], shares))
        return Quality(self.edges[place], found[0], found[1], found[2], tuple(found[3:]))

    def _shares(self, weight: float) -> Floats:
        """(C, B, 3) what the pixels of each cell show; `weight` answers come from the same bin over all classes.

        A cell without any answer takes that composition alone.
        """
        over_classes = self.counts.sum(0) + np.array([0.5, 0.5, 0.05 if self.others.any() else 0])
        prior = over_classes / over_classes.sum(-1, keepdims=True)
        known = self.counts + np.where(self.counts.any(-1, keepdims=True), weight, 1) * prior
        return known / known.sum(-1, keepdims=True)

    def _totals(self, mass: Floats, place: int) -> tuple[Floats, Floats, Floats]:
        """Right, predicted and true pixels of each label 0..C, from the pixels of each cell by what they show."""
        shown, hidden = slice(place + 1, None), slice(0, place + 1)
        own, background, other = (mass[..., kind] for kind in (OWN, BACKGROUND, OTHER))
        right = np.array([background[:, hidden].sum() + self.sure, *own[:, shown].sum(1)])
        predicted = np.array([self.sizes[:, hidden].sum() + self.sure, *self.sizes[:, shown].sum(1)])
        true = np.array([background.sum() + self.sure, *(own.sum(1) + other.sum(1) @ self.others)])
        return right, predicted, true

    def _jacobians(self, place: int) -> tuple[Floats, Floats]:
        """(C + 1, C, B, 3) slopes of the right and the true pixels of each label by the pixels of each cell."""
        n_classes, n_bins = self.sizes.shape
        right, true = np.zeros((2, n_classes + 1, n_classes, n_bins, 3))
        classes = np.arange(n_classes)
        right[0, :, : place + 1, BACKGROUND] = 1
        right[classes + 1, classes, place + 1 :, OWN] = 1
        true[0, :, :, BACKGROUND] = 1
        true[classes + 1, classes, :, OWN] = 1
        true[1:, :, :, OTHER] = self.others.T[..., None]
        return right, true

    def _interval(self, value: float, slope: Floats, shares: Floats) -> Interval:
        """The interval of a figure with these slopes by the shares of each cell.

        A cell has two independent parts: whether a pixel shows the own class and, where not, whether another class.
        """
        own, asked = self.counts[..., OWN], self.counts.sum(-1)
        own_share = shares[..., OWN]
        other_share = shares[..., OTHER] / np.maximum(1 - own_share, 1e-12)
        rest = (1 - other_share) * slope[..., BACKGROUND] + other_share * slope[..., OTHER]
        up = down = 0.0
        for by, share, hits, tries in (
            (slope[..., OWN] - rest, own_share, own, asked),
            (
                (1 - own_share) * (slope[..., OTHER] - slope[..., BACKGROUND]),
                other_share,
                self.counts[..., OTHER],
                asked - own,
            ),
        ):
            low, high = share_limits(hits, tries)
            above, below = np.maximum(high - share, 0), np.maximum(share - low, 0)
            up += float(((by * np.where(by > 0, above, below)) ** 2).sum())
            down += float(((by * np.where(by > 0, below, above)) ** 2).sum())
        return Interval(value, max(0.0, value - math.sqrt(down)), min(1.0, value + math.sqrt(up)))


def share_limits(hits: Counts, tries: Counts) -> tuple[Floats, Floats]:
    """Jeffreys 95 % interval of a share: quantiles of Beta(hits + 1/2, tries - hits + 1/2); 0 without, 1 with all hits.

    Examples:
        >>> low, high = share_limits(np.array([0, 3]), np.array([10, 10]))
        >>> low.round(3), high.round(3)
        (array([0.   , 0.093]), array([0.217, 0.606]))
    """
    a, b = hits + 0.5, tries - hits + 0.5
    low = np.where(hits == 0, 0.0, betaincinv(a, b, (1 - LEVEL) / 2))
    return low, np.where(hits == tries, 1.0, betaincinv(a, b, (1 + LEVEL) / 2))


def _figures(right: NDArray[Any], predicted: NDArray[Any], true: NDArray[Any]) -> Floats:
    """IoU, precision and recall, (3, ...); 0 where nothing is right, NaN where the class is not there at all."""
    union = true + predicted - right
    wholes = np.stack([union, np.where(predicted > 0, predicted, union), np.where(true > 0, true, union)])
    return np.divide(right, wholes, out=np.full(wholes.shape, np.nan), where=wholes > 0)


def _slopes(right: Floats, predicted: Floats, true: Floats) -> tuple[Floats, Floats, Floats]:
    """IoU, precision and recall of each label, and their slopes by its right and its true pixels, (3, C + 1) each."""
    values = np.nan_to_num(_figures(right, predicted, true))
    union, predicted, true = (np.maximum(x, 1.0) for x in (true + predicted - right, predicted, true))
    by_right = np.stack([(union + right) / union**2, 1 / predicted, 1 / true])
    by_true = np.stack([-right / union**2, np.zeros_like(true), -right / true**2])
    return values, by_right, by_true


@dataclass(frozen=True)
class Masks:
    """Pixels of images with a trusted mask.

    Attributes:
        right, predicted: (I, T, C + 1) of each image, candidate threshold and label.
        true: (I, C + 1) of each image and label.
        thresholds: T candidates.
    """

    right: Counts
    predicted: Counts
    true: Counts
    thresholds: tuple[float, ...]

    def best(self) -> int:
        """The place of the candidate with the highest mIoU."""
        found = _figures(
            self.right.sum(0), self.predicted.sum(0), np.broadcast_to(self.true.sum(0), self.right.shape[1:])
        )
        return int(np.nanargmax(np.nanmean(found[0], -1)))

    def quality(self, place: int, rng: np.random.Generator) -> Quality:
        """Quality at the candidate `thresholds[place]`; a class that no mask shows is left out of the means.

        The intervals are those of a bootstrap over the images: percentiles, expanded by Student's t for few images
        (Hesterberg, The American Statistician 2015).
        """
        images = len(self.true)
        weights = np.concatenate(
            [np.ones((1, images)), rng.multinomial(images, np.full(images, 1 / images), BOOTSTRAPS)]
        )
        right, predicted, true = (weights @ x for x in (self.right[:, place], self.predicted[:, place], self.true))
        found = np.where(self.true.any(0), _figures(right, predicted, true), np.nan)
        tail = float(ndtr(-math.sqrt(images / (images - 1)) * stdtrit(images - 1, (1 + LEVEL) / 2)))

        def interval(values: Floats) -> Interval:
            known = values[1:][~np.isnan(values[1:])]
            if math.isnan(values[0]) or not len(known):
                return Interval(math.nan, math.nan, math.nan)
            low, high = np.quantile(known, [tail, 1 - tail])
            return Interval(float(values[0]), float(low), float(high))

        miou, precision, recall = (interval(np.nanmean(figure, -1)) for figure in found)
        each = tuple(interval(column) for column in found[0].T)
        return Quality(self.thresholds[place], miou, precision, recall, each)
