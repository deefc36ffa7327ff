"""pydensecrf2 as IRN's, AMN's and DeepLab's code call it. No PyTorch: processes of a pool start quickly."""

import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

densecrf: Any = pytest.importorskip("pydensecrf.densecrf", reason="the peer pydensecrf2 needs the extra 'bench'")
utils: Any = pytest.importorskip("pydensecrf.utils")


def marginals(image: np.ndarray, maps: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Marginals (count, H, W) of each label map; pydensecrf has no way to share an image between label maps."""
    answers = []
    height, width = maps[0].shape
    for labels in maps:
        crf = densecrf.DenseCRF2D(width, height, count)
        crf.setUnaryEnergy(utils.unary_from_labels(labels, count, 0.7, zero_unsure=False))
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image, compat=10)
        answers.append(np.array(crf.inference(10)).reshape(count, height, width))
    return answers


def refined_seed(image: np.ndarray, activations: np.ndarray, keys: np.ndarray, fg: float, bg: float) -> np.ndarray:
    """The seed of IRN's code: a CRF at each of two thresholds; 255 where only the lower one finds a class."""
    runs = []
    for threshold in (fg, bg):
        chosen = np.where(activations.max(0) > threshold, activations.argmax(0) + 1, 0)
        runs.append(marginals(image, [chosen], len(activations) + 1)[0].argmax(0))
    sure, possible = (np.array([0, *keys], np.uint8)[run] for run in runs)
    return np.where(sure > 0, sure, np.where(possible > 0, 255, 0)).astype(np.uint8)


def labels_of_logits(job: tuple[Path, Path]) -> np.ndarray:
    """The labels after DeepLab's CRF of logits in a .npy file and an image file."""
    logits, image = np.load(job[0]), np.ascontiguousarray(cv2.imread(str(job[1]))[..., ::-1])
    exponentials = np.exp(logits - logits.max(0))
    crf = densecrf.DenseCRF2D(image.shape[1], image.shape[0], len(logits))
    crf.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(exponentials / exponentials.sum(0))))
    crf.addPairwiseGaussian(sxy=1, compat=3)
    crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    return np.array(crf.inference(10)).reshape(logits.shape).argmax(0).astype(np.uint8)


def warm(_: int) -> None:
    """Make a process of a pool import this module; the pause leaves work for every process."""
    time.sleep(0.1)
