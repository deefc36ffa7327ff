"""One image through all inference stages: CAM, seed, AMN, edge map, mask, with networks of random weights.

Against the same steps on the reference backends where these finish in seconds, and against what a user would combine:
eager PyTorch, pydensecrf2 and SciPy. The case shows each step's share of our time.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import torch
from crf_peer import refined_seed
from problems import VOC, name_of, photo
from published_steps import published_amn, published_cam, sparse_steps
from racing import Method

from amn_fast.config import AmnInference, Mask, Seed
from amn_fast.kernels.merge.reference import strided_size
from amn_fast.kernels.pixel_loss.reference import sample_labels
from amn_fast.models import AmnNet, CamNet, IrnNet
from amn_fast.ops import mask as mask_operation
from amn_fast.ops._arrays import default_backend, thread_count
from amn_fast.steps import amn, cam, irn, mask, seed

BACKBONE, CLASSES, PRESENT, SMALL = "efficientnet_lite0", 20, (6, 14), (48, 64)
CPU = torch.device("cpu")


class Stages:
    """The steps, their networks and settings."""

    def __init__(self, pad: int) -> None:
        torch.manual_seed(0)
        self.cam, self.amn, self.irn = CamNet(CLASSES, BACKBONE), AmnNet(CLASSES, BACKBONE), IrnNet(BACKBONE)
        for net in (self.cam, self.amn, self.irn):
            net.eval()
        self.label = np.isin(np.arange(CLASSES), PRESENT)
        self.amn_settings, self.mask_settings, self.pad = AmnInference(), Mask(), pad
        self.seconds: dict[str, float] = {}

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        """The seed, the scores and the mask."""
        found = self._step("CAM", lambda: cam.activate(self.cam, image, self.label, self.amn_settings.scales, CPU))
        refined = self._step("seed", lambda: seed.refine(image, found, Seed(fg=0.6, bg=0.3)))
        found = self._step("AMN", lambda: amn.activate(self.amn, image, self.label, refined, self.amn_settings, CPU))
        edge = self._step("edge", lambda: irn.find_edge(self.irn, image, self.pad, CPU))
        scores = self._step("mask", lambda: mask.scores(found, edge, self.mask_settings))
        labels = np.concatenate([[0], found.keys])
        return [refined, scores, mask_operation.mask_from_scores(scores, labels, self.mask_settings.background)]

    def _step(self, name: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = run()
        self.seconds[name] = time.perf_counter() - start
        return found

    def shares(self) -> str:
        """Each step's share of the latest run."""
        total = sum(self.seconds.values())
        return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in self.seconds.items())


def small_labels(maps: list, size: tuple[int, int], valid: list, labels: torch.Tensor) -> tuple:
    return published_amn(maps, size, valid, sample_labels(labels[None], *strided_size(*size))[0], labels)


def combined(stages: Stages, image: np.ndarray) -> list[np.ndarray]:
    """The same steps with every operation of amn_fast replaced; the networks are the same."""
    replaced = [
        (cam, "merge_cam", published_cam),
        (amn, "merge_amn", small_labels),
        (
            seed,
            "refine_seed",
            lambda i, maps, keys, fg, bg, **_: refined_seed(i, maps.astype(np.float32), keys, fg, bg),
        ),
        (mask_operation, "random_walk", lambda x, edge, **_: sparse_steps(x, edge)),
    ]
    with ExitStack() as stack:
        for module, name, other in replaced:
            stack.enter_context(mock.patch.object(module, name, other))
        return stages(image)


def held(race, expected: list[np.ndarray], found: list[np.ndarray], tolerance: float) -> None:
    """Scores within the tolerance, and the same seed and mask but for pixels on a threshold."""
    assert all(len(np.unique(labels)) > 1 for labels in (found[0], found[2])), "one label alone would hide every error"
    race.parity(expected[1], found[1], tolerance)
    for labels, others in ((expected[0], found[0]), (expected[2], found[2])):
        race.parity(np.ones(1), np.array([np.mean(labels == others)]), 1e-3)


def test_one_image_through_all_stages(race, profile):
    stages, small = Stages(pad=0), photo(*SMALL)

    def reference() -> list[np.ndarray]:
        with default_backend("reference"):
            return stages(small)

    held(race, reference(), stages(small), 1e-4)
    threads = thread_count(None)
    case = f"{name_of(SMALL)}, {len(PRESENT)} of {CLASSES} classes"
    race.run(
        "all stages",
        f"{case} ({stages.shares()})",
        Method("ours", lambda: stages(small), threads),
        Method("reference", reference, threads),
        rounds=2,
    )


def test_against_a_combination(race, profile):
    size = SMALL if profile == "quick" else VOC
    stages, image = Stages(pad=0 if profile == "quick" else 512), photo(*size)
    threads = thread_count(None)
    held(race, combined(stages, image), stages(image), 1e-3)
    race.run(
        "all stages",
        f"{name_of(size)}, {len(PRESENT)} of {CLASSES} classes ({stages.shares()})",
        Method("ours", lambda: stages(image), threads),
        Method("PyTorch, pydensecrf2, SciPy", lambda: combined(stages, image), threads),
        rounds=3,
    )
