"""Stages that train a network: they build it, its optimizer and its training items, and call the training loop."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amn_fast._info import package_version
from amn_fast.data.image import read_mask
from amn_fast.models import AmnNet, CamNet, DeepLabV2, IrnNet, MultiScale
from amn_fast.pipeline.engine import track
from amn_fast.pipeline.fitting import fit_heads, fit_linear_cam
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.training import RunningMean, load_weights, read_divisor, read_losses, save_weights, train
from amn_fast.steps import amn, cam, health, irn, seg
from amn_fast.steps.convergence import guessing_loss
from amn_fast.steps.items import ClassifierDataset, MaskDataset, SeedDataset

New = Callable[[Path], Path]


def train_cam(work: Workspace, new: New) -> None:
    """Train the classifier, or fit its last layer."""
    config, dataset, settings = work.config, work.dataset, work.config.train_cam
    if settings.kind == "linear":
        fit_linear_cam(work, new)
        return
    torch.manual_seed(config.seed)
    net = CamNet(len(dataset.classes), config.backbone, config.weights).to(work.device)
    items = ClassifierDataset(dataset, net.backbone.normalize, settings.crop, settings.long_side, config.seed)
    right = RunningMean(work.device, work.processes)

    def loss_of(batch: list[Tensor]) -> Tensor:
        images, labels = _on_device(work, batch)
        loss, all_right = cam.loss(net, images, labels, work.processes.group)
        right.add(all_right)
        return loss

    optimizer = cam.optimizer(net, settings)
    guess = guessing_loss(np.array([dataset.labels(id) for id in dataset.ids]))
    train(work, new, "cam", net, optimizer, items, settings, loss_of, figures={"accuracy": right}, guess=guess)
    if work.processes.rank > 0:
        return
    losses, divisor = read_losses(work, "cam"), read_divisor(work, "cam")
    found = health.classifier(losses, guess, divisor, settings.lr, settings.new_lr, len(dataset.ids))
    if found is not None:  # said now, before the hours that the next stages may take
        work.tell(found)


def train_amn(work: Workspace, new: New) -> None:
    """Train AMN, or fit linear heads, on the seeds of the CAM."""
    config, dataset, settings = work.config, work.dataset, work.config.train_amn
    seeds = partial(_read_seed, work.root / "cam_seed", config.trusted)
    if settings.kind == "heads":
        if work.processes.rank == 0:  # there is nothing to share
            fit_heads(work, new, seeds)
        return
    torch.manual_seed(config.seed)
    net = AmnNet(len(dataset.classes), config.backbone, config.weights).to(work.device)
    items = SeedDataset(dataset, seeds, net.backbone.normalize, settings.crop, settings.rescale, config.seed)
    train(
        work, new, "amn", net, amn.optimizer(net, settings), items, settings,
        lambda batch: amn.loss(net, *_on_device(work, batch), eps=settings.eps, group=work.processes.group),
    )  # fmt: skip


def train_irn(work: Workspace, new: New) -> None:
    """Train IRN on the seeds of AMN, and keep the mean displacement of all images in its weights."""
    config, dataset, settings = work.config, work.dataset, work.config.train_irn
    torch.manual_seed(config.seed)
    net = IrnNet(config.backbone, config.weights).to(work.device)
    seeds = partial(_read_seed, work.root / "amn_seed", config.trusted)
    items = SeedDataset(dataset, seeds, net.backbone.normalize, settings.crop, settings.rescale, config.seed)
    train(
        work, new, "irn", net, irn.optimizer(net, settings), items, settings,
        lambda batch: irn.loss(net, *_on_device(work, batch)[:2], settings=settings, group=work.processes.group),
    )  # fmt: skip
    if settings.displacement and work.processes.rank == 0:
        weights = new(work.weights("irn"))
        load_weights(weights, net)
        _store_mean_displacement(work, net)
        save_weights(weights, net)


def _store_mean_displacement(work: Workspace, net: IrnNet) -> None:
    """The mean over all training images of the displacement field, each image at its size and counting once."""
    net.eval()
    net.mean_displacement.zero_()
    total = torch.zeros(2, dtype=torch.float64)
    for id in track("mean displacement", work.dataset.ids, len(work.dataset.ids)):
        total += irn.mean_displacement(net, work.dataset.image(id), work.config.train_irn.crop, work.device)
    net.mean_displacement.copy_(total / len(work.dataset.ids))


def train_seg(work: Workspace, new: New) -> None:
    """Train the segmentation network on the pseudo-masks, or on any folder of masks.

    Under torchrun several processes train it together, each on its share of every batch: the losses are means over the
    pixels of all shares, and the gradients are summed, so that the weights are those of one process on the same
    batches.
    """
    config, dataset, settings = work.config, work.dataset, work.config.train_seg
    folder = settings.masks or work.root / "masks"
    torch.manual_seed(config.seed)
    base = DeepLabV2(len(dataset.classes), settings.backbone, settings.weights)
    net = MultiScale(base, settings.scales).to(work.device)
    masks = partial(_read_labels, folder)
    items = MaskDataset(dataset, masks, base.normalize, settings.crop, settings.rescale, config.seed)

    def loss_of(batch: list[Tensor]) -> Tensor:
        images, labels = _on_device(work, batch)
        return seg.multi_scale_loss(net(images), labels, work.processes.group)

    origin = "" if work.processes.rank else json.dumps(_origin(work, folder, net))
    train(work, new, "seg", net, seg.optimizer(base, settings), items, settings, loss_of, origin)


def _origin(work: Workspace, folder: Path, net: nn.Module) -> dict[str, Any]:
    """What the training depends on, for the file of weights; called before the first step."""
    dataset = work.dataset
    masks = hashlib.sha256()
    for id in dataset.ids:
        masks.update(hashlib.sha256((folder / f"{id}.png").read_bytes()).digest())
    start = hashlib.sha256()
    for value in net.state_dict().values():
        start.update(value.cpu().contiguous().numpy().tobytes())
    return {
        "data": work.config.data.model_dump(mode="json", exclude={"root"}),
        "images": len(dataset.ids),
        "list_sha256": list_checksum(dataset.ids),
        "masks_sha256": masks.hexdigest(),
        "start_weights_sha256": start.hexdigest(),
        "seed": work.config.seed,
        "processes": work.processes.count,
        **{name: package_version(name) for name in ("amn-fast", "torch")},
    }


def list_checksum(ids: Sequence[str]) -> str:
    """SHA-256 of a list of images: of the file that holds its ids, one a line."""
    return hashlib.sha256("".join(f"{id}\n" for id in ids).encode()).hexdigest()


def _read_seed(folder: Path, trusted: Path | None, id: str) -> NDArray[np.uint8]:
    """The trusted mask of an image in the place of its seed, where there is one."""
    if trusted is not None and (trusted / f"{id}.png").is_file():
        folder = trusted
    return _read_labels(folder, id)


def _read_labels(folder: Path, id: str) -> NDArray[np.uint8]:
    return read_mask(folder / f"{id}.png")


def _on_device(work: Workspace, batch: list[Tensor]) -> list[Tensor]:
    """The batch on the device; images (B, 3, S, S) lie channels last, as the networks' weights do."""
    layouts = [torch.channels_last if part.ndim == 4 else torch.preserve_format for part in batch]
    return [
        part.to(work.device, non_blocking=True, memory_format=layout)
        for part, layout in zip(batch, layouts, strict=True)
    ]
