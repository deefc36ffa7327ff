"""Stages that compute one file or two for each image: they load networks, read inputs and write outputs."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn_fast.config import Mask, Seed
from amn_fast.data.image import read_mask
from amn_fast.data.legend import write_legend
from amn_fast.data.masks import write_mask
from amn_fast.data.store import read_activations, read_strided, write_activations
from amn_fast.errors import InputError
from amn_fast.files import write_atomically
from amn_fast.models import AmnNet, CamNet, HeadsNet, IrnNet, prepare
from amn_fast.pipeline.chosen import chosen_mask, chosen_seed
from amn_fast.pipeline.dependencies import previous_output
from amn_fast.pipeline.engine import Warnings, on_device
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.table import IMAGE, stage_named
from amn_fast.pipeline.training import load_weights
from amn_fast.steps import amn, cam, irn, mask, seed
from amn_fast.steps.items import checked_labels

New = Callable[[Path], Path]
One = Callable[[str], None]


def make_cam(work: Workspace, new: New) -> One:
    """Class activations of an image."""
    net = CamNet(len(work.dataset.classes), work.config.backbone).to(work.device)
    load_weights(work.weights("cam"), net)
    net = prepare(net, work.config.precision)

    def one(id: str) -> None:
        image, label = work.dataset.image(id), work.dataset.labels(id)
        with on_device(work.device):
            found = cam.activate(net, image, label, work.config.cam.scales, work.device)
        write_activations(new(work.item("cam", id)), found)

    return one


def make_amn_cam(work: Workspace, new: New) -> One:
    """AMN's activations of an image."""
    n_classes = len(work.dataset.classes)
    kind = HeadsNet if work.config.train_amn.kind == "heads" else AmnNet
    net = kind(n_classes, work.config.backbone).to(work.device)
    load_weights(work.weights("amn"), net)
    net = prepare(net, work.config.precision)

    def one(id: str) -> None:
        image, label = work.dataset.image(id), work.dataset.labels(id)
        path = work.item("cam_seed", id)
        labels = checked_labels(read_mask(path), image.shape[:2], n_classes, f"seed {path}")
        with on_device(work.device):
            found = amn.activate(net, image, label, labels, work.config.amn, work.device)
        write_activations(new(work.item("amn", id)), found)

    return one


def refine_seed(work: Workspace, new: New) -> One:
    """Seed of an image from its class activations."""
    return _refine(work, new, "cam", chosen_seed(work.config, "cam_seed"))


def refine_amn_seed(work: Workspace, new: New) -> One:
    """Seed of an image from AMN's activations."""
    return _refine(work, new, "amn", chosen_seed(work.config, "amn_seed"))


def _refine(work: Workspace, new: New, kind: str, settings: Seed) -> One:
    warnings = Warnings(work, "constant activations")

    def one(id: str) -> None:
        found = read_activations(work.item(kind, id), upsampled=False)
        if flat := seed.constant_classes(found):
            names = ", ".join(work.dataset.classes[key - 1] for key in flat)
            warnings.add(id, f"image {id}: the activation of {names} is the same at all pixels and marks no object")
        write_mask(
            new(work.item(f"{kind}_seed", id)), seed.refine(work.dataset.image(id), found, settings, work.device)
        )

    return one


def make_masks(work: Workspace, new: New) -> One:
    """Edge map and mask of an image: the trusted one where there is one, otherwise the pseudo-mask.

    The classes and their colours are written beside the masks. Where only the settings of the mask have changed, the
    edge maps of the last run serve again. Masks by CRF need no edge maps.
    """
    config, settings = work.config, chosen_mask(work.config)
    write_legend(work.root, work.dataset.classes)
    if config.mask.kind == "crf":
        return _crf_masks(work, new, settings)
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


def _crf_masks(work: Workspace, new: New, settings: Mask) -> One:
    def one(id: str) -> None:
        image, trusted = work.dataset.image(id), work.trusted(id)
        if trusted is None:
            made = mask.make_crf_mask(image, read_activations(work.item("amn", id)), settings)
        else:
            made = read_mask(trusted)
        write_mask(new(work.item("masks", id)), made)

    return one


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
            return file["edge"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"edge file {path} cannot be read: {error}") from error
