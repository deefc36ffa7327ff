"""Whether a classifier learns: the loss of guessing, and when a training has to start again at lower learning rates."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESTARTS = 3
FACTOR = 3
"""Learning rates are divided by it at each restart."""
CLIP = 1.0
"""Largest norm of a gradient after a restart."""
FEWEST_STEPS = 8
"""Before, a loss says little."""
GUESSING = 0.97
"""A loss above this share of that of guessing is one of guessing."""
FALLING = 0.98
"""A loss below this share of the previous epoch's is still falling."""


def guessing_loss(labels: NDArray[np.bool_]) -> float:
    """Multi-label soft-margin loss of a classifier that gives every image the frequencies of the classes.

    Args:
        labels: (N, C) image-level labels.

    Examples:
        >>> round(guessing_loss(np.array([[True], [False]])), 4), guessing_loss(np.array([[True], [True]]))
        (0.6931, 0.0)
    """
    share = labels.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    return float(np.nan_to_num(entropy).mean())


def learns_nothing(losses: Sequence[float], guess: float, epochs: int, steps: int) -> bool:
    """Whether a training of `epochs` epochs has diverged or stays at guessing; `losses` are those of the epochs so far.

    It has diverged when a loss is not finite or ten times that of guessing. From a third of the epochs on, the second
    epoch and `FEWEST_STEPS`, it may not stay above guessing, unless it still falls from where every network starts,
    ln 2 per class.

    Args:
        steps: steps of an epoch.

    Examples:
        >>> learns_nothing([1.13, 0.695], 0.688, 6, 6), learns_nothing([1.13, 0.695, 0.693], 0.688, 6, 6)
        (True, True)
        >>> learns_nothing([0.6, 0.5], 0.4, 6, 6), learns_nothing([0.7, 0.3], 0.688, 6, 6)
        (False, False)
    """
    last = losses[-1]
    if not math.isfinite(last):
        return True
    if guess <= 0:  # all images have the same label: nothing to learn
        return False
    if last > 10 * guess:
        return True
    early = len(losses) < max(2, math.ceil(epochs / 3)) or len(losses) * steps < FEWEST_STEPS
    if early or last < GUESSING * guess:
        return False
    return last > max(guess, math.log(2)) or last > FALLING * losses[-2]
