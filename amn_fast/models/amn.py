"""The activation manipulation network (AMN, CVPR 2022): per-pixel classes under label conditioning."""

from pathlib import Path

import torch
from torch import Tensor, nn

from amn_fast.models.backbone import batches, make_backbone


class Aspp(nn.Module):
    """The sum of four 3x3 convolutions with dilation 6, 12, 18 and 24."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.c0, self.c1, self.c2, self.c3 = (
            nn.Conv2d(channels, outputs, 3, padding=dilation, dilation=dilation) for dilation in (6, 12, 18, 24)
        )
        for convolution in self.children():
            assert isinstance(convolution, nn.Conv2d)
            assert convolution.bias is not None
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.zeros_(convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c0(x) + self.c1(x) + self.c2(x) + self.c3(x)


class ShareDropout(nn.Dropout):
    """Dropout that drops in a part of a batch what it would drop there in the whole batch.

    Attributes:
        share: (first image, end, images of the whole batch); None for the whole batch.
    """

    share: tuple[int, int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.share is None or not self.training:
            return super().forward(x)
        first, end, whole = self.share
        last = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        ones = torch.ones((whole, *x.shape[1:]), dtype=x.dtype, device=x.device).to(memory_format=layout)
        return x * super().forward(ones)[first:end]


class AmnNet(nn.Module):
    """Features times Linear(image label), channel by channel, then dropout and an ASPP classifier to C + 1 logits."""

    def __init__(self, n_classes: int, backbone: str = "resnet50", weights: str | Path | None = None) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.backbone = make_backbone(backbone, weights)
        self.backbone.freeze(0)
        channels = self.backbone.channels[-1]
        self.label_enc = nn.Linear(n_classes, channels)
        self.classifier = nn.Sequential(ShareDropout(0.1), Aspp(channels, n_classes + 1))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images and (B, C) image labels -> (B, C + 1, h, w) logits, 0 is background."""
        features = self.backbone(x)[-1]
        condition = self.label_enc(label.to(self.label_enc.weight.dtype))
        return self.classifier(features * condition[:, :, None, None])

    @torch.no_grad()
    def activations(self, pair: Tensor, label: Tensor) -> Tensor:
        """(2, 3, H, W) image and its horizontal flip, (C,) label -> (C + 1, h, w): the mean of both maps of logits."""
        logits = torch.cat([self(x, label.expand(len(x), -1)).float() for x in batches(pair)])
        return (logits[0] + logits[1].flip(-1)) / 2

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters without pretrained values, which learn faster."""
        return [*self.classifier.parameters(), *self.label_enc.parameters()]
