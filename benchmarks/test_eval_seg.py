"""eval-seg against the reference order: the network on all images, logits to the disk, then pydensecrf2 in processes.

Ours is the whole stage, report included. Making the network and starting the processes do not count. The network is
untrained: neither method's time depends on what it knows.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from crf_peer import labels_of_logits, warm
from problems import VOC, name_of, photo
from racing import MIB, Method
from torch.nn import functional as F

from amn_fast.config import Config
from amn_fast.data.image import read_mask
from amn_fast.metrics import Confusion
from amn_fast.models import DeepLabV2, MultiScale
from amn_fast.ops._arrays import default_backend
from amn_fast.pipeline import segmentation
from amn_fast.pipeline.engine import cores
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.training import save_weights
from amn_fast.steps import seg

BACKBONE, CROP = "efficientnet_lite0", (32, 40)


def configuration(root: Path, size: tuple[int, int], images: int, classes: int) -> Config:
    """A data set of photographs whose ground truth is a few blocks, and its configuration."""
    blocks = np.random.default_rng(0).integers(0, classes + 1, (images, 3, 4), np.uint8)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for k in range(images):
        cv2.imwrite(str(root / "images" / f"{k}.png"), photo(*size, shift=31 * k)[..., ::-1])
        mask = cv2.resize(blocks[k], size[::-1], interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(root / "masks" / f"{k}.png"), mask)
    names = [f"class{label}" for label in range(1, classes + 1)]
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    rows = [f"{k}" + ",1" * classes for k in range(images)]
    (root / "labels.csv").write_text("\n".join([f"id,{','.join(names)}", *rows]) + "\n")
    return Config.model_validate(
        {
            "name": "benchmark",
            "data": {"kind": "folder", "root": root, "options": {"masks": "masks", "classes": "classes.txt"}},
            "run": root / "run",
            "device": "cpu",
            "train_seg": {"recipe": "small", "backbone": BACKBONE, "weights": None, "masks": root / "masks"},
        }
    )


@pytest.fixture
def processes():
    """One process a core, with pydensecrf2 imported in each."""
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        list(pool.map(warm, range(4 * cores())))
        yield pool


def test_against_logits_on_disk(race, profile, tmp_path, processes):
    size, images, classes = ((48, 64), 2, 3) if profile == "quick" else (VOC, 3, 20)
    work = Workspace(configuration(tmp_path, size, images, classes))
    dataset, settings = work.dataset, work.config.eval_seg
    torch.manual_seed(0)
    net = MultiScale(DeepLabV2(classes, BACKBONE), settings.scales).eval()
    save_weights(work.weights("seg"), net)
    logits_folder = tmp_path / "logits"
    logits_folder.mkdir()
    written: set[Path] = set()

    def new(path: Path) -> Path:
        written.add(path)
        return path

    def ours() -> tuple[float, list[np.ndarray]]:
        segmentation.evaluate(work, new)
        record = json.loads((work.root / "segmentation.json").read_text())
        # of so few images the stage keeps every mask, to show it in the report
        masks = [read_mask(work.root / segmentation.SHOWN / "crf" / f"{id}.png") for id in dataset.ids]
        return record["with_crf"]["miou"], masks

    def published() -> tuple[float, list[np.ndarray]]:
        for id in dataset.ids:
            x = net.base.normalize(dataset.image(id))
            with torch.no_grad():
                logits = F.interpolate(net(x[None])[-1], size=x.shape[1:], mode="bilinear", align_corners=False)[0]
            np.save(logits_folder / f"{id}.npy", logits.numpy())
        jobs = [(logits_folder / f"{id}.npy", tmp_path / "images" / f"{id}.png") for id in dataset.ids]
        masks, confusion = list(processes.map(labels_of_logits, jobs)), Confusion(classes)
        for id, mask in zip(dataset.ids, masks, strict=True):
            confusion.add(mask, dataset.ground_truth(id))
        return confusion.scores(absent="skip").miou, masks

    image = photo(*CROP)
    softmax = seg.probabilities(net, image, settings, work.device)
    with default_backend("reference"):
        expected = seg.crf_labels(image, softmax, settings)
    race.parity(expected, seg.crf_labels(image, softmax, settings), 0)
    (miou, masks), (their_miou, their_masks) = ours(), published()
    assert len(np.unique(masks)) > 1, "masks of one label alone would hide every error"
    race.parity(np.array([their_miou]), np.array([miou]), 1e-3)
    agreeing = np.mean(np.array(masks) == np.array(their_masks))
    race.parity(np.ones(1), np.array([agreeing]), 1e-3)  # two labels that are equally likely may be ordered differently
    bytes_of = [sum(path.stat().st_size for path in paths) for paths in (written, logits_folder.iterdir())]
    case = (
        f"{images} of {name_of(size)}, {classes + 1} labels,"
        f" {bytes_of[0] / MIB:.1f} MiB written instead of {bytes_of[1] / MIB:.1f}"
    )
    theirs = Method("logits on disk, pydensecrf2", published, cores(), in_process=False)
    race.run("eval-seg", case, Method("ours", ours, cores()), theirs, rounds=3)
