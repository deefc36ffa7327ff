"""Pseudo-mask of one image: random walk of the activations over the edge map and a threshold, or a dense CRF."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from amn_fast.config import Mask
from amn_fast.data.store import Activations, StridedActivations
from amn_fast.ops.dense_crf import DenseCRF
from amn_fast.ops.mask import mask_from_scores, mask_scores
from amn_fast.ops.unary import unary_from_softmax

CPU = torch.device("cpu")
CLIP = 1e-5
"""Least score that the CRF sees; its thresholds keep this distance from 0 and 1."""


def scores(
    found: Activations | StridedActivations,
    edge: NDArray[np.float32],
    settings: Mask,
    device: torch.device = CPU,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Propagated scores, (K, H, W) float32 in [0, 1]; bit-identical for any number of threads.

    The walk runs on the GPU where `device` is one.
    """
    return mask_scores(
        found.strided,
        edge if device.type == "cpu" else torch.from_numpy(edge).to(device),
        found.size,
        power=settings.power,
        per_class=settings.maximum == "class",
        radius=settings.radius,
        beta=settings.beta,
        exp_times=settings.exp_times,
        threads=threads,
    )


def make_mask(
    found: Activations | StridedActivations,
    edge: NDArray[np.float32],
    settings: Mask,
    device: torch.device = CPU,
    threads: int | None = None,
) -> NDArray[np.uint8]:
    """The mask, (H, W) uint8: 0 and the labels of the image."""
    propagated = scores(found, edge, settings, device, threads)
    return mask_from_scores(propagated, np.concatenate([[0], found.keys]), settings.threshold)


def make_crf_mask(image: NDArray[np.uint8], found: Activations, settings: Mask) -> NDArray[np.uint8]:
    """The mask by a dense CRF, (H, W) uint8; see `crf_masks`."""
    return crf_masks(image, found.full, found.keys, (settings.threshold,))[0]


def crf_masks(
    image: NDArray[np.uint8], scores: NDArray[np.float32], keys: NDArray[np.uint8], thresholds: Sequence[float]
) -> NDArray[np.uint8]:
    """The masks by a dense CRF at several thresholds, (T, H, W) uint8: 0 and the labels of `keys`; on one thread.

    The CRF sees the scores themselves, not only which one is highest: a label's energy is -log of its score. Background
    has the score (1 - m) t / (1 - t), where m is the highest score of the pixel and t the threshold, so before the CRF
    a pixel is foreground where m is above t.

    Args:
        image: (H, W, 3) uint8.
        scores: (K, H, W) in [0, 1], K >= 0.
        keys: (K,) the labels.
        thresholds: in [0, 1].
    """
    if not len(keys):
        return np.zeros((len(thresholds), *image.shape[:2]), np.uint8)
    t = np.clip(thresholds, CLIP, 1 - CLIP)
    background = unary_from_softmax(1 - scores.max(0, keepdims=True), clip=CLIP)
    labels = unary_from_softmax(scores, clip=CLIP)
    shifts = -np.log(t / (1 - t)).astype(np.float32)
    found = DenseCRF(image, threads=1).labels([np.concatenate([background + shift, labels]) for shift in shifts])
    return np.concatenate([[0], keys]).astype(np.uint8)[np.stack(found)]
