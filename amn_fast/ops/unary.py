"""Unary energies of the dense CRF: -log probabilities from a label map or from a network's softmax."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amn_fast.errors import InputError
from amn_fast.ops import _arrays

Array = np.ndarray[Any, np.dtype[Any]]


def unary_from_labels(
    labels: ArrayLike, n_labels: int, gt_prob: float = 0.7, zero_unsure: bool = True, ignore_label: int | None = None
) -> Array:
    """Energies of a label map that is right with probability `gt_prob`; the other labels share the rest evenly.

    The numbers of pydensecrf's function, in the map's shape.

    Args:
        labels: integers, any shape (usually (H, W)).
        n_labels: L >= 2, without the unsure 0 when `zero_unsure` is set.
        gt_prob: label confidence, in (0, 1).
        zero_unsure: label 0 means "unknown": the energies there are uniform, and label k goes to row k - 1.
            With False, label k goes to row k.
        ignore_label: a further value (255, say) that means "unknown".

    Returns:
        (L, *labels.shape) float32.

    Raises:
        InputError: an argument is not as above.

    Examples:
        >>> import numpy as np
        >>> unary_from_labels(np.array([[1, 0]]), 2, 0.75)[:, 0, 0].round(3)
        array([0.288, 1.386], dtype=float32)
    """
    labels = _arrays.as_array("labels", labels)
    if labels.dtype.kind not in "iub":
        raise InputError(f"labels are {labels.dtype}, expected integers")
    n_labels = _arrays.integer("n_labels", n_labels, 2)  # the other labels share 1 - gt_prob
    gt_prob = _arrays.number("gt_prob", gt_prob, "(0, 1)")
    first = int(_arrays.flag("zero_unsure", zero_unsure))
    rows = labels.astype(np.int64).ravel()
    unsure = (rows == 0) if zero_unsure else np.zeros(rows.shape, bool)
    if ignore_label is not None:
        unsure |= rows == _arrays.integer("ignore_label", ignore_label)
    rows = np.where(unsure, 0, rows - first)
    if rows.size and not 0 <= rows.min() <= rows.max() < n_labels:
        raise InputError(
            f"labels run from {rows.min() + first} to {rows.max() + first}, expected {first}..{n_labels - 1 + first}"
        )
    energies = np.full((n_labels, rows.size), -np.log((1.0 - gt_prob) / (n_labels - 1)), np.float32)
    if n_labels <= 4:  # a third of the time of indexing by label and pixel
        for label in range(n_labels):
            np.copyto(energies[label], np.float32(-np.log(gt_prob)), where=rows == label)
    else:
        energies[rows, np.arange(rows.size)] = -np.log(gt_prob)
    if unsure.any():
        energies[:, unsure] = -np.log(1.0 / n_labels)
    return energies.reshape(n_labels, *labels.shape)


def unary_from_softmax(softmax: ArrayLike, scale: float | None = None, clip: float | None = 1e-5) -> Array:
    """-log of probabilities, as pydensecrf's function computes it, in the input's shape.

    Args:
        softmax: (L, ...) probabilities. Values above 1 are clipped to 1, not renormalised, as pydensecrf does.
        scale: in (0, 1]; mixes the probabilities with uniform ones: scale * p + (1 - scale) / L.
        clip: lower bound of the probabilities, in [0, 1]; None leaves them (0 becomes an energy of +inf).

    Returns:
        (L, ...) float32.

    Raises:
        InputError: a probability is NaN, or an argument is not as above.

    Examples:
        >>> import numpy as np
        >>> unary_from_softmax(np.array([[0.25], [0.75]])).round(3)
        array([[1.386],
               [0.288]], dtype=float32)
    """
    probabilities: Array = _arrays.as_array("softmax", softmax)
    shape = probabilities.shape
    if not shape or not shape[0]:
        raise InputError(f"softmax has shape {shape}, expected (L, ...) with at least one label")
    if scale is not None:
        scale = _arrays.number("scale", scale, "(0, 1]")
        probabilities = scale * probabilities + (1 - scale) * (np.ones(shape) / shape[0])
    if clip is not None:
        probabilities = np.clip(probabilities, _arrays.number("clip", clip, "[0, 1]"), 1.0)
    if not (probabilities >= 0).all():
        raise InputError("softmax holds NaN or negative numbers, expected probabilities")
    with np.errstate(divide="ignore"):
        return -np.log(probabilities).astype(np.float32)
