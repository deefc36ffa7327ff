"""make-cam: class activations of every picture, merged over scales."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from amn_fast.data.augment import mirrored_pair
from amn_fast.data.store import Activations, write_activations
from amn_fast.models import CamNet
from amn_fast.ops.merge import merge_cam
from amn_fast.stages import train_cam
from amn_fast.stages._stage import Stage, Workspace
from amn_fast.stages._training import load_weights


def activate(
    net: CamNet, image: NDArray[np.uint8], label: NDArray[np.bool_], scales: Sequence[float], device: torch.device
) -> Activations:
    """One picture's class activations: maps of all scales, summed and divided by each class's maximum."""
    valid = np.flatnonzero(label)
    height, width = image.shape[:2]
    if not len(valid):
        return no_activations(height, width)
    maps = [net.activations(mirrored_pair(image, scale, net.backbone.normalize).to(device)) for scale in scales]
    strided, full = merge_cam(maps, (height, width), valid.tolist())
    return Activations((valid + 1).astype(np.uint8), strided.cpu().numpy(), full.cpu().numpy())


def no_activations(height: int, width: int) -> Activations:
    """What a picture without any class has."""
    strided = np.zeros((0, (height - 1) // 4 + 1, (width - 1) // 4 + 1), np.float32)
    return Activations(np.zeros(0, np.uint8), strided, np.zeros((0, height, width), np.float32))


def _make(work: Workspace) -> None:
    net = CamNet(len(work.dataset.classes), work.config.backbone).to(work.device)
    load_weights(work.weights("cam"), net)
    net.eval()

    def one(id: str) -> None:
        if not work.item("cam", id).exists():
            found = activate(net, work.dataset.image(id), work.dataset.labels(id), work.config.cam.scales, work.device)
            write_activations(work.item("cam", id), found)

    work.for_each("CAM", work.dataset.ids, one)


stage = Stage(name="make-cam", uses=("cam",), needs=(train_cam.stage,), makes=("cam",), work=_make)
run = stage.run
