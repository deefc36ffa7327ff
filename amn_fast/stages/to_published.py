"""Leave a run's outputs as the published code does, for its steps, or another's, to go on from."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from amn_fast.config import Config
from amn_fast.data.image import read_mask
from amn_fast.data.labels import write_labels
from amn_fast.data.masks import write_mask
from amn_fast.data.published import write_published
from amn_fast.data.store import read_activations
from amn_fast.errors import InputError
from amn_fast.files import write_atomically
from amn_fast.models import published_state_dict
from amn_fast.stages import (
    make_amn_cam,
    make_cam,
    make_mask,
    refine_amn_seed,
    refine_seed,
    train_amn,
    train_cam,
    train_irn,
)
from amn_fast.stages._stage import Stage, Workspace
from amn_fast.stages._training import load_weights
from amn_fast.stages.from_published import NETWORKS

Give = Callable[[Workspace, Path], None]
PUBLISHED_BACKBONE = "resnet50"


def export(config: Config, folder: Path) -> dict[str, str]:
    """Write what the run has under the published names: weights, activations, seeds, masks, image-level labels.

    Every stage that is done under `config` is written: `sess/res50_{cam,amn,irn}.pth`, `result/cam`, `ir_label`,
    `amn_cam`, `amn_ir_label` and `sem_seg` (grey PNGs of ids: the published steps read a palette as colours), and
    `cls_labels.npy`. Files that are there are replaced, each at once.

    Returns:
        by place, "written" or why it is not there.

    Raises:
        InputError: no stage is done under this configuration, or a file of the run is damaged.
    """
    work = Workspace(config)
    done = {stage.name for stage, _, _ in TARGETS if stage.is_done(config)}
    if not done:
        raise InputError(f"run folder {config.run} holds no finished stage under this configuration, nothing to export")
    outcome = {}
    for stage, place, give in TARGETS:
        if stage.name not in done:
            outcome[place] = f"{stage.name} is not done"
        elif place.endswith(".pth") and config.backbone != PUBLISHED_BACKBONE:
            outcome[place] = f"the published networks are {PUBLISHED_BACKBONE}, and this is {config.backbone}"
        else:
            give(work, folder / place)
            outcome[place] = "written"
    outcome[LABELS] = _give_labels(work, folder / LABELS)
    return outcome


def _give_activations(kind: str, background: bool) -> Give:
    def give(work: Workspace, place: Path) -> None:
        def one(id: str) -> None:
            write_published(place / f"{id}.npy", read_activations(work.item(kind, id)), background=background)

        work.for_each(kind.upper(), work.dataset.ids, one)

    return give


def _give_masks(kind: str) -> Give:
    def give(work: Workspace, place: Path) -> None:
        def one(id: str) -> None:
            write_mask(place / f"{id}.png", read_mask(work.item(kind, id)), palette=False)

        work.for_each(kind, work.dataset.ids, one)

    return give


def _give_weights(name: str) -> Give:
    def give(work: Workspace, place: Path) -> None:
        net = NETWORKS[name](work)
        load_weights(work.weights(name), net)
        write_atomically(place, partial(torch.save, published_state_dict(net)))

    return give


def _give_labels(work: Workspace, place: Path) -> str:
    labels = {id: work.dataset.labels(id) for id in work.dataset.ids}
    try:
        write_labels(place, labels, work.dataset.classes, labels)
    except InputError as error:
        return str(error)
    return "written"


LABELS = "cls_labels.npy"
TARGETS: tuple[tuple[Stage, str, Give], ...] = (
    (train_cam.stage, "sess/res50_cam.pth", _give_weights("cam")),
    (make_cam.stage, "result/cam", _give_activations("cam", background=False)),
    (refine_seed.stage, "result/ir_label", _give_masks("cam_seed")),
    (train_amn.stage, "sess/res50_amn.pth", _give_weights("amn")),
    (make_amn_cam.stage, "result/amn_cam", _give_activations("amn", background=True)),
    (refine_amn_seed.stage, "result/amn_ir_label", _give_masks("amn_seed")),
    (train_irn.stage, "sess/res50_irn.pth", _give_weights("irn")),
    (make_mask.stage, "result/sem_seg", _give_masks("masks")),
)
