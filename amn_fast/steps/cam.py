"""Classifier and class activation maps: optimizer and loss of the training, activations of one image."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from amn_fast.config import CamTraining
from amn_fast.data.augment import flipped_pair
from amn_fast.data.store import Activations, strided_size
from amn_fast.models import CamNet
from amn_fast.nn import sum_over_group
from amn_fast.ops.merge import merge_cam


def optimizer(net: CamNet, settings: CamTraining) -> torch.optim.Optimizer:
    """SGD with one learning rate for pretrained layers and one for new layers."""
    return torch.optim.SGD(
        [
            {"params": [p for p in net.backbone.parameters() if p.requires_grad], "lr": settings.lr},
            {"params": net.new_parameters(), "lr": settings.new_lr},
        ],
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )


def loss(net: CamNet, images: Tensor, labels: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """Multi-label soft-margin loss of images (B, 3, S, S) and their labels (B, C), 0 or 1.

    Args:
        group: processes with a share of the batch each: the mean is over the images of all shares.

    Returns:
        the loss, and which images have every label right, (B,) bool.
    """
    logits = net(images)
    losses = F.multilabel_soft_margin_loss(logits, labels, reduction="none")
    right = ((logits > 0) == (labels > 0)).all(1)
    if group is None:
        return losses.mean(), right
    total, count = sum_over_group(losses.sum(), losses.new_tensor(len(losses)), group)
    return total / count, right


def activate(
    net: CamNet, image: NDArray[np.uint8], label: NDArray[np.bool_], scales: Sequence[float], device: torch.device
) -> Activations:
    """Class activations of one image: maps of all scales, summed and divided by each class's maximum."""
    valid = np.flatnonzero(label)
    height, width = image.shape[:2]
    if not len(valid):
        return no_activations(height, width)
    maps = [net.activations(flipped_pair(image, scale, net.backbone.normalize).to(device)) for scale in scales]
    strided, full = merge_cam(maps, (height, width), valid.tolist())
    return Activations((valid + 1).astype(np.uint8), strided.cpu().numpy(), full.cpu().numpy())


@torch.no_grad()
def probabilities(net: CamNet, image: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """The classifier's probability of each class, (C,) float32: the mean over an image and its horizontal flip."""
    pair = flipped_pair(image, 1.0, net.backbone.normalize).to(device)
    return net(pair).float().sigmoid().mean(0).cpu().numpy()


def no_activations(height: int, width: int) -> Activations:
    """Activations of an image without any class."""
    strided = np.zeros((0, *strided_size(height, width)), np.float32)
    return Activations(np.zeros(0, np.uint8), strided, np.zeros((0, height, width), np.float32))
