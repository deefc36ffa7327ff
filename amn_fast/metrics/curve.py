"""Scores of activations at every threshold."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amn_fast.errors import InputError
from amn_fast.metrics._checks import (
    UNKNOWN,
    AbsentRule,
    Counts,
    Floats,
    argmax,
    check_activations,
    check_n_classes,
    mean_of,
    to_json,
)
from amn_fast.metrics.confusion import Scores, scores_of


@dataclass(frozen=True)
class CurveResult:
    """What a threshold curve says. T thresholds, C + 1 classes."""

    thresholds: Floats
    """(T,) background thresholds."""
    miou: Floats
    """(T,) mIoU at each threshold."""
    iou: Floats
    """(T, C + 1) IoU of each class at each threshold."""
    best_threshold: float
    """The threshold with the highest mIoU, the lowest one of equals."""
    best_miou: float
    width: float
    """Number of thresholds whose mIoU is within one point (.01) of the best, times the step between thresholds."""
    mean: float
    """Mean mIoU over the thresholds .05 to .95."""
    absent: AbsentRule

    def to_json(self) -> dict[str, Any]:
        """The same as a plain dictionary; floats rounded to six decimals, NaN as None."""
        return to_json(self)


class ThresholdCurve:
    """Quality of activations as a function of the background threshold, at every threshold in one pass.

    At threshold t a pixel takes the label of its largest activation where that is greater than t, and background
    otherwise: argmax([t, activations]), where the first of equals wins. As there, t is compared in the precision
    of the activations. The curve is exact: a pixel's answer is settled by the number of thresholds under its largest
    activation, so a histogram over that number, summed up, holds the confusion at each threshold.
    """

    def __init__(self, n_classes: int, thresholds: ArrayLike | None = None) -> None:
        """`thresholds`: rising, evenly spaced, .001 apart or more; 0, .01, ... 1 when None."""
        self.n_classes = check_n_classes(n_classes)
        self.thresholds = _check_thresholds(np.arange(101) / 100 if thresholds is None else thresholds)
        self._step = float(self.thresholds[-1] - self.thresholds[0]) / (len(self.thresholds) - 1)
        n_bins = len(self.thresholds) + 1
        # A pixel of bin b has exactly b thresholds under its largest activation: foreground at thresholds 0..b-1.
        self._claimed = np.zeros((n_classes + 1, n_bins), np.int64)  # pixels by label of the largest activation
        self._correct = np.zeros((n_classes + 1, n_bins), np.int64)  # those of them whose ground truth is that label
        self._background = np.zeros(n_bins, np.int64)  # pixels whose ground truth is background
        self._truth = np.zeros(n_classes + 1, np.int64)  # pixels by ground truth

    def add(self, activations: ArrayLike, keys: ArrayLike, ground_truth: ArrayLike) -> None:
        """Count one image.

        Args:
            activations: (K, H, W) floats in [0, 1], foreground only; K = 0 is a image that is all background.
            keys: (K,) label ids of the maps, each 1..C and none twice.
            ground_truth: (H, W) integers: 0..C, 255 (or -1) where unknown; such pixels do not count.

        Raises:
            InputError: sizes differ, keys are not ids of classes, or activations are not numbers in [0, 1].
        """
        maps, ids, true = check_activations(activations, keys, ground_truth, self.n_classes)
        self._truth += np.bincount(true.ravel(), minlength=256)[: self.n_classes + 1]
        n_bins = len(self._background)
        if not len(maps):
            self._background[0] += np.count_nonzero(true == 0)
            # Nothing is claimed above any threshold, yet every pixel is claimed as background at each of them.
            self._claimed[0, 0] += np.count_nonzero(true != UNKNOWN)
            return
        largest, channel = argmax(maps)
        outcome = np.full(
            true.shape, 3, np.uint8
        )  # 0: ground truth unknown, 1: ground truth is background, 2: right class, 3: wrong
        outcome[true == 0] = 1
        outcome[true == ids[channel]] = 2
        outcome[true == UNKNOWN] = 0
        cells = (outcome * np.int32(len(maps)) + channel) * np.int32(n_bins) + self._bins(largest)
        pixels = np.bincount(cells.ravel(), minlength=4 * len(maps) * n_bins).reshape(4, len(maps), n_bins)
        self._claimed[ids] += pixels[1:].sum(0)
        self._correct[ids] += pixels[2]
        self._background += pixels[1].sum(0)

    def _bins(self, largest: NDArray[Any]) -> NDArray[np.int32]:
        """How many thresholds are under each value: `np.searchsorted(thresholds, largest)`, several times as fast.

        Even spacing gives the number to within one; comparing with the neighbouring thresholds makes it exact.
        """
        thresholds = self.thresholds.astype(largest.dtype)
        if largest.dtype == np.float16:  # float32 holds these exactly, and float16 arithmetic is slow and coarse
            largest, thresholds = largest.astype(np.float32), thresholds.astype(np.float32)
        count = np.ceil((largest - thresholds[0]) * largest.dtype.type(1 / self._step)).astype(np.int32)
        np.clip(count, 0, len(thresholds), out=count)
        below = np.concatenate([np.array([-np.inf], largest.dtype), thresholds])
        above = np.concatenate([thresholds, np.array([np.inf], largest.dtype)])
        count -= below[count] >= largest
        count += above[count] < largest
        return count

    def _at(self, index: int) -> tuple[Counts, Counts]:
        """Right pixels and predicted pixels of each class at threshold number `index`."""
        right = self._correct[:, index + 1 :].sum(1)
        predicted = self._claimed[:, index + 1 :].sum(1)
        right[0] = self._background[: index + 1].sum()
        predicted[0] = self._claimed[:, : index + 1].sum()
        return right, predicted

    def scores(self, threshold: float, absent: AbsentRule = "zero") -> Scores:
        """Scores at one of the thresholds; `absent` as in `Confusion.scores`.

        Raises:
            InputError: `threshold` is not one of the curve's.
        """
        index = int(np.abs(self.thresholds - threshold).argmin())
        if not abs(self.thresholds[index] - threshold) <= 1e-6 * self._step:
            nearest = f"{self.thresholds[index]:g}"
            raise InputError(
                f"threshold is {threshold:g}, not on the curve, expected one of its own: the nearest is {nearest}"
            )
        return scores_of(*self._at(index), self._truth, 0, "wrong", absent)

    def result(self, absent: AbsentRule = "zero") -> CurveResult:
        """The curve and its figures; `absent` as in `Confusion.scores`. Without a pixel all figures are NaN."""
        scores = [scores_of(*self._at(index), self._truth, 0, "wrong", absent) for index in range(len(self.thresholds))]
        miou = np.array([score.miou for score in scores])
        iou = np.array([score.iou for score in scores])
        if not self._truth.any():
            return CurveResult(self.thresholds, miou, iou, math.nan, math.nan, math.nan, math.nan, absent)
        best = int(np.nanargmax(miou))
        middle = (self.thresholds > 0.05 - 1e-9) & (self.thresholds < 0.95 + 1e-9)
        return CurveResult(
            thresholds=self.thresholds,
            miou=miou,
            iou=iou,
            best_threshold=float(self.thresholds[best]),
            best_miou=float(miou[best]),
            width=float(np.count_nonzero(miou >= miou[best] - 0.01 - 1e-12) * self._step),
            mean=mean_of(miou[middle]),
            absent=absent,
        )

    def to_json(self) -> dict[str, Any]:
        """`result()` as a plain dictionary; floats rounded to six decimals, NaN as None."""
        return self.result().to_json()


def _check_thresholds(thresholds: ArrayLike) -> Floats:
    values = np.array(thresholds, np.float64)
    steps = np.diff(values) if values.ndim == 1 else values
    if values.ndim != 1 or len(values) < 2 or not (steps > 0.001 - 1e-9).all() or np.ptp(steps) > 1e-9:
        raise InputError(
            f"thresholds are {values.tolist()}, expected two or more rising, evenly spaced numbers, .001 or more apart"
        )
    return values
