"""Image-level labels from a run's classifier: thresholds that reach a precision on the training images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amn_fast._pool import thread_pool
from amn_fast.errors import InputError
from amn_fast.label.labeler import Labeler
from amn_fast.ops._arrays import number
from amn_fast.pipeline.engine import cores, naming_image
from amn_fast.pipeline.folder import Workspace

NEVER = 1.0
"""No probability exceeds it."""


@dataclass(frozen=True)
class Threshold:
    """The threshold of a class, and its precision and recall on the training images; 0 where nothing exceeds it."""

    threshold: float
    precision: float
    recall: float


def choose_thresholds(labeler: Labeler, precision: float = 0.9) -> dict[str, Threshold]:
    """For each class the lowest probability above which its labels reach a precision on the run's training images.

    The classifier has seen these images, so that on new ones the precision is lower. A class that reaches the precision
    at no threshold is never predicted.

    Args:
        labeler: of the run; its data set has to be where the configuration says.
        precision: in (0, 1].
    """
    number("precision", precision, "(0, 1]")
    dataset = Workspace(labeler.config).dataset
    if dataset.classes != labeler.classes:
        raise InputError(f"data set {dataset.name} has the classes {', '.join(dataset.classes)}, not those of the run")

    def one(id: str) -> NDArray[np.float32]:
        with naming_image(id):
            return labeler.probabilities(dataset.image(id))

    with thread_pool(cores()) as pool:
        probabilities = np.stack(list(pool.map(one, dataset.ids)))
    labels = np.stack([dataset.labels(id) for id in dataset.ids])
    columns = zip(labeler.classes, probabilities.T, labels.T, strict=True)
    return {name: best_threshold(scores, shown, precision) for name, scores, shown in columns}


def best_threshold(scores: NDArray[np.float32], shown: NDArray[np.bool_], precision: float) -> Threshold:
    """The lowest threshold at which the share of `shown` among larger scores is at least `precision`.

    Args:
        scores: (N,) in [0, 1].
        shown: (N,) bool.

    Examples:
        >>> best_threshold(np.array([0.9, 0.8, 0.6, 0.4]), np.array([True, True, False, True]), 0.9).threshold
        0.7
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order].astype(np.float64)
    right = np.cumsum(shown[order])
    found = right / np.arange(1, len(order) + 1)
    below = np.append(ordered[1:], 0.0)
    good = np.flatnonzero((found >= precision) & (ordered > below))  # between equal scores there is no threshold
    if not good.size:
        return Threshold(NEVER, 0.0, 0.0)
    last = good[-1]
    threshold = round((ordered[last] + below[last]) / 2, 6)
    return Threshold(threshold, float(found[last]), float(right[last] / max(1, right[-1])))
