"""How doubtful each mask of a run is, without ground truth: the signs of an image, and the order they give."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amn_fast.ops.mask import mask_from_scores

SIGNS = ("stability", "agreement", "certainty", "certainty_before")
"""Signs of a good mask, each in [0, 1]; see `signs`."""
LOOSER, STRICTER = 0.6, 1.6
"""Factors of the mask threshold between which a mask should be stable."""
FEWEST_FOR_FIT = 5


def signs(
    scores: NDArray[np.float32],
    activations: NDArray[np.float32],
    keys: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    threshold: float,
) -> tuple[float, float, float, float]:
    """What speaks for a mask.

    Args:
        scores: (K, H, W) propagated scores that the mask was cut from.
        activations: (K, H, W) activations before the walk.
        keys: (K,) labels of the channels.
        mask: (H, W) the mask.
        threshold: score above which a pixel is foreground.

    Returns:
        `SIGNS` in order: stability, the smaller of the agreements with the masks at .6 and 1.6 times the threshold;
        agreement with the mask of the activations before the walk; the certainty of the scores, and that of the
        activations. Agreement is the mean IoU over the labels that either mask has.
    """
    labels = np.concatenate([[0], keys])
    looser, stricter = (mask_from_scores(scores, labels, min(1, factor * threshold)) for factor in (LOOSER, STRICTER))
    return (
        min(agreement(looser, mask), agreement(stricter, mask)),
        agreement(mask_from_scores(activations, labels, threshold), mask),
        certainty(scores),
        certainty(activations),
    )


def certainty(scores: NDArray[np.float32]) -> float:
    """Mean over the pixels of the larger of p and 1 - p, where p is the highest score: 1 where all are 0 or 1.

    Examples:
        >>> certainty(np.array([[[0.5, 1.0]]], np.float32))
        0.75
    """
    highest = scores.max(0)
    return float(np.maximum(highest, 1 - highest).mean(dtype=np.float64))


def agreement(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean IoU of two label maps over the labels that either has.

    Examples:
        >>> agreement(np.array([[0, 1]], np.uint8), np.array([[1, 1]], np.uint8))
        0.25
    """
    pairs = np.bincount((one.astype(np.uint16) << 8 | other).ravel(), minlength=1 << 16).reshape(256, 256)
    both, union = np.diag(pairs), pairs.sum(0) + pairs.sum(1) - np.diag(pairs)
    return float((both[union > 0] / union[union > 0]).mean())


def doubts(found: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Doubt of each image from its `signs`: 0 (the image is the best by every sign) to 1 (the worst by every sign).

    It is the mean over the signs of the image's rank. Ranks, not values: signs have different scales on each data set.

    Args:
        found: (N, 4) signs of N images.

    Examples:
        >>> doubts([(0.9, 0.8), (0.5, 0.8), (0.1, 0.2)]).tolist()
        [0.125, 0.375, 1.0]
    """
    values = np.asarray(found, float)
    if len(values) < 2:
        return np.zeros(len(values))
    worse = np.stack([ranks(-column) for column in values.T], 1).mean(1)
    return worse / (len(values) - 1)


def ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks 0..N - 1 in ascending order; equal values share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum()
    return (last - (count + 1) / 2)[place.ravel()]


def rank_correlation(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Spearman's rank correlation; NaN where one of the two is constant.

    Examples:
        >>> round(rank_correlation(np.array([1, 2, 3, 4]), np.array([1, 3, 2, 9])), 3)
        0.8
    """
    a, b = (ranks(x) - (len(x) - 1) / 2 for x in (one, other))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else float("nan")


def fit_iou(doubt: NDArray[np.floating], iou: NDArray[np.floating]) -> NDArray[np.float64]:
    """Expected IoU at the doubt of each of some images with a known IoU: it never rises with doubt.

    Isotonic regression (pool adjacent violators). For other images interpolate linearly between these.

    Args:
        doubt: (M,) doubts, ascending.
        iou: (M,) IoU of the same images.

    Examples:
        >>> fit_iou(np.array([0.1, 0.2, 0.3]), np.array([0.9, 0.5, 0.7])).tolist()
        [0.9, 0.6, 0.6]
    """
    blocks: list[list[float]] = []  # mean and size
    for value in np.asarray(iou, float):
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size), blocks[-1][1] + size]
    return np.concatenate([np.full(int(size), mean) for mean, size in blocks])
