"""A linear segmentation network on frozen features: the same role as AMN, fitted in seconds on a CPU."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn_fast.models.backbone import make_backbone

LEVELS = 3
"""The last levels of the backbone, whose features the head sees."""
MOST_CHANNELS = 128
"""Channels that are kept of each level."""
CLIP = 6.0
"""Standardised features are clipped to this magnitude."""


class HeadsNet(nn.Module):
    """Softmax regression over background and classes on the last three levels of a backbone.

    Each level is projected to at most 128 standardised channels (the projections hold the principal components, or the
    channels themselves where there are no more), clipped, and upsampled to the finest of the three. Neither the
    backbone nor the projections are trained: `amn_fast.steps.heads` fits the projections and the linear layer.
    """

    def __init__(self, n_classes: int, backbone: str = "resnet50", weights: str | Path | None = None) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.backbone = make_backbone(backbone, weights)
        channels = self.backbone.channels[-LEVELS:]
        self.projections = nn.ModuleList(nn.Conv2d(c, min(c, MOST_CHANNELS), 1) for c in channels)
        self.width = sum(min(c, MOST_CHANNELS) for c in channels)
        self.linear = nn.Conv2d(self.width, n_classes + 1, 1)
        self.requires_grad_(False)

    def levels(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images -> the features of the last three levels, each (B, c, h, w)."""
        return list(self.backbone(x)[-LEVELS:])

    def project(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Features of the levels -> their projections, clipped, each (B, d, h, w)."""
        return [
            projection(level).clamp(-CLIP, CLIP) for projection, level in zip(self.projections, levels, strict=True)
        ]

    @staticmethod
    def join(projected: Sequence[Tensor]) -> Tensor:
        """Projections -> (B, width, h, w), upsampled to the size of the first."""
        size = projected[0].shape[-2:]
        resized = [
            p if p.shape[-2:] == size else F.interpolate(p, size, mode="bilinear", align_corners=False)
            for p in projected
        ]
        return torch.cat(resized, 1)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, C + 1, h, w) logits, 0 is background. `label` has no influence."""
        return self.linear(self.join(self.project(self.levels(x))))

    @torch.no_grad()
    def activations(self, pair: Tensor, label: Tensor | None = None) -> Tensor:
        """(2, 3, H, W) image and its horizontal flip -> (C + 1, h, w): the mean of both maps of logits, as `AmnNet`."""
        logits = self(pair).float()
        return (logits[0] + logits[1].flip(-1)) / 2
