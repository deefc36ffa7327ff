"""From walked activations to a pseudo-mask: the arithmetic of the make-mask stage, for one picture.

scores = mask_scores(activation, edge, size)          power, walk, up-sampling, division by the maximum
mask = mask_from_scores(scores, keys, threshold=.25)  the best class, or background
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amn_fast.errors import InputError
from amn_fast.ops.random_walk import TOLERANCE, Affinities, random_walk

Scores = NDArray[np.float32]
FACTOR = 4  # activations and edges come at a quarter of the picture's size


class SweepPoint(NamedTuple):
    """One setting of a sweep and its scores, (K, H, W); thresholds are left to `mask_from_scores`."""

    beta: float
    exp_times: int
    power: float
    scores: Scores


def make_mask(
    activation: NDArray[Any],
    edge: NDArray[Any],
    keys: ArrayLike,
    size: tuple[int, int],
    *,
    threshold: float = 0.25,
    power: float = 1.3,
    per_class: bool = False,
    **walk: Any,
) -> NDArray[np.uint8]:
    """The pseudo-mask of one picture: `mask_scores`, then `mask_from_scores`.

    Args:
        activation: (K, h, w) activations of the picture's classes (without background), 0 or more, at stride 4.
        edge: (h, w) or (1, h, w) edge map in [0, 1], at stride 4.
        keys: (K + 1,) labels to write, background first: [0, ...].
        size: (H, W) of the picture.
        threshold, power, per_class: see `mask_from_scores` and `mask_scores`.
        walk: radius, beta, exp_times, method, tolerance, backend, threads of `random_walk`.

    Returns:
        (H, W) uint8 mask.

    Raises:
        InputError: a shape, value or argument is not as above.
    """
    return mask_from_scores(
        mask_scores(activation, edge, size, power=power, per_class=per_class, **walk), keys, threshold
    )


def mask_scores(
    activation: NDArray[Any],
    edge: NDArray[Any],
    size: tuple[int, int],
    *,
    power: float = 1.3,
    per_class: bool = False,
    **walk: Any,
) -> Scores:
    """Score maps before thresholding: activation^power, walk, bilinear x4, crop, divide by the maximum.

    Args:
        activation, edge, size, walk: as for `make_mask`.
        power: exponent of the activations, above 0.
        per_class: divide each class by its own maximum instead of by the maximum of all, so that a weak class beside a
            strong one does not fall below every threshold.

    Returns:
        (K, H, W) float32 in [0, 1]; a map without any activation stays 0.
    """
    raised = _raised(np.asarray(activation), power)
    return _normalised(random_walk(raised, edge, **walk), size, per_class)


def mask_from_scores(scores: Scores, keys: ArrayLike, threshold: float = 0.25) -> NDArray[np.uint8]:
    """The best class where its score exceeds `threshold`, else background.

    Args:
        scores: (K, H, W); K may be 0.
        keys: (K + 1,) labels to write, background first.

    Returns:
        (H, W) uint8. Of equal scores the first class wins; background wins against a score equal to the threshold.
    """
    labels = np.asarray(keys)
    if scores.ndim != 3:
        raise InputError(f"scores have shape {scores.shape}, expected (K, H, W)")
    if labels.shape != (len(scores) + 1,):
        raise InputError(
            f"keys have shape {labels.shape}, expected ({len(scores) + 1},): background, then {len(scores)}"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 255:
        raise InputError(f"keys are {labels.tolist()}, expected whole numbers in 0..255")
    if not np.isfinite(threshold):
        raise InputError(f"threshold is {threshold!r}, expected a finite number")
    labels = labels.astype(np.uint8)
    mask = np.full(scores.shape[1:], labels[0])
    best = np.full(scores.shape[1:], threshold, np.float32)
    for score, label in zip(scores, labels[1:], strict=True):
        better = score > best
        mask[better] = label
        best[better] = score[better]
    return mask


def sweep_scores(
    activation: NDArray[Any],
    edge: NDArray[Any],
    size: tuple[int, int],
    *,
    betas: Sequence[float] = (10,),
    exp_times: Sequence[int] = (8,),
    powers: Sequence[float] = (1.3,),
    radius: int = 5,
    per_class: bool = False,
    method: str = "chebyshev",
    tolerance: float = TOLERANCE,
    backend: str = "auto",
    threads: int | None = None,
) -> Iterator[SweepPoint]:
    """The scores of `mask_scores` over a grid, one picture.

    The affinities are built once for each beta, and one walk serves all powers and numbers of steps: the Chebyshev
    polynomials of the longest walk contain those of the shorter ones.
    """
    activation = np.asarray(activation)
    raised = np.concatenate([_raised(activation, power) for power in powers])
    for beta in betas:
        affinities = Affinities(edge, radius=radius, beta=beta, backend=backend)
        walks = affinities.walk(raised, list(exp_times), method=method, tolerance=tolerance, threads=threads)
        for times, walk in zip(exp_times, walks, strict=True):
            for power, maps in zip(powers, np.split(walk, len(powers)), strict=True):
                yield SweepPoint(beta, times, power, _normalised(maps, size, per_class))


def upsample(maps: NDArray[np.float32], size: tuple[int, int], factor: int = FACTOR) -> NDArray[np.float32]:
    """Bilinear up-sampling by `factor` with pixel centres (align_corners=False), cropped to `size`.

    Args:
        maps: (K, h, w).
        size: (H, W), at most factor times (h, w).
    """
    for axis, length in ((1, size[0]), (2, size[1])):
        n = maps.shape[axis]
        if not 0 < length <= n * factor:
            raise InputError(f"size is {tuple(size)}, expected at most {factor} times the maps' {maps.shape[1:]}")
        source = np.maximum((np.arange(length, dtype=np.float32) + 0.5) / factor - 0.5, 0)
        low = source.astype(np.intp)
        high = np.minimum(low + 1, n - 1)
        share = (source - low).reshape([-1 if a == axis else 1 for a in range(3)])
        maps = (1 - share) * np.take(maps, low, axis) + share * np.take(maps, high, axis)
    return maps


def _raised(activation: NDArray[Any], power: float) -> NDArray[np.float32]:
    if not 0 < power < np.inf:
        raise InputError(f"power is {power!r}, expected a finite number above 0")
    if activation.ndim != 3:
        raise InputError(f"activation has shape {activation.shape}, expected (K, h, w)")
    if activation.size and not activation.min() >= 0:
        raise InputError(f"activation has the value {activation.min()}, expected finite numbers of at least 0")
    return np.power(activation, power, dtype=np.float32)


def _normalised(walked: NDArray[np.float32], size: tuple[int, int], per_class: bool) -> Scores:
    scores = upsample(walked, size)
    if scores.size == 0:
        return scores
    top = scores.max(axis=(1, 2) if per_class else (0, 1, 2), keepdims=True)
    return (scores / np.where(top > 0, top, 1)).astype(np.float32, copy=False)
