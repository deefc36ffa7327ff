"""Which pixels of a run's images are asked for: a random sample, stratified by class and score."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn_fast.calibrate.estimate import (
    allocate,
    cells_of,
    cells_of_masks,
    edges_for,
)
from amn_fast.config import Config
from amn_fast.data.store import read_strided
from amn_fast.errors import InputError
from amn_fast.ops.mask import mask_from_scores
from amn_fast.pipeline.chosen import chosen_mask
from amn_fast.pipeline.engine import cores, for_each
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.inference import full_activations, read_edge
from amn_fast.review.source import run_config
from amn_fast.steps import mask


class Question(NamedTuple):
    """A pixel of an image, and its cell: the best class and the bin of its score."""

    image: str
    x: int
    y: int
    label: int
    bin: int


class ScoredRun:
    """The images of a run with the scores that its masks are cut from."""

    def __init__(self, run: Path | str) -> None:
        run = Path(run)
        if not (run / "config.yaml").is_file():
            raise InputError(f"{run}: is not a run folder, expected config.yaml in it")
        config: Config = run_config(run)
        self.work = Workspace(config)
        self.work.require("amn")
        if config.mask.kind == "walk":
            self.work.require("edge")
        else:
            self._activations = full_activations(self.work, "amn")
        self.edges: tuple[float, ...] = ()
        self.sizes = np.zeros((0, 0), np.int64)
        self.sure = 0
        classes = len(self.work.dataset.classes)
        self.together = np.zeros((classes, classes), np.int64)
        """(C, C) images that show both of two classes."""
        for id in self.work.dataset.ids:
            shown = self.work.dataset.labels(id).astype(np.int64)
            self.together += np.outer(shown, shown)
        np.fill_diagonal(self.together, 0)

    def scores(self, id: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Scores (K, H, W) and labels (K,) of an image: what its mask is cut from, or the CRF's input."""
        if self.work.config.mask.kind == "crf":
            activations = self._activations(id, self.work.dataset.image(id))
            return activations.full, activations.keys
        found = read_strided(self.work.item("amn", id))
        return mask.scores(found, read_edge(self.work.item("edge", id)), self.work.config.mask, threads=1), found.keys

    def masks(self, id: str, thresholds: Sequence[float]) -> NDArray[np.uint8]:
        """The masks of an image at each threshold, (T, H, W) uint8, as make-mask makes them."""
        scores, keys = self.scores(id)
        if self.work.config.mask.kind == "crf":
            return mask.crf_masks(self.work.dataset.image(id), scores, keys, thresholds)
        labels = np.concatenate([[0], keys])
        return np.stack([mask_from_scores(scores, labels, threshold) for threshold in thresholds])

    def cells(self, id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The cell of every pixel of an image with a class: label and bin, see `cells_of`."""
        scores, keys = self.scores(id)
        if self.work.config.mask.kind == "crf":
            masks = mask.crf_masks(self.work.dataset.image(id), scores, keys, self.edges)
            return cells_of_masks(masks, scores, keys)
        return cells_of(scores, keys, self.edges)

    def draw(self, points: int, random_seed: int) -> list[Question]:
        """A stratified random sample of pixels; `edges`, `sizes` and `sure` are known afterwards."""
        dataset = self.work.dataset
        n_classes = len(dataset.classes)
        if points < 4 * n_classes:
            raise InputError(f"points is {points}, expected at least {4 * n_classes}, four for each class")
        self.edges = edges_for(points, n_classes, chosen_mask(self.work.config).threshold)
        n_bins = len(self.edges) + 1
        sizes: dict[str, NDArray[np.int64]] = {}
        lock = threading.Lock()

        def cells(id: str) -> NDArray[np.intp]:
            if not dataset.labels(id).any():
                return np.full(dataset.image(id).shape[:2], -1, np.intp)
            label, bins = self.cells(id)
            return (label.astype(np.intp) - 1) * n_bins + bins

        def count(id: str) -> None:
            found = cells(id) + 1
            counted = np.bincount(found.ravel(), minlength=n_classes * n_bins + 1)
            with lock:
                sizes[id] = counted

        for_each("scores", dataset.ids, count, cores())
        by_image = np.array([sizes[id] for id in dataset.ids])
        self.sure, by_image = int(by_image[:, 0].sum()), by_image[:, 1:]
        self.sizes = by_image.sum(0).reshape(n_classes, n_bins)
        wanted = _places(by_image, allocate(self.sizes, points).ravel(), np.random.default_rng(random_seed))
        questions: dict[int, list[Question]] = {}

        def find(id: str) -> None:
            place = dataset.ids.index(id)
            found = cells(id)
            width = found.shape[1]
            pixels = [(cell, np.flatnonzero(found == cell)[rank]) for cell, rank in wanted[place]]
            questions[place] = [
                Question(id, int(pixel % width), int(pixel // width), cell // n_bins + 1, cell % n_bins)
                for cell, pixel in sorted(pixels, key=lambda pair: int(pair[1]))
            ]

        for_each("questions", [dataset.ids[place] for place in wanted], find, cores())
        return [question for place in sorted(questions) for question in questions[place]]


def _places(
    by_image: NDArray[np.int64], counts: NDArray[np.int64], rng: np.random.Generator
) -> dict[int, list[tuple[int, int]]]:
    """Which pixels are asked for: of each image (place, with questions only), pairs of a cell and a rank in it."""
    found: dict[int, list[tuple[int, int]]] = {}
    for cell, count in enumerate(counts):
        ends = by_image[:, cell].cumsum()
        chosen = np.sort(_distinct(int(ends[-1]), int(count), rng)) if count else np.zeros(0, np.int64)
        for rank, image in zip(chosen, np.searchsorted(ends, chosen, side="right"), strict=True):
            start = int(ends[image] - by_image[image, cell])
            found.setdefault(int(image), []).append((cell, int(rank) - start))
    return found


def _distinct(total: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`count` different integers below `total`, without a list of all of them."""
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen.update(dict.fromkeys(rng.integers(0, total, count).tolist()))
    return np.array(list(chosen)[:count], np.int64)
