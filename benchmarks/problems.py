"""The problems that several benchmarks share."""

from pathlib import Path

import cv2
import numpy as np

PHOTO = Path(__file__).parents[1] / "tests" / "golden" / "crf" / "voc_full_3labels.npz"
VOC, COCO = (375, 500), (480, 640)


def photo(height: int, width: int, shift: int = 0) -> np.ndarray:
    """A photograph at any size; `shift` gives others of its kind."""
    resized = cv2.resize(np.load(PHOTO)["image"], (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(np.roll(resized, shift, axis=1))


def label_map(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blobs of all `count` labels, or nearly all where they are many."""
    coarse = np.random.default_rng(seed).random((12, 16, count), np.float32)
    planes = [cv2.resize(np.ascontiguousarray(coarse[..., i]), (width, height)) for i in range(count)]
    return np.argmax(planes, axis=0)


def smooth_maps(channels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth maps (channels, height, width) float32 in [0, 1]."""
    coarse = np.random.default_rng(seed).random((channels, 6, 8), np.float32)
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_CUBIC) for plane in coarse]).clip(0, 1)


def name_of(size: tuple[int, int]) -> str:
    """375x500"""
    return f"{size[0]}x{size[1]}"
