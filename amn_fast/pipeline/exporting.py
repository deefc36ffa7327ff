"""Export of a run's outputs to the layout of the reference implementations, from which their steps continue."""

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
from amn_fast.files import write_atomically, write_json
from amn_fast.models import MultiScale, published_state_dict
from amn_fast.pipeline.dependencies import input_names, stages_of
from amn_fast.pipeline.engine import for_each
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.importing import NETWORKS
from amn_fast.pipeline.runner import status_of
from amn_fast.pipeline.table import Stage, upstream
from amn_fast.pipeline.training import load_weights

REFERENCE_BACKBONE = "resnet50"
LABELS = "cls_labels.npy"
MARKER = "export.json"
"""Tells a folder of exports from one of the reference implementations."""


def export(config: Config, folder: Path) -> dict[str, str]:
    """Write the outputs of a run in the layout of the reference implementations.

    Every stage that is up to date under `config` is written: `sess/res50_{cam,amn,irn}.pth`, `result/cam`, `ir_label`,
    `amn_cam`, `amn_ir_label` and `sem_seg` (grey PNGs of ids: the reference code reads a palette as colours), and
    `cls_labels.npy`. Files of an earlier export are replaced, each at once.

    Returns:
        by place, "written" or why it is not there.

    Raises:
        InputError: no stage is up to date under this configuration, a file of the run is damaged, or `folder` holds
            such files that no export wrote.
    """
    work = Workspace(config)
    stages = [stage for stage in stages_of(config) if stage.reference]
    done: set[Stage] = set()
    for stage in stages:
        found = status_of(work, stage)
        stands_alone = found.record is not None and found.record.imported
        needed = [before for before in upstream(stage, input_names(config, stage)) if before.reference]
        if found.up_to_date and (stands_alone or done.issuperset(needed)):
            done.add(stage)
    if not done:
        raise InputError(f"run folder {config.run} holds no finished stage under this configuration, nothing to export")
    places = {stage: stage.reference.replace("*", "res50_") for stage in stages}
    present = [place for place in (*places.values(), LABELS) if (folder / place).exists()]
    if present and not (folder / MARKER).exists():
        raise InputError(f"{folder}: holds {', '.join(present)} that no export wrote, expected another folder")
    write_json(folder / MARKER, {"made_by": "amn-fast", "run": str(config.run.absolute())})
    outcome = {}
    for stage, place in places.items():
        if stage not in done:
            outcome[place] = f"{stage.name} is not done"
        elif place.endswith(".pth") and config.backbone != REFERENCE_BACKBONE:
            outcome[place] = f"the published networks are {REFERENCE_BACKBONE}, and this is {config.backbone}"
        else:
            _write(work, stage, folder / place)
            outcome[place] = "written"
    outcome[LABELS] = _write_labels(work, folder / LABELS)
    return outcome


def _write(work: Workspace, stage: Stage, place: Path) -> None:
    path = Path(stage.outputs[0])
    if path.suffix == ".safetensors":
        net = NETWORKS[path.stem](work)
        assert not isinstance(net, MultiScale)
        load_weights(work.root / path, net)
        write_atomically(place, partial(torch.save, published_state_dict(net)))
        return
    kind = path.parts[0]
    one: Callable[[str], None]
    if path.suffix == ".npz":

        def one(id: str) -> None:
            found = read_activations(work.item(kind, id))
            write_published(place / f"{id}.npy", found, background=kind == "amn")

    else:

        def one(id: str) -> None:
            write_mask(place / f"{id}.png", read_mask(work.item(kind, id)), palette=False)

    for_each(kind, work.dataset.ids, one)


def _write_labels(work: Workspace, place: Path) -> str:
    labels = {id: work.dataset.labels(id) for id in work.dataset.ids}
    try:
        write_labels(place, labels, work.dataset.classes, labels)
    except InputError as error:
        return str(error)
    return "written"
