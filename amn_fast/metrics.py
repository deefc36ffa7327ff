"""How good masks and activations are: confusion, threshold curve, activation histogram.

All three stream: images go in one at a time with `add`, and only integer counts are kept. The result is therefore
bit-identical for any order of the images.

Labels are 0 (background) and 1..C (the classes); background is one of the C + 1 classes that mIoU averages over.
255 is "unknown", and so is -1 in signed arrays. A pixel whose ground truth is unknown never counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amn_fast.errors import InputError

UNKNOWN = 255
"""The label of a pixel whose class is unknown."""

UnknownRule = Literal["wrong", "ignore"]
AbsentRule = Literal["zero", "skip"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Quality of a set of predictions. Per-class arrays have C + 1 entries, background first; NaN is "undefined"."""

    iou: Floats
    """Intersection over union of each class; NaN for a class that does not count (see `absent`)."""
    precision: Floats
    """Share of the pixels predicted as the class that are of the class; NaN for a class never predicted."""
    recall: Floats
    """Share of the class's pixels that are predicted as the class; NaN for a class absent from the ground truth."""
    miou: float
    """Mean of `iou` over the classes that count; NaN when none does."""
    mean_precision: float
    """Mean of `precision` over the classes that count and have one."""
    mean_recall: float
    """Mean of `recall` over the classes that count and have one."""
    accuracy: float
    """Share of the counted pixels that are right."""
    coverage: float
    """Share of the pixels of known ground truth whose prediction is not 255, whatever `unknown` says."""
    pixels: int
    """Number of pixels that count."""
    unknown: UnknownRule
    absent: AbsentRule

    def to_json(self) -> dict[str, Any]:
        """The same as a plain dictionary; floats rounded to six decimals, NaN as None."""
        return _to_json(self)


class Confusion:
    """A confusion matrix over C + 1 classes that grows image by image.

    Predictions of 255 are kept in a column of their own, so that one pass answers under both rules of `scores`.
    """

    counts: Counts
    """Pixels by [ground truth, prediction], (C + 1, C + 2) int64; the last column is "predicted 255"."""

    def __init__(self, n_classes: int) -> None:
        """`n_classes` is C, the number of foreground classes, 1..254."""
        self.n_classes = _check_n_classes(n_classes)
        self.counts = np.zeros((n_classes + 1, n_classes + 2), np.int64)

    def add(self, prediction: ArrayLike, ground_truth: ArrayLike) -> None:
        """Count one image.

        Args:
            prediction: (H, W) integers: 0..C, 255 (or -1) where the method gives no answer.
            ground_truth: (H, W) integers: 0..C, 255 (or -1) where unknown; such pixels do not count.

        Raises:
            InputError: the sizes differ, an array is not a 2-D array of integers, or an id is neither 0..C nor 255.
        """
        predicted = _labels(prediction, self.n_classes, "the prediction")
        true = _labels(ground_truth, self.n_classes, "the ground truth")
        _check_size("the prediction", predicted.shape, true.shape)
        pairs = np.bincount((true.astype(np.uint16) << 8 | predicted).ravel(), minlength=256 * 256).reshape(256, 256)
        known = pairs[: self.n_classes + 1]
        self.counts[:, :-1] += known[:, : self.n_classes + 1]
        self.counts[:, -1] += known[:, UNKNOWN]

    def __add__(self, other: "Confusion") -> "Confusion":
        """The matrix of both sets of images together."""
        if self.n_classes != other.n_classes:
            raise InputError(
                f"confusion matrices have {self.n_classes} and {other.n_classes} classes, expected equal numbers"
            )
        total = Confusion(self.n_classes)
        total.counts = self.counts + other.counts
        return total

    def scores(self, unknown: UnknownRule = "wrong", absent: AbsentRule = "zero") -> Scores:
        """Scores over all the images so far.

        Args:
            unknown: what a prediction of 255 means.
                "wrong": a miss of the true class. The effect of IRN's evaluation: it lowers recall and IoU.
                "ignore": the pixel does not count. How good the answers are where there are any; read `coverage` too.
            absent: what becomes of a class that no counted pixel of the ground truth has.
                "zero": it scores 0 if it is predicted anywhere and is left out of the means if not, as in
                IRN's evaluation of VOC.
                "skip": it is left out of the means, predicted or not (as in DeepLab's).
        """
        _check_choice("unknown", unknown, ("wrong", "ignore"))
        answered = self.counts[:, :-1]
        without = int(self.counts[:, -1].sum())
        counted = self.counts if unknown == "wrong" else answered
        return _scores(np.diag(answered), answered.sum(0), counted.sum(1), without, unknown, absent)


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
        return _to_json(self)


class ThresholdCurve:
    """Quality of activations as a function of the background threshold, at every threshold in one pass.

    At threshold t a pixel takes the label of its largest activation where that is greater than t, and background
    otherwise: argmax([t, activations]), where the first of equals wins. As there, t is compared in the precision
    of the activations. The curve is exact: a pixel's answer is settled by the number of thresholds under its largest
    activation, so a histogram over that number, summed up, holds the confusion at each threshold.
    """

    def __init__(self, n_classes: int, thresholds: ArrayLike | None = None) -> None:
        """`thresholds`: rising, evenly spaced, .001 apart or more; 0, .01, ... 1 when None."""
        self.n_classes = _check_n_classes(n_classes)
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
        maps, ids, true = _check_activations(activations, keys, ground_truth, self.n_classes)
        self._truth += np.bincount(true.ravel(), minlength=256)[: self.n_classes + 1]
        n_bins = len(self._background)
        if not len(maps):
            self._background[0] += np.count_nonzero(true == 0)
            # Nothing is claimed above any threshold, yet every pixel is claimed as background at each of them.
            self._claimed[0, 0] += np.count_nonzero(true != UNKNOWN)
            return
        largest, channel = _argmax(maps)
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
        return _scores(*self._at(index), self._truth, 0, "wrong", absent)

    def result(self, absent: AbsentRule = "zero") -> CurveResult:
        """The curve and its figures; `absent` as in `Confusion.scores`. Without a pixel all figures are NaN."""
        scores = [_scores(*self._at(index), self._truth, 0, "wrong", absent) for index in range(len(self.thresholds))]
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
            mean=_mean(miou[middle]),
            absent=absent,
        )

    def to_json(self) -> dict[str, Any]:
        """`result()` as a plain dictionary; floats rounded to six decimals, NaN as None."""
        return self.result().to_json()


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
        return _to_json(self)


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
        self.n_classes = _check_n_classes(n_classes)
        self._counts = np.zeros((n_classes + 1, self._LEVELS + 1), np.int64)

    def add(self, activations: ArrayLike, keys: ArrayLike, ground_truth: ArrayLike) -> None:
        """Count one image; arguments and errors as for `ThresholdCurve.add`."""
        maps, ids, true = _check_activations(activations, keys, ground_truth, self.n_classes)
        if not len(maps):
            return
        self._count(0, _argmax(maps)[0][true == 0])
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
            low_share=_share(int(foreground[: self._LEVELS // 2].sum()), int(foreground.sum())),
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


def _scores(
    right: Counts, predicted: Counts, ground_truth: Counts, without: int, unknown: UnknownRule, absent: AbsentRule
) -> Scores:
    """Scores from the counts of right, predicted and true pixels per class; `without` pixels were predicted 255."""
    _check_choice("absent", absent, ("zero", "skip"))
    counts = ground_truth > 0 if absent == "skip" else ground_truth + predicted > 0
    iou = _ratio(right, ground_truth + predicted - right)
    iou[~counts] = np.nan
    precision, recall = _ratio(right, predicted), _ratio(right, ground_truth)
    pixels, answered = int(ground_truth.sum()), int(predicted.sum())
    return Scores(
        iou=iou,
        precision=precision,
        recall=recall,
        miou=_mean(iou),
        mean_precision=_mean(precision[counts]),
        mean_recall=_mean(recall[counts]),
        accuracy=_share(int(right.sum()), pixels),
        coverage=_share(answered, answered + without),
        pixels=pixels,
        unknown=unknown,
        absent=absent,
    )


def _ratio(part: Counts, whole: Counts) -> Floats:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(values: Floats) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def _argmax(maps: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Largest value of (K, H, W) maps, K > 0, and its channel, the first of equals; twice as fast as `np.argmax`."""
    largest = maps[0].copy()
    channel = np.zeros(largest.shape, np.uint8)
    for index, values in enumerate(maps[1:], start=1):
        np.copyto(channel, index, where=values > largest)
        np.maximum(largest, values, out=largest)
    return largest, channel


def _check_activations(
    activations: ArrayLike, keys: ArrayLike, ground_truth: ArrayLike, n_classes: int
) -> tuple[NDArray[Any], NDArray[np.intp], NDArray[np.uint8]]:
    """The three, checked; keys as indices, the ground truth as uint8."""
    maps = np.asarray(activations)
    if maps.ndim != 3 or maps.dtype.kind != "f":
        raise InputError(f"activations are {_describe(maps)}, expected floats of shape (K, H, W)")
    ids = np.asarray(keys)
    if ids.shape != (len(maps),):
        raise InputError(f"keys have shape {ids.shape}, expected one label id for each of the {len(maps)} maps")
    if len(maps) and (ids.dtype.kind not in "iu" or ids.min() < 1 or ids.max() > n_classes):
        raise InputError(f"keys are {ids.tolist()}, expected label ids from 1 to {n_classes}")
    if len(np.unique(ids)) < len(ids):
        raise InputError(f"keys are {ids.tolist()}, expected each class once")
    true = _labels(ground_truth, n_classes, "the ground truth")
    _check_size("the activations", maps.shape[1:], true.shape)
    if maps.size:
        low, high = float(maps.min()), float(maps.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also true for NaN, which min and max hand on
            raise InputError(f"activations range from {low:g} to {high:g}, expected numbers in [0, 1]")
    return maps, ids.astype(np.intp), true


def _labels(array: ArrayLike, n_classes: int, name: str) -> NDArray[np.uint8]:
    """(H, W) labels as uint8, -1 as 255; an InputError for anything else than 0..C and 255."""
    labels = np.asarray(array)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise InputError(f"{name} is {_describe(labels)}, expected integers of shape (H, W)")
    strange = (labels > n_classes) & (labels != UNKNOWN)
    if labels.dtype.kind == "i":
        strange |= labels < -1
    if strange.any():
        ids = np.unique(labels[strange])
        some = ", ".join(str(id) for id in ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise InputError(f"{name} has {'id' if len(ids) == 1 else 'ids'} {some}, expected 0 to {n_classes}, or 255")
    return labels.astype(np.uint8)  # -1 becomes 255


def _check_size(name: str, size: tuple[int, ...], ground_truth: tuple[int, ...]) -> None:
    if size != ground_truth:
        verb = "are" if name.endswith("s") else "is"
        raise InputError(
            f"{name} {verb} {size[0]} x {size[1]} pixels (height x width), but the ground truth is"
            f" {ground_truth[0]} x {ground_truth[1]},"
            " expected the same size"
        )


def _check_n_classes(n_classes: int) -> int:
    if not 1 <= n_classes <= UNKNOWN - 1:
        raise InputError(f"n_classes is {n_classes}, expected 1 to {UNKNOWN - 1}, because {UNKNOWN} is 'unknown'")
    return n_classes


def _check_thresholds(thresholds: ArrayLike) -> Floats:
    values = np.array(thresholds, np.float64)
    steps = np.diff(values) if values.ndim == 1 else values
    if values.ndim != 1 or len(values) < 2 or not (steps > 0.001 - 1e-9).all() or np.ptp(steps) > 1e-9:
        raise InputError(
            f"thresholds are {values.tolist()}, expected two or more rising, evenly spaced numbers, .001 or more apart"
        )
    return values


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}, expected {' or '.join(repr(choice) for choice in choices)}")


def _describe(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _to_json(result: Scores | CurveResult | HistogramResult) -> dict[str, Any]:
    return {field.name: _plain(getattr(result, field.name)) for field in fields(result)}


def _plain(value: Any) -> Any:
    """`value` out of what JSON knows: arrays as lists, floats rounded to six decimals, NaN as None."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value
