"""Import of outputs of the reference implementations' folders, from which later stages continue."""

from collections.abc import Callable
from pathlib import Path

from amn_fast.config import Config
from amn_fast.data.base import list_ids
from amn_fast.data.image import read_mask
from amn_fast.data.masks import check_labels, write_mask
from amn_fast.data.names import find_files
from amn_fast.data.published import read_published
from amn_fast.data.store import write_activations
from amn_fast.errors import InputError
from amn_fast.models import AmnNet, CamNet, DeepLabV2, IrnNet, MultiScale, load_published
from amn_fast.models.published import Net
from amn_fast.pipeline.contents import digest
from amn_fast.pipeline.dependencies import ids_of, input_names, inputs_of
from amn_fast.pipeline.engine import console, for_each
from amn_fast.pipeline.folder import Workspace, only_one_run
from amn_fast.pipeline.records import Inputs
from amn_fast.pipeline.runner import Status, commit, loss_of, prepare, status_of, validate
from amn_fast.pipeline.staging import Staging
from amn_fast.pipeline.table import CLASSES, IMAGE, LABELS, Stage, ancestors, producer, stage_named, upstream
from amn_fast.pipeline.training import save_weights
from amn_fast.steps.items import checked_labels

New = Callable[[Path], Path]


def import_before(config: Config, folder: Path, name: str, *, overwrite: bool = False) -> None:
    """Put what a reference implementation left in `folder` in place of the outputs of the stages before stage `name`.

    Read are `result/cam`, `result/ir_label`, `result/amn_cam`, `result/amn_ir_label` and the weights
    `sess/*cam.pth`, `sess/*amn.pth`, `sess/*irn.pth`, as far as they are there. The run folder gets them in the form
    of this package, activations in half precision with the maps at full size, and a record of their origin. What has
    been imported is not imported again.

    Raises:
        InputError: nothing that the stage needs is there; a file is missing for an image of the data set, damaged, or
            does not fit; or the run folder holds other outputs of these stages, or overlaps `folder`.
    """
    stage, work = stage_named(name), Workspace(config)
    places = {earlier: place for earlier in ancestors(stage) if (place := find(folder, earlier)) is not None}
    for needed in upstream(stage, input_names(config, stage)):
        if needed not in places and work.record(needed) is None and needed.imported and needed.reference:
            raise InputError(f"{folder}: holds no {needed.reference}, which {stage.name} continues from")
    _import(work, places, folder, overwrite)


def import_segmentation(config: Config, weights: Path, *, overwrite: bool = False) -> None:
    """Put weights of DeepLabV2 from a .pth file in place of the trained segmentation network.

    Raises:
        InputError: the file is missing, damaged or does not fit the network; or the run folder holds other weights.
    """
    stage = producer("weights/seg.safetensors")
    assert stage is not None
    _import(Workspace(config), {stage: weights}, weights, overwrite)


def _import(work: Workspace, places: dict[Stage, Path], source: Path, overwrite: bool) -> None:
    validate(work, list(places), {"source of the import": source})
    for stage, place in places.items():
        _check_complete(work, stage, place)
    origin = str(source.resolve())
    with only_one_run(work.root):
        due = {}
        for stage, place in places.items():
            found = _status(work, stage)
            if found.record is not None and found.record.measured.get("from") == origin and found.up_to_date:
                continue
            if found.record is not None and not overwrite:
                if found.record.measured.get("from") != origin:
                    raise InputError(
                        f"run folder {work.root} holds other outputs of {stage.name}, expected an empty one as --run;"
                        " or pass --overwrite to replace them"
                    )
                if loss := loss_of(work, stage, found):
                    raise InputError(loss)
            due[stage] = place, found
        for stage, (place, found) in due.items():
            _import_stage(work, stage, place, found, origin)


def _status(work: Workspace, stage: Stage) -> Status:
    """The stage's status; its items are due for the images that they are imported for."""
    found = status_of(work, stage)
    found.inputs = {id: _imported_for(work, stage, id) for id in ids_of(work, stage)}
    return found


def _imported_for(work: Workspace, stage: Stage, id: str) -> Inputs:
    """The inputs of an item that come from the data set: an import stands for these images."""
    inputs = inputs_of(work, stage, id)
    return {name: value for name, value in inputs.items() if name.split(":")[0] in (IMAGE, LABELS, CLASSES)}


def _import_stage(work: Workspace, stage: Stage, place: Path, found: Status, origin: str) -> None:
    prepare(work, stage)
    console.print(f"{stage.name}: imported from {place}")
    work.log("import", stage=stage.name, source=origin)
    staging = Staging(work.root, stage, work.contents)
    staging.clear()
    found.due = list(found.inputs)
    keys = {id: digest([origin, inputs]) for id, inputs in found.inputs.items()}
    staging.begin(keys, found.record)
    if stage.per_image:
        one = _importer(work, stage, place, staging.new)

        def imported(id: str) -> None:
            one(id)
            staging.finish(id, keys[id])

        for_each(stage.name, found.due, imported)
    else:
        name = _network_of(stage)
        net = NETWORKS[name](work)
        load_published(place, net.base if isinstance(net, MultiScale) else net)
        save_weights(staging.new(work.weights(name)), net)
        staging.finish("", keys[""])
    commit(work, stage, staging, found, {"from": origin})


def find(folder: Path, stage: Stage) -> Path | None:
    """A stage's output in a reference folder, if it is there and can be imported.

    `.pth.pth` is how the reference implementation's default name of a weight file ends.
    """
    if not stage.reference or not stage.imported:
        return None
    found = sorted(folder.glob(stage.reference))
    if "*" in stage.reference:
        found += sorted(folder.glob(f"{stage.reference}.pth"))
    if len(found) > 1:
        names = " and ".join(sorted(path.name for path in found))
        raise InputError(f"{folder}: holds {names} for {stage.reference}, expected one file")
    return found[0] if found else None


def _check_complete(work: Workspace, stage: Stage, place: Path) -> None:
    """Check before anything is read that every image has its file."""
    if not stage.per_image:
        return
    suffix = _reference_suffix(stage)
    files = find_files(place, {suffix}, "files")
    missing = [id for id in work.dataset.ids if id not in files]
    if missing:
        raise InputError(f"{place}: {list_ids(missing)} without a file ID{suffix}")


def _reference_suffix(stage: Stage) -> str:
    return ".npy" if stage.outputs[0].endswith(".npz") else ".png"


def _importer(work: Workspace, stage: Stage, place: Path, new: New) -> Callable[[str], None]:
    kind, n_classes = stage.outputs[0].split("/")[0], len(work.dataset.classes)
    files = find_files(place, {_reference_suffix(stage)}, "files")  # by id, whatever Unicode form the names have

    def activations(id: str) -> None:
        height, width = work.dataset.image(id).shape[:2]
        found = read_published(files[id], lambda _: (height, width), work.dataset.labels(id))
        if found.size != (height, width):
            raise InputError(f"{files[id]} has maps of {found.size}, expected the image's size {(height, width)}")
        write_activations(new(work.item(kind, id)), found)

    def label_map(id: str) -> None:
        path, size = files[id], work.dataset.image(id).shape[:2]
        seed = checked_labels(read_mask(path), size, n_classes, f"seed {path}")
        check_labels(path, seed, work.dataset.labels(id), work.dataset.classes)
        write_mask(new(work.item(kind, id)), seed)

    return activations if stage.outputs[0].endswith(".npz") else label_map


def _network_of(stage: Stage) -> str:
    return Path(stage.outputs[0]).stem


NETWORKS: dict[str, Callable[[Workspace], Net | MultiScale]] = {
    "cam": lambda work: CamNet(len(work.dataset.classes), work.config.backbone),
    "amn": lambda work: AmnNet(len(work.dataset.classes), work.config.backbone),
    "irn": lambda work: IrnNet(work.config.backbone),
    "seg": lambda work: MultiScale(
        DeepLabV2(len(work.dataset.classes), work.config.train_seg.backbone), work.config.train_seg.scales
    ),
}
"""The networks of a run, by the names of their weights, with random values."""
