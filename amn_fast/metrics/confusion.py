"""Scores of masks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amn_fast.errors import InputError
from amn_fast.metrics._checks import (
    UNKNOWN,
    AbsentRule,
    Counts,
    Floats,
    UnknownRule,
    as_labels,
    check_choice,
    check_n_classes,
    check_size,
    mean_of,
    share,
    to_json,
)


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
        return to_json(self)


class Confusion:
    """A confusion matrix over C + 1 classes that grows image by image.

    Predictions of 255 are kept in a column of their own, so that one pass answers under both rules of `scores`.
    """

    counts: Counts
    """Pixels by [ground truth, prediction], (C + 1, C + 2) int64; the last column is "predicted 255"."""

    def __init__(self, n_classes: int) -> None:
        """`n_classes` is C, the number of foreground classes, 1..254."""
        self.n_classes = check_n_classes(n_classes)
        self.counts = np.zeros((n_classes + 1, n_classes + 2), np.int64)

    def add(self, prediction: ArrayLike, ground_truth: ArrayLike) -> None:
        """Count one image.

        Args:
            prediction: (H, W) integers: 0..C, 255 (or -1) where the method gives no answer.
            ground_truth: (H, W) integers: 0..C, 255 (or -1) where unknown; such pixels do not count.

        Raises:
            InputError: the sizes differ, an array is not a 2-D array of integers, or an id is neither 0..C nor 255.
        """
        predicted = as_labels(prediction, self.n_classes, "the prediction")
        true = as_labels(ground_truth, self.n_classes, "the ground truth")
        check_size("the prediction", predicted.shape, true.shape)
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
        check_choice("unknown", unknown, ("wrong", "ignore"))
        answered = self.counts[:, :-1]
        without = int(self.counts[:, -1].sum())
        counted = self.counts if unknown == "wrong" else answered
        return scores_of(np.diag(answered), answered.sum(0), counted.sum(1), without, unknown, absent)


def scores_of(
    right: Counts, predicted: Counts, ground_truth: Counts, without: int, unknown: UnknownRule, absent: AbsentRule
) -> Scores:
    """Scores from the counts of right, predicted and true pixels per class; `without` pixels were predicted 255."""
    check_choice("absent", absent, ("zero", "skip"))
    counts = ground_truth > 0 if absent == "skip" else ground_truth + predicted > 0
    iou = _ratio(right, ground_truth + predicted - right)
    iou[~counts] = np.nan
    precision, recall = _ratio(right, predicted), _ratio(right, ground_truth)
    pixels, answered = int(ground_truth.sum()), int(predicted.sum())
    return Scores(
        iou=iou,
        precision=precision,
        recall=recall,
        miou=mean_of(iou),
        mean_precision=mean_of(precision[counts]),
        mean_recall=mean_of(recall[counts]),
        accuracy=share(int(right.sum()), pixels),
        coverage=share(answered, answered + without),
        pixels=pixels,
        unknown=unknown,
        absent=absent,
    )


def _ratio(part: Counts, whole: Counts) -> Floats:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
