"""Activation manipulation network: optimizer and loss of the training, activations of one image."""

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from amn_fast.config import AmnInference, AmnTraining
from amn_fast.data.augment import flipped_pair
from amn_fast.data.store import Activations
from amn_fast.models import AmnNet, HeadsNet
from amn_fast.nn import PixelLoss
from amn_fast.ops.merge import merge_amn
from amn_fast.steps.cam import no_activations


def optimizer(net: AmnNet, settings: AmnTraining) -> torch.optim.Optimizer:
    """Adam with one learning rate for pretrained layers and one for new layers."""
    return torch.optim.Adam(
        [
            {"params": [p for p in net.backbone.parameters() if p.requires_grad], "lr": settings.lr},
            {"params": net.new_parameters(), "lr": settings.new_lr},
        ],
        weight_decay=settings.weight_decay,
    )


def loss(
    net: AmnNet,
    images: Tensor,
    seeds: Tensor,
    labels: Tensor,
    *,
    eps: float,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Balanced per-pixel loss of images (B, 3, S, S), seeds (B, S, S) uint8 and image labels (B, C), 0 or 1.

    The means are over the pixels of all shares of the batch where the processes of `group` have one each.
    """
    return PixelLoss(eps, group=group)(net(images, labels), seeds)


def activate(
    net: AmnNet | HeadsNet,
    image: NDArray[np.uint8],
    label: NDArray[np.bool_],
    seed: NDArray[np.uint8],
    settings: AmnInference,
    device: torch.device,
) -> Activations:
    """Foreground activations of one image: softmax of the mean logits, sharpened by the seed."""
    valid = np.flatnonzero(label)
    height, width = image.shape[:2]
    if not len(valid):
        return no_activations(height, width)
    condition = torch.from_numpy(label.astype(np.float32)).to(device)
    maps = [
        net.activations(flipped_pair(image, scale, net.backbone.normalize).to(device), condition)
        for scale in settings.scales
    ]
    kept = valid
    if settings.softmax == "image":
        maps = [m[[0, *(valid + 1)]] for m in maps]
        kept = np.arange(len(valid))
    strided, full = merge_amn(maps, (height, width), kept.tolist(), torch.from_numpy(np.array(seed)).to(device))
    # The background's channel served the softmax; the seeds and masks put a threshold in its place.
    return Activations((valid + 1).astype(np.uint8), strided[1:].cpu().numpy(), full[1:].cpu().numpy())
