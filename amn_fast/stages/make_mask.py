"""make-mask: AMN's activations walk over IRN's edges; a threshold turns the scores into the pseudo-mask."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from amn_fast.config import Mask
from amn_fast.data.augment import mirrored_pair
from amn_fast.data.masks import check_masks, write_mask
from amn_fast.data.store import Activations, read_activations
from amn_fast.errors import InputError
from amn_fast.files import write_atomically
from amn_fast.models import IrnNet
from amn_fast.ops.mask import mask_from_scores, mask_scores
from amn_fast.stages import train_irn
from amn_fast.stages._stage import Stage, Workspace
from amn_fast.stages._training import load_weights


def find_edge(net: IrnNet, image: NDArray[np.uint8], pad: int, device: torch.device) -> NDArray[np.float32]:
    """One picture's edge map at stride 4, (h, w) float32 in [0, 1]."""
    edge, _ = net.edges(mirrored_pair(image, 1.0, net.backbone.normalize).to(device), pad)
    return edge[0].float().cpu().numpy()


def scores(found: Activations, edge: NDArray[np.float32], settings: Mask) -> NDArray[np.float32]:
    """One picture's walked scores, (K, H, W) float32 in [0, 1]."""
    return mask_scores(
        found.strided,
        edge,
        (found.full.shape[1], found.full.shape[2]),
        power=settings.power,
        per_class=settings.maximum == "class",
        radius=settings.radius,
        beta=settings.beta,
        exp_times=settings.exp_times,
    )


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


def _make(work: Workspace) -> None:
    work.require("amn")
    settings = work.config.mask
    net = IrnNet(work.config.backbone).to(work.device)
    load_weights(work.weights("irn"), net)
    net.eval()

    def one(id: str) -> None:
        if work.item("masks", id).exists():
            return
        found = read_activations(work.item("amn", id))
        edge = find_edge(net, work.dataset.image(id), work.config.edge.pad, work.device)
        write_edge(work.item("edge", id), edge)
        labels = np.concatenate([[0], found.keys])
        write_mask(work.item("masks", id), mask_from_scores(scores(found, edge, settings), labels, settings.background))

    work.for_each("masks", work.dataset.ids, one)
    check_masks(work.root / "masks", work.dataset)


stage = Stage(name="make-mask", uses=("edge", "mask"), needs=(train_irn.stage,), makes=("edge", "masks"), work=_make)
run = stage.run
