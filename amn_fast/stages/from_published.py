"""Take the outputs of earlier stages from a folder of the published code, for a stage of ours to go on from."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from amn_fast.config import Config
from amn_fast.data.base import list_ids
from amn_fast.data.masks import check_labels, write_mask
from amn_fast.data.published import read_published
from amn_fast.data.store import write_activations
from amn_fast.errors import InputError
from amn_fast.models import AmnNet, CamNet, DeepLabV2, IrnNet, MultiScale, load_published
from amn_fast.models.published import Net
from amn_fast.stages import (
    make_amn_cam,
    make_cam,
    refine_amn_seed,
    refine_seed,
    train_amn,
    train_cam,
    train_irn,
    train_seg,
)
from amn_fast.stages._pictures import read_seed
from amn_fast.stages._stage import Stage, Workspace, console
from amn_fast.stages._training import save_weights

Take = Callable[[Workspace, Path], None]


class Source(NamedTuple):
    """Where the published code keeps a stage's output (a folder, or the end of a weight file), and what reads it."""

    stage: Stage
    place: str
    take: Take


def adopt(config: Config, folder: Path, stage: Stage) -> None:
    """Put what the published code left in `folder` in place of the outputs of the stages before `stage`.

    Read are `result/cam`, `result/ir_label`, `result/amn_cam`, `result/amn_ir_label` and the weights
    `sess/*cam.pth`, `sess/*amn.pth`, `sess/*irn.pth`, as far as they are there. `config.run` gets them in our form,
    activations in half precision with the maps at full size, and a record of their origin. What was taken already is
    not taken again.

    Raises:
        InputError: nothing that `stage` needs is there; a file is missing for a picture of the data set, damaged, or
            does not fit; or the run folder holds other outputs of these stages.
    """
    work, origin = Workspace(config), str(folder.resolve())
    earlier = _before(stage)
    sources = [(source, place) for source in SOURCES if source.stage in earlier and (place := _find(folder, source))]
    for source, place in sources:
        _adopt(source, work, place, origin)
    found = {source.stage.name for source, _ in sources}
    for source in SOURCES:
        if source.stage in stage.needs and source.stage.name not in found:
            raise InputError(f"{folder}: holds no {source.place}, which {stage.name} goes on from")


def adopt_segmentation(config: Config, weights: Path) -> None:
    """Put published weights of DeepLabV2, a .pth file, in place of train-seg's, for eval-seg.

    Raises:
        InputError: the file is missing, damaged or does not fit the network; or the run folder holds other weights.
    """

    def take(work: Workspace, place: Path) -> None:
        base = DeepLabV2(len(work.dataset.classes), config.train_seg.backbone)
        load_published(place, base)
        save_weights(work.weights("seg"), MultiScale(base, config.train_seg.scales))

    stage = train_seg.stage_for(config)
    _adopt(Source(stage, weights.name, take), Workspace(config), weights, str(weights.resolve()))


def _adopt(source: Source, work: Workspace, place: Path, origin: str) -> None:
    """Let a source take the place of its stage's outputs, if it has not yet."""
    record = source.stage.record(work.config)
    failed = "from" in record and not record["done"]  # nothing of it is of use, whatever it was taken from
    if record and not failed and record.get("from") != origin:
        raise InputError(
            f"run folder {work.root} holds other outputs of {source.stage.name}, expected an empty one: --run"
        )
    if not source.stage.is_done(work.config):
        console.print(f"{source.stage.name}: taken from {place}")
        source.stage.adopt(work.config, origin, partial(source.take, work, place))


def _before(stage: Stage) -> list[Stage]:
    """The stages that `stage` builds on, at any distance."""
    return [earlier for needed in stage.needs for earlier in (*_before(needed), needed)]


def _find(folder: Path, source: Source) -> Path | None:
    """The folder or the one weight file of a source, if it is there; `.pth.pth` is how the published default ends."""
    found = [*folder.glob(source.place), *(folder.glob(f"{source.place}.pth") if "*" in source.place else [])]
    if len(found) > 1:
        names = " and ".join(sorted(path.name for path in found))
        raise InputError(f"{folder}: holds {names} for {source.place}, expected one file")
    return found[0] if found else None


def _take_activations(kind: str) -> Take:
    def take(work: Workspace, place: Path) -> None:
        _require(work, place, ".npy")

        def one(id: str) -> None:
            height, width = work.dataset.image(id).shape[:2]
            found = read_published(place / f"{id}.npy", lambda _: (height, width), work.dataset.labels(id))
            if found.full.shape[1:] != (height, width) or found.keys.max(initial=0) > len(work.dataset.classes):
                raise InputError(
                    f"{place / id}.npy has labels {found.keys.tolist()} and maps of {found.full.shape[1:]}, expected"
                    f" labels up to {len(work.dataset.classes)} and the picture's {(height, width)}"
                )
            write_activations(work.item(kind, id), found)

        work.for_each(kind.upper(), work.dataset.ids, one)

    return take


def _take_seeds(kind: str) -> Take:
    def take(work: Workspace, place: Path) -> None:
        _require(work, place, ".png")

        def one(id: str) -> None:
            size = work.dataset.image(id).shape[:2]
            seed = read_seed(place / f"{id}.png", size, len(work.dataset.classes))
            check_labels(place / f"{id}.png", seed, work.dataset.labels(id), work.dataset.classes)
            write_mask(work.item(kind, id), seed)

        work.for_each(kind, work.dataset.ids, one)

    return take


def _take_weights(name: str) -> Take:
    def take(work: Workspace, place: Path) -> None:
        net = NETWORKS[name](work)
        load_published(place, net)
        save_weights(work.weights(name), net)

    return take


def _require(work: Workspace, place: Path, suffix: str) -> None:
    """Check before anything is read that every picture has its file."""
    missing = [id for id in work.dataset.ids if not (place / f"{id}{suffix}").is_file()]
    if missing:
        raise InputError(f"{place}: {list_ids(missing)} without a file ID{suffix}")


NETWORKS: dict[str, Callable[[Workspace], Net]] = {
    "cam": lambda work: CamNet(len(work.dataset.classes), work.config.backbone),
    "amn": lambda work: AmnNet(len(work.dataset.classes), work.config.backbone),
    "irn": lambda work: IrnNet(work.config.backbone),
}
"""The networks of a run, by the names of their weights, with random values."""

SOURCES = (
    Source(train_cam.stage, "sess/*cam.pth", _take_weights("cam")),
    Source(make_cam.stage, "result/cam", _take_activations("cam")),
    Source(refine_seed.stage, "result/ir_label", _take_seeds("cam_seed")),
    Source(train_amn.stage, "sess/*amn.pth", _take_weights("amn")),
    Source(make_amn_cam.stage, "result/amn_cam", _take_activations("amn")),
    Source(refine_amn_seed.stage, "result/amn_ir_label", _take_seeds("amn_seed")),
    Source(train_irn.stage, "sess/*irn.pth", _take_weights("irn")),
)
