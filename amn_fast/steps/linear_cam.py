"""A classifier on frozen features, fitted at once: class activations without training a network."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from amn_fast.data.augment import resize_image
from amn_fast.models import CamNet

SCALES = (1.0,)
"""Scales of the views of an image that the classifier is fitted on, each with its horizontal flip."""
DECAY = 1e-4
ITERATIONS = 200


@torch.no_grad()
def pooled_features(net: CamNet, image: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Mean over all pixels of the last features, of each view of an image: (views, D) float32 on the CPU."""
    views = []
    for scale in SCALES:
        size = (round(image.shape[0] * scale), round(image.shape[1] * scale))
        x = net.backbone.normalize(resize_image(image, size)).to(device)
        views += [net.backbone(one[None])[-1].mean((2, 3)) for one in (x, x.flip(-1))]
    return torch.cat(views).float().cpu()


def fit(features: Tensor, labels: Tensor, *, decay: float = DECAY) -> Tensor:
    """Weights of a linear classifier without bias, as `CamNet` has it: (C, D) float32.

    Minimises the multi-label soft-margin loss plus `decay` times the mean square of the weights, on features that are
    divided by their mean norm, by L-BFGS in double precision. Call it under `steps.heads.one_thread` for results that
    do not depend on the thread count.

    Args:
        features: (N, D) pooled features.
        labels: (N, C) 0 or 1.
        decay: above 0.

    Examples:
        >>> x, y = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.eye(2)
        >>> (fit(x, y) @ x.T > 0).tolist()
        [[True, False], [False, True]]
    """
    x, y = features.double(), labels.double()
    scale = x.norm(dim=1).mean().clamp(min=1e-12)
    x = x / scale
    weights = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.multilabel_soft_margin_loss(x @ weights.T, y) + decay * weights.square().sum() / len(weights)
        loss.backward()
        return loss

    optimizer.step(objective)
    return (weights.detach() / scale).float()
