"""How activations are spread over objects and background."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amn_fast.metrics._checks import Counts, Floats, argmax, check_activations, check_n_classes, share, to_json


@dataclass(frozen=True)
class HistogramResult:
    """What the activations look like over foreground and over background.

    AMN's starting point is that a classifier's activations are (a) imbalanced over an object: a few pixels are high
    and most are low, so that no threshold keeps all of it; and (b) close over object and background. Here (a) is
    `imbalance` and `low_share` (smaller is better) and (b) is `gap` (larger is better).
    """

    edges: Floats
    """(51,) limits of the bins, 0, .02, ... 1; a bin holds its lower limit, the last one both."""
    foreground: Counts
    """(50,) foreground pixels by the activation of their own class."""
    background: Counts
    """(50,) background pixels by their largest activation, the one that competes with the threshold."""
    by_class: Counts
    """(C, 50) `foreground`, class by class."""
    foreground_mean: float
    background_mean: float
    gap: float
    """Mean over foreground minus mean over background."""
    imbalance: float
    """Coefficient of variation (standard deviation over mean) of the foreground's activations."""
    low_share: float
    """Share of foreground pixels below .5, half of the highest activation of a map that is scaled to 1."""
    class_mean: Floats
    """(C,) mean activation over the pixels of each class; NaN for a class that was not seen."""
    class_imbalance: Floats
    """(C,) `imbalance` of each class."""

    def to_json(self) -> dict[str, Any]:
        """The same as a plain dictionary; floats rounded to six decimals, NaN as None."""
        return to_json(self)


class ActivationHistogram:
    """Histogram of activations over foreground pixels, by true class, and over background pixels.

    A foreground pixel counts with the activation of its own class; if the image has no map of that class the pixel
    is left out. A background pixel counts with its largest activation. A image without any map is left out.
    Activations are rounded to .001, and all figures are of these rounded values.
    """

    _LEVELS = 1000
    _BINS = 50

    def __init__(self, n_classes: int) -> None:
        """`n_classes` is C, the number of foreground classes, 1..254."""
        self.n_classes = check_n_classes(n_classes)
        self._counts = np.zeros((n_classes + 1, self._LEVELS + 1), np.int64)

    def add(self, activations: ArrayLike, keys: ArrayLike, ground_truth: ArrayLike) -> None:
        """Count one image; arguments and errors as for `ThresholdCurve.add`."""
        maps, ids, true = check_activations(activations, keys, ground_truth, self.n_classes)
        if not len(maps):
            return
        self._count(0, argmax(maps)[0][true == 0])
        for key, activation in zip(ids, maps, strict=True):
            self._count(int(key), activation[true == key])

    def _count(self, label: int, values: NDArray[Any]) -> None:
        levels = np.rint(np.clip(values, 0, 1) * self._LEVELS).astype(np.int64)
        self._counts[label] += np.bincount(levels, minlength=self._LEVELS + 1)

    def result(self) -> HistogramResult:
        """The histogram and its figures; those without a pixel are NaN."""
        foreground = self._counts[1:].sum(0)
        mean, imbalance = self._moments(foreground)
        background_mean, _ = self._moments(self._counts[0])
        classes = [self._moments(counts) for counts in self._counts[1:]]
        binned = self._binned(self._counts)
        return HistogramResult(
            edges=np.arange(self._BINS + 1) / self._BINS,
            foreground=binned[1:].sum(0),
            background=binned[0],
            by_class=binned[1:],
            foreground_mean=mean,
            background_mean=background_mean,
            gap=mean - background_mean,
            imbalance=imbalance,
            low_share=share(int(foreground[: self._LEVELS // 2].sum()), int(foreground.sum())),
            class_mean=np.array([mean for mean, _ in classes]),
            class_imbalance=np.array([imbalance for _, imbalance in classes]),
        )

    def _moments(self, counts: Counts) -> tuple[float, float]:
        """Mean and coefficient of variation of the values that `counts` (over the levels) holds."""
        total = int(counts.sum())
        if not total:
            return math.nan, math.nan
        values = np.arange(self._LEVELS + 1) / self._LEVELS
        mean = float(counts @ values) / total
        variance = float(counts @ (values - mean) ** 2) / total
        return mean, math.sqrt(variance) / mean if mean else math.nan

    def _binned(self, counts: Counts) -> Counts:
        """Level counts (..., 1001) summed into bins (..., 50); the value 1 goes to the last bin."""
        width = self._LEVELS // self._BINS
        bins = counts[..., :-1].reshape(*counts.shape[:-1], self._BINS, width).sum(-1)
        bins[..., -1] += counts[..., -1]
        return bins

    def to_json(self) -> dict[str, Any]:
        """`result()` as a plain dictionary; floats rounded to six decimals, NaN as None."""
        return self.result().to_json()
