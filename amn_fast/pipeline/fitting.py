"""What takes the place of training a network in fast configurations: linear models on frozen features."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amn_fast.models import CamNet, HeadsNet
from amn_fast.ops.refine_seed import combine, crf_labels
from amn_fast.pipeline.engine import cores, for_each, on_device
from amn_fast.pipeline.features import feature_net, subset
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.training import save_weights
from amn_fast.steps import heads, linear_cam
from amn_fast.steps.items import checked_labels

New = Callable[[Path], Path]
LabelsOf = Callable[[str, NDArray[np.uint8], Tensor], NDArray[np.uint8]]

MOST_IMAGES = 5000
"""Images that the linear models are fitted on: a random subset of a larger set."""
OWN_SEED = (0.8, 0.2)
"""Thresholds of the seeds that a head's own activations give; compared in docs/explanation/thresholds.md."""


def fit_linear_cam(work: Workspace, new: New) -> None:
    """Fit the classifier's last layer to the frozen features of the pretrained backbone."""
    config, dataset = work.config, work.dataset
    torch.manual_seed(config.seed)  # random backbone weights, where the configuration asks for them
    net = CamNet(len(dataset.classes), config.backbone, config.weights).to(work.device).eval()
    ids = subset(work, MOST_IMAGES)
    features: dict[str, Tensor] = {}

    def one(id: str) -> None:
        image = dataset.image(id)
        with on_device(work.device):
            features[id] = linear_cam.pooled_features(net, image, work.device)

    for_each("features", ids, one, cores())
    with heads.one_thread():
        labels = torch.from_numpy(np.stack([dataset.labels(id) for id in ids])).float()
        views = len(features[ids[0]])
        weights = linear_cam.fit(torch.cat([features[id] for id in ids]), labels.repeat_interleave(views, 0))
    with torch.no_grad():
        net.classifier.weight.copy_(weights[:, :, None, None])
    save_weights(new(work.weights("cam")), net)


class _Cells:
    """The cells of each image that heads are fitted on: features, and the labels of the present round.

    The features of whole images are computed again in each round: of `MOST_IMAGES` they would take 8 GB.
    """

    def __init__(self, work: Workspace, net: HeadsNet, ids: Sequence[str]) -> None:
        self.work, self.net, self.ids = work, net, ids
        self._numbers = {id: number for number, id in enumerate(ids)}
        self._features: dict[str, Tensor] = {}
        self._labels: dict[str, Tensor] = {}

    def label(self, what: str, labels_of: LabelsOf, ids: Sequence[str]) -> None:
        """Take the labels of these images from `labels_of(id, image, grid)`, (H, W) uint8."""
        dataset = self.work.dataset

        def one(id: str) -> None:
            image = dataset.image(id)
            with on_device(self.work.device):
                maps = heads.project(self.net, heads.level_maps(self.net, image, self.work.device))
            grid = heads.grid_features(maps)
            rng = np.random.default_rng([self.work.config.seed, 1, self._numbers[id]])
            chosen = torch.from_numpy(heads.cells_of_image(grid[0].numel(), len(self.ids), rng))
            labels = torch.from_numpy(heads.grid_labels(labels_of(id, image, grid), (grid.shape[1], grid.shape[2])))
            self._features[id], self._labels[id] = grid.flatten(1).T[chosen], labels.flatten()[chosen]

        for_each(what, ids, one, cores())

    def fitted_head(self) -> Tensor:
        """The head of the present labels, (1, C + 1, D + 1)."""
        features, labels = (torch.cat([part[id] for id in self.ids]) for part in (self._features, self._labels))
        n_classes = len(self.work.dataset.classes)
        return heads.fit(features, labels[None], n_classes, random_seed=self.work.config.seed)


def fit_heads(work: Workspace, new: New, read_seed: Callable[[str], NDArray[np.uint8]]) -> None:
    """Fit a linear head to the seeds, then to seeds made of its own activations, for as many rounds as are set.

    Args:
        read_seed: gives the seed of an image, or its trusted mask, which stays in every round.
    """
    n_classes = len(work.dataset.classes)
    ids = subset(work, MOST_IMAGES)

    def first(id: str, image: NDArray[np.uint8], grid: Tensor) -> NDArray[np.uint8]:
        return checked_labels(read_seed(id), image.shape[:2], n_classes, f"seed of image {id!r}")

    def own(id: str, image: NDArray[np.uint8], grid: Tensor) -> NDArray[np.uint8]:
        keys = [k + 1 for k in np.flatnonzero(work.dataset.labels(id)).tolist()]
        found = heads.activations(head, grid, keys, (image.shape[0], image.shape[1]))
        return combine(*crf_labels(image, found.full, found.keys, OWN_SEED, threads=1))

    with heads.one_thread():
        net = feature_net(work, ids)
        cells = _Cells(work, net, ids)
        cells.label("features", first, ids)
        head = cells.fitted_head()
        untrusted = [id for id in ids if work.trusted(id) is None]
        for number in range(2, work.config.train_amn.rounds + 1):
            cells.label(f"round {number}", own, untrusted)
            head = cells.fitted_head()
    heads.install(net, head[0])
    save_weights(new(work.weights("amn")), net)
