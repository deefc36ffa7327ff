"""Seed of one image: a dense CRF turns activations into sure foreground, sure background, and 255 between."""

import numpy as np
import torch
from numpy.typing import NDArray

from amn_fast.config import Seed
from amn_fast.data.store import Activations
from amn_fast.ops.dense_crf import refine_seed

CPU = torch.device("cpu")


def refine(
    image: NDArray[np.uint8], found: Activations, settings: Seed, device: torch.device = CPU
) -> NDArray[np.uint8]:
    """The seed, (H, W) uint8, computed on one thread, or on the GPU where `device` is one."""
    fg, bg = settings.pair
    maps = found.full if device.type == "cpu" else torch.from_numpy(found.full).to(device)
    labels = refine_seed(image, maps, found.keys, fg=fg, bg=bg, bilateral=settings.bilateral, threads=1)
    return labels if isinstance(labels, np.ndarray) else labels.cpu().numpy()


def constant_classes(found: Activations) -> list[int]:
    """The keys whose activation has one value at all pixels: such a map says nothing about where the class is."""
    return [int(key) for key, plane in zip(found.keys, found.full, strict=True) if plane.min() == plane.max()]
