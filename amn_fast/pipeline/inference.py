"""Stages that compute one file or two for each image: they load networks, read inputs and write outputs."""

import functools
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn_fast.config import AUTO
from amn_fast.data.image import read_mask
from amn_fast.data.legend import write_legend
from amn_fast.data.masks import write_mask
from amn_fast.data.store import Activations, as_stored, is_compact, read_activations, read_strided, write_activations
from amn_fast.errors import InputError
from amn_fast.files import retried, write_atomically
from amn_fast.models import AmnNet, CamNet, HeadsNet, IrnNet, prepare
from amn_fast.pipeline.chosen import chosen_mask, chosen_seed
from amn_fast.pipeline.dependencies import exists, inputs_of, item_key, previous_output, settings_of
from amn_fast.pipeline.engine import Warnings, on_device
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.staging import Staging
from amn_fast.pipeline.table import IMAGE, producer, stage_named
from amn_fast.pipeline.training import load_weights
from amn_fast.steps import amn, cam, irn, mask, seed
from amn_fast.steps.items import checked_labels

New = Callable[[Path], Path]
One = Callable[[str], None]
Activate = Callable[[str, NDArray[np.uint8]], Activations]
"""Activations of an image, by its id and pixels."""
Write = Callable[[str, NDArray[np.uint8], Activations], None]
"""Writes the seed or mask of an image, by its id, pixels and activations at full size."""


def make_cam(work: Workspace, new: New) -> One:
    """Class activations of an image."""
    return _make_activations(work, new, "cam", _cam_network(work))


def make_amn_cam(work: Workspace, new: New) -> One:
    """AMN's activations of an image."""
    return _make_activations(work, new, "amn", _amn_network(work))


def refine_seed(work: Workspace, new: New) -> One:
    """Seed of an image from its class activations."""
    return _from_full(work, "cam", _seed_writer(work, new, "cam"))


def refine_amn_seed(work: Workspace, new: New) -> One:
    """Seed of an image from AMN's activations."""
    return _from_full(work, "amn", _seed_writer(work, new, "amn"))


def _cam_network(work: Workspace) -> Activate:
    net = CamNet(len(work.dataset.classes), work.config.backbone).to(work.device)
    load_weights(work.weights("cam"), net)
    net = prepare(net, work.config.precision)

    def activate(id: str, image: NDArray[np.uint8]) -> Activations:
        with on_device(work.device):
            return cam.activate(net, image, work.dataset.labels(id), work.config.cam.scales, work.device)

    return activate


def _amn_network(work: Workspace) -> Activate:
    n_classes = len(work.dataset.classes)
    kind = HeadsNet if work.config.train_amn.kind == "heads" else AmnNet
    net = kind(n_classes, work.config.backbone).to(work.device)
    load_weights(work.weights("amn"), net)
    net = prepare(net, work.config.precision)

    def activate(id: str, image: NDArray[np.uint8]) -> Activations:
        path = work.item("cam_seed", id)
        labels = checked_labels(read_mask(path), image.shape[:2], n_classes, f"seed {path}")
        with on_device(work.device):
            return amn.activate(net, image, work.dataset.labels(id), labels, work.config.amn, work.device)

    return activate


def _make_activations(work: Workspace, new: New, kind: str, activate: Activate) -> One:
    """Write activations; with `store: minimal` those at stride 4 alone, and what is made of those at full size."""
    minimal = work.config.store == "minimal"
    write_ahead = _written_ahead(work, kind) if minimal else None

    def one(id: str) -> None:
        image = work.dataset.image(id)
        found, path = activate(id, image), new(work.item(kind, id))
        write_activations(path, found, compact=minimal)
        if write_ahead is not None:
            write_ahead(id, image, as_stored(found), path)

    return one


def _written_ahead(work: Workspace, kind: str) -> Callable[[str, NDArray[np.uint8], Activations, Path], None] | None:
    """The function that makes a seed or a mask by CRF in the pass of its activations, for its stage to take over.

    It goes to the folder of that stage in work, as if the stage had been killed after this image. None where the
    thresholds are chosen later, from the activations of all images.
    """
    seeds, masks = producer(f"{kind}_seed/{{id}}.png"), producer("masks/{id}.png")
    assert seeds is not None
    assert masks is not None
    stage = seeds if exists(work.config, seeds) else masks
    threshold = getattr(work.config, f"{kind}_seed").fg if stage is seeds else work.config.mask.background
    if threshold == AUTO:
        return None
    staging, settings = Staging(work.root, stage, work.contents), settings_of(work, stage)
    write = _seed_writer(work, staging.new, kind) if stage is seeds else _crf_writer(work, staging.new)

    def write_ahead(id: str, image: NDArray[np.uint8], found: Activations, path: Path) -> None:
        write(id, image, found)
        inputs = inputs_of(work, stage, id) | {f"{kind}/{id}.npz": work.contents.hash(path)}
        staging.finish(id, item_key(settings, inputs))

    return write_ahead


def full_activations(work: Workspace, kind: str) -> Activate:
    """The function that gives activations at full size, as their stage computed them.

    Where they were not kept, the network computes them again. Compact files that were imported are an error.
    """
    made_by = producer(f"{kind}/{{id}}.npz")
    record = work.record(made_by) if made_by else None
    again = record is not None and not record.imported
    lock, network = threading.Lock(), functools.cache(lambda: (_cam_network if kind == "cam" else _amn_network)(work))

    def activations(id: str, image: NDArray[np.uint8]) -> Activations:
        path = work.item(kind, id)
        if not (again and is_compact(path)):
            return read_activations(path, upsampled=False)
        with lock:
            compute = network()
        return as_stored(compute(id, image))

    return activations


def _from_full(work: Workspace, kind: str, write: Write) -> One:
    """Write what is made of an image and its activations at full size."""
    activations = full_activations(work, kind)

    def one(id: str) -> None:
        image = work.dataset.image(id)
        write(id, image, activations(id, image))

    return one


def _seed_writer(work: Workspace, new: New, kind: str) -> Write:
    settings, warnings = chosen_seed(work.config, f"{kind}_seed"), Warnings(work, "constant activations")

    def write(id: str, image: NDArray[np.uint8], found: Activations) -> None:
        if flat := seed.constant_classes(found):
            names = ", ".join(work.dataset.classes[key - 1] for key in flat)
            warnings.add(id, f"image {id}: the activation of {names} is the same at all pixels and marks no object")
        write_mask(new(work.item(f"{kind}_seed", id)), seed.refine(image, found, settings, work.device))

    return write


def make_masks(work: Workspace, new: New) -> One:
    """Edge map and mask of an image: the trusted one where there is one, otherwise the pseudo-mask.

    The classes and their colours are written beside the masks. Where only the settings of the mask have changed, the
    edge maps of the last run serve again. Masks by CRF need no edge maps.
    """
    config = work.config
    if config.mask.kind == "crf":
        return _from_full(work, "amn", _crf_writer(work, new))
    settings = chosen_mask(config)
    write_legend(work.root, work.dataset.classes)
    net = IrnNet(config.backbone).to(work.device)
    load_weights(work.weights("irn"), net)
    net = prepare(net, work.config.precision)
    previous = previous_output(
        work,
        stage_named("make-mask"),
        "edge/{id}.npz",
        settings=("precision", "edge"),
        inputs=(IMAGE, "weights/irn.safetensors"),
    )

    def one(id: str) -> None:
        image = work.dataset.image(id)
        path = work.item("amn", id)
        found = read_strided(path)
        if found.size != image.shape[:2]:
            raise InputError(f"{path}: found activations of {found.size}, expected {image.shape[:2]} (height, width)")
        kept = previous(id)
        with on_device(work.device):
            edge = irn.find_edge(net, image, config.edge.pad, work.device) if kept is None else read_edge(kept)
        write_edge(new(work.item("edge", id)), edge)
        trusted = work.trusted(id)
        made = mask.make_mask(found, edge, settings, work.device, threads=1) if trusted is None else read_mask(trusted)
        write_mask(new(work.item("masks", id)), made)

    return one


def _crf_writer(work: Workspace, new: New) -> Write:
    settings = chosen_mask(work.config)
    write_legend(work.root, work.dataset.classes)

    def write(id: str, image: NDArray[np.uint8], found: Activations) -> None:
        trusted = work.trusted(id)
        made = mask.make_crf_mask(image, found, settings) if trusted is None else read_mask(trusted)
        write_mask(new(work.item("masks", id)), made)

    return write


def write_edge(path: Path, edge: NDArray[np.float32]) -> None:
    """Write an edge map, atomically."""
    write_atomically(path, lambda file: np.savez_compressed(file, edge=edge))


def read_edge(path: Path) -> NDArray[np.float32]:
    """Read what `write_edge` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return retried(lambda: file["edge"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"edge file {path} cannot be read: {error}") from error
