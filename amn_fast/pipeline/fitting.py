"""What takes the place of training a network in fast configurations: linear models on frozen features."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amn_fast.models import CamNet
from amn_fast.pipeline.engine import cores, for_each, on_device
from amn_fast.pipeline.features import feature_net, subset
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.training import save_weights
from amn_fast.steps import heads, linear_cam
from amn_fast.steps.items import checked_labels

New = Callable[[Path], Path]

MOST_IMAGES = 5000
"""Images that the linear models are fitted on: a random subset of a larger set."""


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


def fit_heads(work: Workspace, new: New, read_seed: Callable[[str], np.ndarray]) -> None:
    """Fit a linear head to the seeds.

    Args:
        read_seed: gives the seed of an image, or its trusted mask.
    """
    dataset = work.dataset
    n_classes = len(dataset.classes)
    ids = subset(work, MOST_IMAGES)
    with heads.one_thread():
        net = feature_net(work, ids)
        cells: dict[str, tuple[Tensor, Tensor]] = {}
        numbers = {id: number for number, id in enumerate(ids)}

        def one(id: str) -> None:
            image = dataset.image(id)
            with on_device(work.device):
                maps = heads.project(net, heads.level_maps(net, image, work.device))
            grid = heads.grid_features(maps)
            rng = np.random.default_rng([work.config.seed, 1, numbers[id]])
            chosen = torch.from_numpy(heads.cells_of_image(grid[0].numel(), len(ids), rng))
            seed = checked_labels(read_seed(id), image.shape[:2], n_classes, f"seed of image {id!r}")
            labels = torch.from_numpy(heads.grid_labels(seed, (grid.shape[1], grid.shape[2])))
            cells[id] = grid.flatten(1).T[chosen], labels.flatten()[chosen]

        for_each("features", ids, one, cores())
        features, labels = (torch.cat([cells[id][k] for id in ids]) for k in (0, 1))
        fitted = heads.fit(features, labels[None], n_classes, random_seed=work.config.seed)
    heads.install(net, fitted[0])
    save_weights(new(work.weights("amn")), net)
