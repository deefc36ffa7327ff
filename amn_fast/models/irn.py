"""IRN's network for class boundaries and displacements (Ahn et al., CVPR 2019)."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn_fast.models.backbone import Backbone, batches, make_backbone


class _Resize(nn.Module):
    """Bilinear resize by a fixed factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        if self.factor == 1:
            return x
        if min(x.shape[-2:]) * self.factor < 1:  # an image of a pixel or two
            x = F.pad(x, (0, max(0, 2 - x.shape[-1]), 0, max(0, 2 - x.shape[-2])), mode="replicate")
        return F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)


class _MeanShift(nn.Module):
    """Subtracts the mean displacement over the training set, in evaluation only."""

    running_mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x - self.running_mean.view(1, 2, 1, 1)


def _branch(channels: int, outputs: int, groups: int, factor: float = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, outputs, 1, bias=False), nn.GroupNorm(groups, outputs), _Resize(factor), nn.ReLU()
    )


class IrnNet(nn.Module):
    """Two branches over the five levels of a frozen backbone: edge logits and displacements, at stride 4."""

    def __init__(self, backbone: str = "resnet50", weights: str | Path | None = None) -> None:
        super().__init__()
        self.backbone: Backbone = make_backbone(backbone, weights)
        self.backbone.freeze(5)
        channels = self.backbone.channels
        to_stride_4 = [stride / 4 for stride in self.backbone.strides]
        to_stride_8 = [stride / 8 for stride in self.backbone.strides]
        self.edge_layers = nn.ModuleList(
            [_branch(c, 32, 4, factor) for c, factor in zip(channels, to_stride_4, strict=True)]
            + [nn.Conv2d(5 * 32, 1, 1)]
        )
        widths, groups = (64, 128, 256, 256, 256), (8, 16, 16, 16, 16)
        factors = to_stride_4[:2] + to_stride_8[2:]
        self.dp_layers = nn.ModuleList(
            [_branch(*args) for args in zip(channels, widths, groups, factors, strict=True)]
            + [_branch(3 * 256, 256, 16, 2), _branch(64 + 128 + 256, 256, 16)]
            + [nn.Sequential(nn.Conv2d(256, 2, 1, bias=False), _MeanShift())]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised images -> edge logits (B, 1, h, w), displacements (B, 2, h, w) in (y, x) order."""
        with torch.no_grad():
            levels = self.backbone(x)
        size = torch.Size((side - 1) // 4 + 1 for side in x.shape[-2:])
        return self._edges(levels, size), self._displacements(levels, size)

    def _edges(self, levels: list[Tensor], size: torch.Size) -> Tensor:
        maps = [_fit(layer(level), size) for layer, level in zip(self.edge_layers, levels, strict=False)]
        return self.edge_layers[5](torch.cat(maps, 1))

    def _displacements(self, levels: list[Tensor], size: torch.Size) -> Tensor:
        maps = [layer(level) for layer, level in zip(self.dp_layers, levels, strict=False)]
        middle = maps[2].shape[-2:]
        upper = _fit(self.dp_layers[5](torch.cat([_fit(m, middle) for m in maps[2:]], 1)), size)
        return self.dp_layers[7](self.dp_layers[6](torch.cat([_fit(maps[0], size), _fit(maps[1], size), upper], 1)))

    @torch.no_grad()
    def edges(self, pair: Tensor, pad: int = 512) -> tuple[Tensor, Tensor]:
        """Edges of one image.

        Args:
            pair: (2, 3, H, W) normalised image and its horizontal flip.
            pad: zeros fill the image to at least this side; the group norms see them, so they are part of the
                answer. IRN's code for VOC has 512 (and fails above), AMN's for COCO 0.

        Returns:
            edge probabilities (1, h, w) in [0, 1] — the sigmoid of the mean of the edge logits and the flipped-back
            ones —, displacement (2, h, w) of the image itself; h = (H - 1) // 4 + 1, likewise w.
        """
        height, width = pair.shape[-2:]
        h, w = (height - 1) // 4 + 1, (width - 1) // 4 + 1
        padded = F.pad(pair, (0, max(0, pad - width), 0, max(0, pad - height)))
        parts = zip(*(self(x) for x in batches(padded)), strict=True)
        logits, displacement = (torch.cat(part).float() for part in parts)
        logits = logits[..., :h, :w]
        return torch.sigmoid((logits[0] + logits[1].flip(-1)) / 2), displacement[0, :, :h, :w]

    @property
    def mean_displacement(self) -> Tensor:
        """(2,) the mean over the training set, subtracted in evaluation."""
        shift = self.dp_layers[7].get_submodule("1")
        assert isinstance(shift, _MeanShift)
        return shift.running_mean

    def edge_parameters(self) -> list[nn.Parameter]:
        """The edge branch."""
        return list(self.edge_layers.parameters())

    def displacement_parameters(self) -> list[nn.Parameter]:
        """The displacement branch, which learns ten times faster."""
        return list(self.dp_layers.parameters())

    def train(self, mode: bool = True) -> "IrnNet":
        super().train(mode)
        self.backbone.eval()
        return self


def _fit(x: Tensor, size: torch.Size) -> Tensor:
    """Crop to `size`; a backbone whose level is a pixel short is padded by repeating its border."""
    missing = (size[0] - x.shape[-2], size[1] - x.shape[-1])
    if missing[0] > 0 or missing[1] > 0:
        x = F.pad(x, (0, max(0, missing[1]), 0, max(0, missing[0])), mode="replicate")
    return x[..., : size[0], : size[1]]
