"""The classifier whose weights, read as a map, give the class activations."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn_fast.models.backbone import batches, make_backbone


class CamNet(nn.Module):
    """Global average pool and a 1x1 convolution without bias over the last features (Zhou et al. 2016, as in IRN).

    The first three levels of the backbone get no gradient.
    """

    def __init__(self, n_classes: int, backbone: str = "resnet50", weights: str | Path | None = None) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.backbone = make_backbone(backbone, weights)
        self.backbone.freeze(3)
        self.classifier = nn.Conv2d(self.backbone.channels[-1], n_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, C) logits."""
        # The mean, not adaptive_avg_pool2d: its gradient has no deterministic form on CUDA.
        pooled = self.backbone(x)[-1].mean((2, 3), keepdim=True)
        return self.classifier(pooled).flatten(1)

    @torch.no_grad()
    def activations(self, pair: Tensor) -> Tensor:
        """An image and its horizontal flip, (2, 3, H, W) normalised -> (C, h, w): the sum of both rectified maps."""
        maps = torch.cat([F.relu(self.classifier(self.backbone(x)[-1])).float() for x in batches(pair)])
        return maps[0] + maps[1].flip(-1)

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters without pretrained values, which learn faster."""
        return list(self.classifier.parameters())
