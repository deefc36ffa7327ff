"""DeepLabV2 (Chen et al., TPAMI 2018), the segmentation network that learns from the pseudo-masks.

The reference implementation is a ResNet-101 at output stride 8 with its own state-dict names: `layer1` (stem) to
`layer5`, `aspp`, all under `base.` in the multi-scale wrapper. It differs from torchvision's ResNet-101 in four ways:
the stride of a stage is on its first 1x1 convolution, the max-pool rounds its size up, all blocks of the last two
stages are dilated by 2 and 4 in place of their strides, and images are BGR minus a mean colour, 0..255.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet101_Weights

from amn_fast.data.augment import Normalize
from amn_fast.models.amn import Aspp
from amn_fast.models.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrozenNorms,
    batches,
    load_strictly,
    make_backbone,
    read_state_dict,
)

PUBLISHED = "resnet101"
MEAN_BGR = (104.008, 116.669, 122.675)
SCALES = (0.5, 0.75)


@dataclass(frozen=True)
class BgrNormalize(Normalize):
    """`Normalize` for networks that take BGR; mean and std are in that order."""

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:
        return super().__call__(np.ascontiguousarray(image[..., ::-1]))


PUBLISHED_COLOURS = BgrNormalize(
    (MEAN_BGR[0] / 255, MEAN_BGR[1] / 255, MEAN_BGR[2] / 255), (1 / 255, 1 / 255, 1 / 255)
)  # (x / 255 - mean / 255) / (1 / 255): grey levels


class _Unit(nn.Sequential):
    """Convolution, batch norm and perhaps a rectifier."""

    def __init__(
        self, channels: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, relu: bool = True
    ) -> None:
        conv = nn.Conv2d(
            channels, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False
        )
        layers: list[tuple[str, nn.Module]] = [("conv", conv), ("bn", nn.BatchNorm2d(outputs))]
        super().__init__(OrderedDict([*layers, ("relu", nn.ReLU())] if relu else layers))


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, dilation: int, first: bool) -> None:
        super().__init__()
        self.reduce = _Unit(channels, width, 1, stride)
        self.conv3x3 = _Unit(width, width, 3, dilation=dilation)
        self.increase = _Unit(width, 4 * width, 1, relu=False)
        self.shortcut = _Unit(channels, 4 * width, 1, stride, relu=False) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.increase(self.conv3x3(self.reduce(x))) + self.shortcut(x))


def _stage(blocks: int, channels: int, width: int, stride: int, dilation: int) -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = [("block1", _Bottleneck(channels, width, stride, dilation, True))]
    layers += [(f"block{k}", _Bottleneck(4 * width, width, 1, dilation, False)) for k in range(2, blocks + 1)]
    return nn.Sequential(OrderedDict(layers))


def _resnet101() -> dict[str, nn.Module]:
    stem = nn.Sequential(
        OrderedDict([("conv1", _Unit(3, 64, 7, 2)), ("pool", nn.MaxPool2d(3, 2, padding=1, ceil_mode=True))])
    )
    return {
        "layer1": stem,
        "layer2": _stage(3, 64, 64, 1, 1),
        "layer3": _stage(4, 256, 128, 2, 1),
        "layer4": _stage(23, 512, 256, 1, 2),
        "layer5": _stage(3, 1024, 512, 1, 4),
    }


class DeepLabV2(FrozenNorms):
    """Features and an ASPP classifier to C + 1 logits; batch norms keep their statistics and are not trained.

    Attributes:
        normalize: makes the tensor that the network takes from an RGB image.
    """

    def __init__(self, n_classes: int, backbone: str = PUBLISHED, weights: str | Path | None = None) -> None:
        """
        Args:
            n_classes: C, the number of foreground classes.
            backbone: "resnet101" is the reference network; any name of `make_backbone` gives a network at output
                stride 16 for smaller machines.
            weights: None for random ones; "imagenet"; or the path of a state dict: for "resnet101" with the reference
                names (with or without `base.`) or torchvision's. An ASPP in it counts if it has C + 1 outputs.

        Raises:
            InputError: weights that do not fit; the message lists what does not.
        """
        super().__init__()
        self.n_classes = n_classes
        self.backbone_name = backbone
        self.normalize: Normalize
        if backbone == PUBLISHED:
            layers, channels, self.normalize = _resnet101(), 2048, PUBLISHED_COLOURS
        else:
            features = make_backbone(backbone, weights)
            layers, channels, self.normalize = {"backbone": features}, features.channels[-1], features.normalize
        self._features = tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.aspp = Aspp(channels, n_classes + 1)
        if backbone == PUBLISHED and weights is not None:
            self._start_from(weights)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, C + 1, h, w) logits, 0 is background.

        With "resnet101" H becomes (H - 1) // 2 + 1 in the first convolution, H // 2 + 1 in the pool and
        (H - 1) // 2 + 1 in `layer3`: 321 -> 41, 513 -> 65.
        """
        for name in self._features:
            x = self.get_submodule(name)(x)
        return self.aspp(x if isinstance(x, Tensor) else x[-1])

    def _start_from(self, weights: str | Path) -> None:
        if weights == "imagenet":
            state = ResNet101_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
            source = f"ImageNet weights of {PUBLISHED}"
        else:
            state, source = read_state_dict(weights), str(weights)
        state = published_names(state)
        own = {name: value for name, value in self.state_dict().items() if name.startswith("aspp.")}
        trained = all(name in state and state[name].shape == value.shape for name, value in own.items())
        load_strictly(self, state if trained else state | own, source)


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate a state dict to the reference names: `base.` is dropped, torchvision's ResNet-101 is translated.

    torchvision's first convolution takes RGB in [0, 1], standardised: its channels are reversed and divided by
    255 std, and the difference of the two mean colours goes into the running mean of the norm behind it. The features
    are then those of the same weights on the same image, except for the colour of the padding.
    """
    if state and all(name.startswith("base.") for name in state):
        return {name.removeprefix("base."): value for name, value in state.items()}
    if "conv1.weight" not in state or "bn1.running_mean" not in state:
        return state
    translated = {_translate(name): value for name, value in state.items()}
    kernel = translated["layer1.conv1.conv.weight"]
    kernel = (kernel / (255 * torch.tensor(IMAGENET_STD)).view(1, 3, 1, 1)).flip(1)
    offset = torch.tensor(MEAN_BGR) - 255 * torch.tensor(IMAGENET_MEAN).flip(0)
    mean = translated["layer1.conv1.bn.running_mean"]
    translated["layer1.conv1.conv.weight"] = kernel
    translated["layer1.conv1.bn.running_mean"] = mean - (kernel.sum((2, 3)) * offset).sum(1)
    return translated


_UNITS = {"1": "reduce", "2": "conv3x3", "3": "increase"}
_DOWNSAMPLE = {"0": "conv", "1": "bn"}


def _translate(name: str) -> str:
    """torchvision's name of a parameter of ResNet-101 -> the reference name; others are unchanged."""
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"layer1.conv1.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"layer([1-4])\.(\d+)\.(conv|bn)([123])\.(\w+)", name):
        return f"layer{int(match[1]) + 1}.block{int(match[2]) + 1}.{_UNITS[match[4]]}.{match[3]}.{match[5]}"
    if match := re.fullmatch(r"layer([1-4])\.(\d+)\.downsample\.([01])\.(\w+)", name):
        return f"layer{int(match[1]) + 1}.block{int(match[2]) + 1}.shortcut.{_DOWNSAMPLE[match[3]]}.{match[4]}"
    return name


class MultiScale(nn.Module):
    """A network on the image, on smaller ones, and the pixel-wise maximum of their logits (Chen et al., 2018)."""

    def __init__(self, base: DeepLabV2, scales: Sequence[float] = SCALES) -> None:
        """`scales`: those beside 1."""
        super().__init__()
        self.base = base
        self.scales = tuple(scales)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> logits at scale 1, at each of `scales`, and their maximum at the size of the first.

        A scaled image has floor(H * scale) rows, at least one; resizing is bilinear.
        """
        logits = [self.base(x)]
        for scale in self.scales:
            size = [max(1, int(side * scale)) for side in x.shape[-2:]]
            logits.append(self.base(F.interpolate(x, size=size, mode="bilinear", align_corners=False)))
        largest = logits[0]
        for smaller in logits[1:]:
            largest = torch.maximum(largest, _resize(smaller, logits[0].shape[-2:]))
        return [*logits, largest]

    @torch.no_grad()
    def probabilities(self, x: Tensor, flip: bool = False, window: int | None = None) -> Tensor:
        """One image (3, H, W) normalised -> (C + 1, H, W) float32 softmax of its upsampled logits.

        With `flip`, the logits are the mean of the image's and of its horizontal flip's, flipped back. With
        `window`, those of a pixel are the mean over the windows that hold it, see `windows`.
        """
        height, width = x.shape[-2:]
        if window is None:
            return torch.softmax(self._full_logits(x, flip), dim=0)
        total = count = torch.zeros((), device=x.device)
        for rows, columns in windows(height, width, window):
            logits = self._full_logits(x[:, rows, columns], flip)
            if not total.ndim:
                total = logits.new_zeros((len(logits), height, width))
                count = logits.new_zeros((height, width))
            total[:, rows, columns] += logits
            count[rows, columns] += 1
        return torch.softmax(total / count, dim=0)

    def _full_logits(self, x: Tensor, flip: bool) -> Tensor:
        """(3, H, W) -> (C + 1, H, W) float32 logits."""
        images = torch.stack([x, x.flip(-1)]) if flip else x[None]
        logits = torch.cat([self(image)[-1].float() for image in batches(images)])
        full = _resize(logits, x.shape[-2:])
        return (full[0] + full[1].flip(-1)) / 2 if flip else full[0]


def windows(height: int, width: int, side: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the square windows over an image, as few as overlap by a third of their side at least.

    They lie evenly from edge to edge; along a side of the image that is shorter, a window has that length.
    """

    def along(length: int) -> list[slice]:
        step = max(1, side * 2 // 3)
        count = max(0, -(-(length - side) // step)) + 1
        starts = [k * max(0, length - side) // max(1, count - 1) for k in range(count)]
        return [slice(start, min(start + side, length)) for start in starts]

    return [(rows, columns) for rows in along(height) for columns in along(width)]


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def learning_rate_groups(net: DeepLabV2, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of the reference training: features at `lr`, ASPP weights at ten times that, biases at twenty.

    The biases of the ASPP do not decay; batch norms are in no group.
    """
    weights = [parameter for name, parameter in net.aspp.named_parameters() if name.endswith("weight")]
    biases = [parameter for name, parameter in net.aspp.named_parameters() if name.endswith("bias")]
    classifier = {id(parameter) for parameter in net.aspp.parameters()}
    features = [p for p in net.parameters() if p.requires_grad and id(p) not in classifier]
    return [
        {"params": features, "lr": lr, "weight_decay": weight_decay},
        {"params": weights, "lr": 10 * lr, "weight_decay": weight_decay},
        {"params": biases, "lr": 20 * lr, "weight_decay": 0.0},
    ]
