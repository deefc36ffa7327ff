"""Seed of one image: a dense CRF turns activations into sure foreground, sure background, and 255 between."""

import numpy as np
from numpy.typing import NDArray

from amn_fast.config import Seed
from amn_fast.data.store import Activations
from amn_fast.ops.dense_crf import refine_seed


def refine(image: NDArray[np.uint8], found: Activations, settings: Seed) -> NDArray[np.uint8]:
    """The seed, (H, W) uint8, computed on one thread."""
    fg, bg = settings.pair
    return refine_seed(image, found.full, found.keys, fg=fg, bg=bg, bilateral=settings.bilateral, threads=1)


def constant_classes(found: Activations) -> list[int]:
    """The keys whose activation has one value at all pixels: such a map says nothing about where the class is."""
    return [int(key) for key, plane in zip(found.keys, found.full, strict=True) if plane.min() == plane.max()]
