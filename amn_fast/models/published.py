"""Checkpoints of the reference implementations of CAM, AMN, IRN and DeepLabV2: their names, read and written.

IRN's and AMN's networks register most modules several times, so that a state dict has one tensor under up to three
names: the backbone under `resnet50.*`, `stageN.*` and `backbone.N.*`, the new layers under their own names and in the
lists `newly_added`, `edge_layers` and `dp_layers`. The names are listed, with shapes, in
`tests/golden/amn/state_dict_keys.json`. DeepLabV2 has the names of its reference; the multi-scale wrapper puts `base.`
before them.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from amn_fast.errors import InputError
from amn_fast.models.amn import AmnNet
from amn_fast.models.backbone import _ResNet, read_state_dict
from amn_fast.models.cam import CamNet
from amn_fast.models.deeplab import PUBLISHED, DeepLabV2
from amn_fast.models.irn import IrnNet

Net = CamNet | AmnNet | IrnNet | DeepLabV2

_SHOWN = 5
_IMAGENET_CLASSIFIER = ("resnet50.fc.weight", "resnet50.fc.bias")
_LISTS = {"classifier": "newly_added.0", "label_enc": "newly_added.1"}
_STAGES = {"conv1": "1.0", "bn1": "1.1", "layer1": "1.4", "layer2": "2.0", "layer3": "3.0", "layer4": "4.0"}
_IRN_STAGES = {"conv1": "1.0", "bn1": "1.1", "layer1": "2.0", "layer2": "3.0", "layer3": "4.0", "layer4": "5.0"}
_BUFFERS = ("num_batches_tracked", "mean_shift.running_mean")


def load_published(path: str | Path, net: Net) -> None:
    """Load a checkpoint of the reference CAM, AMN, IRN or DeepLabV2 into `net`; nothing in the file is executed.

    The file may hold a tensor under any or all of its reference names, all with DataParallel's `module.` before them.
    Counters of batch norms and IRN's mean displacement may be missing, as in files of older versions, and are then 0;
    ImageNet's classifier (`resnet50.fc`) is left aside. Any other name that is missing or not known is an error, and
    the network is then left as it was.

    Args:
        path: a .pth, .pt or .safetensors file with a state dict, for any number of classes (VOC 20, COCO 80).
        net: `CamNet`, `AmnNet` or `IrnNet` on the backbone "resnet50", or `DeepLabV2` on "resnet101"; its number of
            classes must be the file's.

    Raises:
        InputError: the file is missing, damaged or holds anything but tensors by name; it belongs to another number of
            classes; names are missing, unknown, of another shape or not finite, or names of one tensor disagree: the
            message counts them and lists the first.
    """
    names = published_names(net)
    state = _without_prefix(read_state_dict(path))
    _check_classes(path, net, state)
    wanted = net.state_dict()
    found: dict[str, Tensor] = {}
    missing, misfits, disagreeing = [], [], []
    for name, aliases in names.items():
        present = [alias for alias in aliases if alias in state]
        if not present:
            found[name] = torch.zeros_like(wanted[name])
            if not aliases[0].endswith(_BUFFERS):
                missing.append(aliases[0])
            continue
        found[name] = state[present[0]]
        misfits += [f"{a} {problem}" for a in present if (problem := _misfit(state[a], wanted[name]))]
        disagreeing += [f"{present[0]} and {a}" for a in present[1:] if not torch.equal(state[a], found[name])]
    known = {alias for aliases in names.values() for alias in aliases}.union(_IMAGENET_CLASSIFIER)
    problems = {
        "missing": missing,
        "unknown": [name for name in state if name not in known],
        "not as expected": misfits,
        "two names of one tensor that disagree": [] if misfits else disagreeing,
    }
    if any(problems.values()):
        lists = "; ".join(f"{title}: {_listed(items)}" for title, items in problems.items() if items)
        raise InputError(f"published weights {path} do not fit {type(net).__name__}: {lists}")
    net.load_state_dict(found)


def published_state_dict(net: Net) -> dict[str, Tensor]:
    """The weights of `net` under all their reference names, for `torch.save` and strict loading by IRN's or AMN's code.

    Names of one tensor share its memory, which `torch.save` stores once. For `net` on the reference backbone; the
    names of DeepLabV2 are those of the multi-scale wrapper.

    Raises:
        InputError: the backbone is another one.
    """
    state = net.state_dict()
    names = published_names(net)
    if isinstance(net, DeepLabV2):
        return {aliases[0]: state[name] for name, aliases in names.items()}
    return {alias: state[name] for name, aliases in names.items() for alias in aliases}


def published_names(net: Net) -> dict[str, tuple[str, ...]]:
    """The reference names of each tensor in `net`'s state dict, by its name here; the first name first.

    Raises:
        InputError: the backbone is not the reference one, "resnet50" or, for DeepLabV2, "resnet101".
    """
    if isinstance(net, DeepLabV2):
        if net.backbone_name != PUBLISHED:
            raise InputError(f"published weights belong to the backbone {PUBLISHED!r}, and the network has another one")
        return {name: (f"base.{name}", name) for name in net.state_dict()}
    if not isinstance(net.backbone, _ResNet):
        raise InputError("published weights belong to the backbone 'resnet50', and the network has another one")
    stages = _IRN_STAGES if isinstance(net, IrnNet) else _STAGES
    return {name: _aliases(name, stages) for name in net.state_dict()}


def _aliases(name: str, stages: dict[str, str]) -> tuple[str, ...]:
    """All reference names of the tensor called `name` here."""
    if name.startswith("backbone.net."):
        name = name.removeprefix("backbone.net.")
        module, rest = name.split(".", 1)
        stage, place = stages[module].split(".")
        return f"resnet50.{name}", f"stage{stage}.{place}.{rest}", f"backbone.{int(stage) - 1}.{place}.{rest}"
    if match := re.fullmatch(r"(edge|dp)_layers\.(\d)\.(.+)", name):
        kind, number, rest = match[1], int(match[2]), match[3]
        if kind == "dp" and number == 7:
            # The seventh layer there holds the last two here: its convolution is number 3, the mean shift number 4.
            number, rest = 6, {"0.weight": "3.weight", "1.running_mean": "4.running_mean"}[rest]
        names = f"fc_{kind}{number + 1}.{rest}", f"{kind}_layers.{number}.{rest}"
        return ("mean_shift.running_mean", *names) if rest.endswith("running_mean") else names
    module, rest = name.split(".", 1)
    return name, f"{_LISTS[module]}.{rest}"


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without DataParallel's prefix."""
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _check_classes(path: str | Path, net: Net, state: dict[str, Tensor]) -> None:
    """Say plainly what else would be a list of shapes: the file is for another number of classes."""
    if isinstance(net, IrnNet):
        return
    names, background = (("classifier.weight", "newly_added.0.weight"), 0)
    if isinstance(net, AmnNet):
        names, background = (("classifier.1.c0.weight", "newly_added.0.1.c0.weight"), 1)
    if isinstance(net, DeepLabV2):
        names, background = (("base.aspp.c0.weight", "aspp.c0.weight"), 1)
    for name in names:
        if name in state and state[name].ndim == 4 and len(state[name]) != net.n_classes + background:
            raise InputError(
                f"published weights {path} are for {len(state[name]) - background} classes,"
                f" expected {net.n_classes}, as the network has"
            )


def _misfit(value: Tensor, wanted: Tensor) -> str:
    """What is wrong with a tensor of the file, or nothing."""
    if value.shape != wanted.shape:
        return f"has shape {tuple(value.shape)} instead of {tuple(wanted.shape)}"
    if value.is_floating_point() != wanted.is_floating_point():
        return f"is {value.dtype} instead of {wanted.dtype}"
    return "" if torch.isfinite(value).all() else "holds NaN or infinity"


def _listed(items: Sequence[str]) -> str:
    return f"{len(items)} ({', '.join(items[:_SHOWN])}{', ...' if len(items) > _SHOWN else ''})"
