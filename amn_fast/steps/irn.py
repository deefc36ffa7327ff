"""IRN: optimizer and loss of the training, displacement and edge map of one image."""

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from amn_fast.config import IrnTraining
from amn_fast.data.augment import flipped_pair, resize_image
from amn_fast.models import IrnNet
from amn_fast.nn import PairLoss


def optimizer(net: IrnNet, settings: IrnTraining) -> torch.optim.Optimizer:
    """SGD on the edge branch and, if it is trained, the displacement branch."""
    groups = [{"params": net.edge_parameters(), "lr": settings.lr}]
    if settings.displacement:
        groups.append({"params": net.displacement_parameters(), "lr": settings.new_lr})
    return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)


def loss(
    net: IrnNet, images: Tensor, seeds: Tensor, *, settings: IrnTraining, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Pair losses of images (B, 3, S, S) and seeds (B, S, S) uint8, which are read at stride 4.

    The means are over the pairs of all shares of the batch where the processes of `group` have one each.
    """
    edges, displacements = net(images)
    losses = PairLoss(settings.radius, group=group)(edges, displacements, seeds[:, 2::4, 2::4].contiguous())
    return losses.total if settings.displacement else losses.edges


@torch.no_grad()
def mean_displacement(net: IrnNet, image: NDArray[np.uint8], side: int, device: torch.device) -> Tensor:
    """Mean displacement of one image, (2,) double; its long side is reduced to `side` pixels."""
    factor = min(1.0, side / max(image.shape[:2]))
    image = resize_image(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))
    _, displacement = net(net.backbone.normalize(image)[None].to(device))
    return displacement[0].double().mean((1, 2)).cpu()


def find_edge(net: IrnNet, image: NDArray[np.uint8], pad: int, device: torch.device) -> NDArray[np.float32]:
    """Edge map of one image at stride 4, (h, w) float32 in [0, 1]."""
    edge, _ = net.edges(flipped_pair(image, 1.0, net.backbone.normalize).to(device), pad)
    return edge[0].float().cpu().numpy()
