"""IRN's functions under their names and signatures in IRN's and PSA's code."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amn_fast.errors import InputError
from amn_fast.ops._arrays import number
from amn_fast.ops.dense_crf import DenseCRF
from amn_fast.ops.random_walk import random_walk
from amn_fast.ops.unary import unary_from_labels, unary_from_softmax

if TYPE_CHECKING:
    import torch

__all__ = ["crf_inference", "crf_inference_label", "propagate_to_edge"]


def propagate_to_edge(
    x: "torch.Tensor", edge: "torch.Tensor", radius: int = 5, beta: float = 10, exp_times: int = 8
) -> "torch.Tensor":
    """The affinity random walk, `propagate_to_edge` of IRN's `misc/indexing.py`.

    Unlike IRN's function it needs no GPU, takes any memory layout and dtype, and its memory grows with the number of
    pixels, not with its square.

    Args:
        x: (..., h, w) activations, usually (K, h, w).
        edge: (1, h, w) or (h, w) edge map in [0, 1].
        radius, beta, exp_times: as for `amn_fast.random_walk`.

    Returns:
        (K, 1, h, w) on the device of `x`, where K is the product of the leading dimensions of `x`.

    Raises:
        InputError: a shape or value is not as above.
    """
    h, w = x.shape[-2:]
    maps = x.reshape(-1, h, w)
    return random_walk(maps, edge, radius=radius, beta=beta, exp_times=exp_times).reshape(-1, 1, h, w)


def crf_inference_label(
    img: ArrayLike, labels: ArrayLike, t: int = 10, n_labels: int = 21, gt_prob: float = 0.7
) -> NDArray[np.int64]:
    """The dense CRF on a label map, `crf_inference_label` of IRN's `misc/imutils.py`.

    Args:
        img: (H, W, 3) uint8 image.
        labels: (H, W) integers in 0..n_labels - 1.
        t: number of mean-field iterations.
        n_labels: number of labels, at least 2.
        gt_prob: label confidence, in (0, 1).

    Returns:
        (H, W) int64, the most probable label of each pixel.

    Raises:
        InputError: a shape or value is not as above.

    Examples:
        >>> import numpy as np
        >>> img, labels = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), int)
        >>> bool((crf_inference_label(img, labels, n_labels=2) == labels).all())
        True
    """
    unary = unary_from_labels(labels, n_labels, gt_prob, zero_unsure=False)
    crf = DenseCRF(img, gaussian=(3, 3), bilateral=(50, 5, 10), threads=1)
    return np.asarray(crf.labels(unary, t)).astype(np.int64)


def crf_inference(
    img: ArrayLike, probs: ArrayLike, t: int = 10, scale_factor: float = 1, labels: int = 21
) -> NDArray[Any]:
    """The dense CRF on probabilities, `crf_inference` of PSA's `tool/imutils.py`.

    Args:
        img: (H, W, 3) uint8 image.
        probs: (labels, H, W) probabilities.
        t: number of mean-field iterations.
        scale_factor: divides both spatial sigmas (3 and 80 pixels), above 0.
        labels: number of labels, the length of `probs`.

    Returns:
        (labels, H, W) float32 marginals.

    Raises:
        InputError: a shape or value is not as above.

    Examples:
        >>> import numpy as np
        >>> crf_inference(np.zeros((8, 8, 3), np.uint8), np.full((2, 8, 8), 0.5), labels=2).shape
        (2, 8, 8)
    """
    scale = number("scale_factor", scale_factor, "(0, inf)")
    unary = unary_from_softmax(probs)
    if len(unary) != labels:
        raise InputError(f"probs have shape {unary.shape}, expected ({labels}, H, W) for labels={labels}")
    crf = DenseCRF(img, gaussian=(3 / scale, 3), bilateral=(80 / scale, 13, 10), threads=1)
    return np.asarray(crf.marginals(unary, t))
