"""train-seg: the segmentation network learns from the pseudo-masks, or from any folder of masks.

Under torchrun several processes train it together, each on its share of every batch: the losses are means over the
pixels of all shares, and the gradients are summed, so that the weights are those of one process on the same batches.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amn_fast._info import package_version
from amn_fast.config import Config
from amn_fast.data.base import list_ids
from amn_fast.errors import InputError
from amn_fast.models import DeepLabV2, MultiScale
from amn_fast.models.deeplab import learning_rate_groups
from amn_fast.nn import over_group
from amn_fast.ops.pixel_loss import pixel_sums
from amn_fast.stages import make_mask
from amn_fast.stages._pictures import MaskPictures
from amn_fast.stages._processes import Processes, joined
from amn_fast.stages._stage import Stage, Workspace, make_deterministic
from amn_fast.stages._training import train


def multi_scale_loss(logits: Sequence[Tensor], labels: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of the mean cross entropies at all scales.

    Args:
        logits: (B, C + 1, h, w) each, of any sizes.
        labels: (B, H, W) uint8, sampled to each size by Pillow's nearest rule; 255 does not count, and logits without
            a pixel that counts add 0.
        group: processes with a share of the batch each: the means are over the pixels of all shares, and the
            gradients, averaged over the processes, those of the whole batch.
    """
    found = [pixel_sums(one, labels, eps=0) for one in logits]
    sums, counts = (torch.stack(part).sum(1) for part in zip(*found, strict=True))
    if group is not None:
        sums, counts = over_group(sums, counts, group)
    return (sums / counts.clamp(min=1)).sum()


def masks_folder(work: Workspace) -> Path:
    """The masks to learn from; every picture has one.

    Raises:
        InputError: masks are missing.
    """
    folder = work.config.train_seg.masks or work.root / "masks"
    missing = [id for id in work.dataset.ids if not (folder / f"{id}.png").is_file()]
    if missing:
        raise InputError(f"{folder}: {list_ids(missing)} of {len(work.dataset.ids)} have no mask")
    return folder


def _train(work: Workspace, processes: Processes) -> None:
    settings, dataset, folder = work.config.train_seg, work.dataset, masks_folder(work)
    torch.manual_seed(work.config.seed)
    base = DeepLabV2(len(dataset.classes), settings.backbone, settings.weights)
    net = MultiScale(base, settings.scales).to(work.device)
    optimizer = torch.optim.SGD(
        learning_rate_groups(base, settings.lr, settings.weight_decay), lr=settings.lr, momentum=settings.momentum
    )
    pictures = MaskPictures(dataset, folder, base.normalize, settings.crop, settings.rescale, work.config.seed)

    def loss_of(batch: list[Tensor]) -> Tensor:
        images, masks = (part.to(work.device, non_blocking=True) for part in batch)
        return multi_scale_loss(net(images), masks, processes.group)

    origin = "" if processes.rank else json.dumps(_origin(work, folder, net, processes.count))
    train(work, "seg", net, optimizer, pictures, len(dataset.ids), settings, loss_of, processes, origin)


def _origin(work: Workspace, folder: Path, net: nn.Module, processes: int) -> dict[str, Any]:
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
        "pictures": len(dataset.ids),
        "list_sha256": list_checksum(dataset.ids),
        "masks_sha256": masks.hexdigest(),
        "start_weights_sha256": start.hexdigest(),
        "seed": work.config.seed,
        "processes": processes,
        **{name: package_version(name) for name in ("amn-fast", "torch")},
    }


def list_checksum(ids: Sequence[str]) -> str:
    """SHA-256 of a list of pictures: of the file that holds its ids, one a line."""
    return hashlib.sha256("".join(f"{id}\n" for id in ids).encode()).hexdigest()


def stage_for(config: Config, processes: Processes | None = None) -> Stage:
    """The stage: it needs make-mask's masks, unless `train_seg.masks` names a folder.

    A named folder counts by its name: when its masks change, remove weights/seg.safetensors to train again.
    """
    processes = processes or Processes()

    def work(workspace: Workspace) -> None:
        processes.tell(True)
        _train(workspace, processes)

    return Stage(
        name="train-seg",
        uses=("train_seg",),
        needs=() if config.train_seg.masks else (make_mask.stage,),
        makes=("weights/seg.safetensors", "weights/seg.checkpoint.pt"),
        work=work,
        together=True,
    )


def run(config: Config) -> bool:
    """Run the stage, see `Stage.run`, with the other processes that torchrun has started, if any."""
    with joined(Workspace(config).device) as processes:
        if processes.rank > 0:
            return _follow(config, processes)
        try:
            return stage_for(config, processes).run(config)
        finally:
            processes.tell(False)


def _follow(config: Config, processes: Processes) -> bool:
    begin = processes.told()
    if begin:
        make_deterministic()
        _train(Workspace(config), processes)
    return begin
