"""Unary energies of the dense CRF: -log probabilities from a label map or from a network's softmax."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amn_fast.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]


def unary_from_labels(
    labels: ArrayLike, n_labels: int, gt_prob: float = 0.7, zero_unsure: bool = True, ignore_label: int | None = None
) -> Array:
    """Energies of a label map that is right with probability `gt_prob`; the other labels share the rest evenly.

    Same numbers as pydensecrf's function, in the map's shape.

    Args:
        labels: whole numbers, any shape (usually (H, W)).
        n_labels: L >= 2, without the unsure 0 when `zero_unsure` is set.
        gt_prob: in (0, 1).
        zero_unsure: label 0 means "unknown": the energies there are uniform, and label k goes to row k - 1.
            With False, label k goes to row k.
        ignore_label: a further value (255, say) that means "unknown".

    Returns:
        (L, *labels.shape) float32.

    Raises:
        InputError: a label is out of range or not a whole number, or L or `gt_prob` is.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub":
        raise InputError(f"labels are {labels.dtype}, expected whole numbers")
    if n_labels < 2:
        raise InputError(f"n_labels is {n_labels}, expected at least 2: the other labels share 1 - gt_prob")
    if not 0 < gt_prob < 1:
        raise InputError(f"gt_prob is {gt_prob}, expected a probability between 0 and 1, both excluded")
    rows = labels.astype(np.int64).ravel()
    first = int(zero_unsure)
    unsure = rows == 0 if zero_unsure else None
    if ignore_label is not None:
        ignored = rows == ignore_label
        unsure = ignored if unsure is None else unsure | ignored
    if unsure is not None:
        rows = np.where(unsure, n_labels, rows - first)  # a column of its own in the table below
    known = rows if unsure is None else rows[~unsure]
    if known.size and not 0 <= known.min() <= known.max() < n_labels:
        raise InputError(
            f"labels run from {known.min() + first} to {known.max() + first}, expected {first}..{n_labels - 1 + first}"
        )
    table = np.full((n_labels, n_labels + 1), -np.log((1.0 - gt_prob) / (n_labels - 1)), np.float32)
    np.fill_diagonal(table, -np.log(gt_prob))
    table[:, n_labels] = -np.log(1.0 / n_labels)
    return np.take(table, rows, axis=1).reshape(n_labels, *labels.shape)


def unary_from_softmax(softmax: ArrayLike, scale: float | None = None, clip: float | None = 1e-5) -> Array:
    """-log of probabilities, as pydensecrf's function computes it, in the input's shape.

    Args:
        softmax: (L, ...) probabilities. Values above 1 are clipped to 1, not renormalised, as upstream does.
        scale: in (0, 1]; mixes the probabilities with uniform ones: scale * p + (1 - scale) / L.
        clip: lower bound of the probabilities; None leaves them (0 becomes an energy of +inf).

    Returns:
        (L, ...) float32.

    Raises:
        InputError: a probability is NaN, or `scale` is out of range.
    """
    softmax = np.asarray(softmax)
    if softmax.ndim < 1 or softmax.shape[0] < 1:
        raise InputError(f"softmax has shape {softmax.shape}, expected (L, ...) with at least one label")
    if softmax.dtype.kind not in "fiub":
        raise InputError(f"softmax is {softmax.dtype}, expected real numbers")
    if scale is not None:
        if not 0 < scale <= 1:
            raise InputError(f"scale is {scale}, expected a number in (0, 1]")
        softmax = scale * softmax + (1 - scale) * (np.ones(softmax.shape) / softmax.shape[0])
    if clip is not None:
        softmax = np.clip(softmax, clip, 1.0)
    if np.isnan(softmax).any():
        raise InputError("softmax holds NaN, expected probabilities")
    with np.errstate(divide="ignore"):
        return -np.log(softmax).astype(np.float32)
