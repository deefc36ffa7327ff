"""Pseudo-mask of one image: random walk of the activations over the edge map, threshold."""

import numpy as np
import torch
from numpy.typing import NDArray

from amn_fast.config import Mask
from amn_fast.data.store import Activations, StridedActivations
from amn_fast.ops.mask import mask_from_scores, mask_scores
from amn_fast.ops.refine_seed import crf_labels

CPU = torch.device("cpu")


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
    """The mask by a dense CRF of argmax([threshold, activations]), (H, W) uint8, computed on one thread."""
    mask: NDArray[np.uint8] = crf_labels(image, found.full, found.keys, (settings.threshold,), threads=1)[0]
    return mask
