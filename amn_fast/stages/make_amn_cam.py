"""make-amn-cam: AMN's activations of every picture, merged over scales."""

import numpy as np
import torch
from numpy.typing import NDArray

from amn_fast.config import AmnInference
from amn_fast.data.augment import mirrored_pair
from amn_fast.data.store import Activations, write_activations
from amn_fast.models import AmnNet
from amn_fast.ops.merge import merge_amn
from amn_fast.stages import train_amn
from amn_fast.stages._pictures import read_seed
from amn_fast.stages._stage import Stage, Workspace
from amn_fast.stages._training import load_weights
from amn_fast.stages.make_cam import no_activations


def activate(
    net: AmnNet,
    image: NDArray[np.uint8],
    label: NDArray[np.bool_],
    seed: NDArray[np.uint8],
    settings: AmnInference,
    device: torch.device,
) -> Activations:
    """One picture's foreground activations: softmax of the mean logits, sharpened by the seed."""
    valid = np.flatnonzero(label)
    height, width = image.shape[:2]
    if not len(valid):
        return no_activations(height, width)
    condition = torch.from_numpy(label.astype(np.float32)).to(device)
    maps = [
        net.activations(mirrored_pair(image, scale, net.backbone.normalize).to(device), condition)
        for scale in settings.scales
    ]
    kept = valid
    if settings.softmax == "image":
        maps = [m[[0, *(valid + 1)]] for m in maps]
        kept = np.arange(len(valid))
    strided, full = merge_amn(maps, (height, width), kept.tolist(), torch.from_numpy(np.array(seed)).to(device))
    # The background's channel served the softmax; refine-seed and make-mask put a threshold in its place.
    return Activations((valid + 1).astype(np.uint8), strided[1:].cpu().numpy(), full[1:].cpu().numpy())


def _make(work: Workspace) -> None:
    work.require("cam_seed")
    n_classes = len(work.dataset.classes)
    net = AmnNet(n_classes, work.config.backbone).to(work.device)
    load_weights(work.weights("amn"), net)
    net.eval()

    def one(id: str) -> None:
        if not work.item("amn", id).exists():
            image = work.dataset.image(id)
            seed = read_seed(work.item("cam_seed", id), image.shape[:2], n_classes)
            found = activate(net, image, work.dataset.labels(id), seed, work.config.amn, work.device)
            write_activations(work.item("amn", id), found)

    work.for_each("AMN", work.dataset.ids, one)


stage = Stage(name="make-amn-cam", uses=("amn",), needs=(train_amn.stage,), makes=("amn",), work=_make)
run = stage.run
