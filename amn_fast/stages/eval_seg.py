"""eval-seg: the segmentation network on whole pictures, with and without CRF; perhaps masks for VOC's server.

The network runs on one thread; the CRFs of pictures that it has left behind run beside it in a pool. Nothing but the
scores (and the masks, when asked for) reaches the disk.
"""

import hashlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from amn_fast.config import Config, SegEvaluation
from amn_fast.data import open_dataset
from amn_fast.data.base import Dataset, list_ids
from amn_fast.data.masks import check_masks, voc_palette, write_mask
from amn_fast.errors import InputError
from amn_fast.files import write_json
from amn_fast.metrics import Confusion
from amn_fast.models import DeepLabV2, MultiScale
from amn_fast.ops.dense_crf import dense_crf
from amn_fast.ops.unary import unary_from_softmax
from amn_fast.stages import train_seg
from amn_fast.stages._stage import Stage, Workspace, naming_picture, progress
from amn_fast.stages._training import load_weights
from amn_fast.stages.evaluate import SEGMENTATION, add_segmentation, environment

SERVER_LAYOUT = Path("segmentation") / "results" / "VOC2012" / "Segmentation" / "comp6_test_cls"
"""Where the masks go; below `segmentation`, it is what VOC's server expects in an archive of its comp6 competition."""


def crf_labels(
    image: NDArray[np.uint8], probabilities: NDArray[np.float32], settings: SegEvaluation
) -> NDArray[np.uint8]:
    """The labels (H, W) after the dense CRF on a softmax (C + 1, H, W)."""
    sxy, srgb, compat = settings.bilateral
    marginals = dense_crf(
        image,
        unary_from_softmax(probabilities),
        gaussian=settings.gaussian,
        bilateral=(sxy, srgb, compat),
        iterations=settings.iterations,
        threads=1,  # one picture a thread
    )
    return marginals.argmax(0).astype(np.uint8)


class _Results:
    """What becomes of each picture's softmax, on any thread."""

    def __init__(self, dataset: Dataset, settings: SegEvaluation, masks: Path) -> None:
        self.dataset, self.settings, self.masks = dataset, settings, masks
        names = ("without_crf", "with_crf") if settings.crf else ("without_crf",)
        self.confusions = {name: Confusion(len(dataset.classes)) for name in names}
        self.scored = 0
        self._lock = threading.Lock()

    def add(self, id: str, image: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> None:
        with naming_picture(id):
            truth = self.dataset.truth(id)
            labels = {"without_crf": probabilities.argmax(0).astype(np.uint8)}
            if self.settings.crf:
                labels["with_crf"] = crf_labels(image, probabilities, self.settings)
            if self.settings.save_masks:
                write_mask(self.masks / f"{id}.png", labels["with_crf" if self.settings.crf else "without_crf"])
            if truth is None:
                return
            with self._lock:
                for name, confusion in self.confusions.items():
                    confusion.add(labels[name], truth)
                self.scored += 1

    def scores(self) -> dict[str, Any]:
        """Scores by class; a class that the truth does not show is left out of the means, as published for DeepLab."""
        if not self.scored:
            return {}
        found = {name: confusion.scores(absent="skip") for name, confusion in self.confusions.items()}
        return {name: {"miou": round(scores.miou, 6), "scores": scores.to_json()} for name, scores in found.items()}


def _evaluate(work: Workspace) -> None:
    config, settings = work.config, work.config.eval_seg
    dataset, classes = _evaluated(work), work.dataset.classes
    if dataset.classes != classes:
        raise InputError(
            f"data set {dataset.name} has the classes {', '.join(dataset.classes)},"
            f" expected those that the network was trained on: {', '.join(classes)}"
        )
    base = DeepLabV2(len(classes), config.train_seg.backbone)
    net = MultiScale(base, settings.scales).to(work.device)
    load_weights(work.weights("seg"), net)
    net.eval()
    results = _Results(dataset, settings, work.root / SERVER_LAYOUT)
    _run(work, net, dataset, results)
    if settings.save_masks:
        check_archive(results.masks, dataset)
    record = {
        "dataset": {"name": dataset.name, "classes": list(classes), "pictures": len(dataset.ids)},
        "scored_pictures": results.scored,
        "environment": environment(),
        "seed": config.seed,
        "weights_sha256": hashlib.sha256(work.weights("seg").read_bytes()).hexdigest(),
        "train_seg": config.train_seg.model_dump(mode="json"),
        "eval_seg": settings.model_dump(mode="json"),
        **results.scores(),
    }
    write_json(work.root / SEGMENTATION, record)
    add_segmentation(work, record)


def _run(work: Workspace, net: MultiScale, dataset: Dataset, results: _Results) -> None:
    """The network on this thread, the rest in a pool; at most two pictures a thread are in memory."""
    threads = os.cpu_count() or 1
    room = threading.Semaphore(2 * threads)
    waiting: list[Future[None]] = []
    with progress() as bar, ThreadPoolExecutor(threads) as pool:
        task = bar.add_task("segmentation", total=len(dataset.ids), note="")

        def done(_: Future[None]) -> None:
            bar.advance(task)
            room.release()

        try:
            for id in dataset.ids:
                room.acquire()
                with naming_picture(id):
                    image = dataset.image(id)
                    found = _softmax(work, net, image)
                future = pool.submit(results.add, id, image, found)
                future.add_done_callback(done)
                waiting = [*_unfinished(waiting), future]
            for future in waiting:
                future.result()
        finally:  # an error waits for the pictures in work, not for the rest
            pool.shutdown(wait=False, cancel_futures=True)


def _unfinished(futures: list[Future[None]]) -> list[Future[None]]:
    """Those still in work; the error of one that failed is raised."""
    finished = {future for future in futures if future.done()}
    for future in finished:
        future.result()
    return [future for future in futures if future not in finished]


def _softmax(work: Workspace, net: MultiScale, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    x = net.base.normalize(image).to(work.device)
    with torch.autocast(work.device.type, torch.bfloat16, enabled=work.device.type == "cuda"):
        return net.probabilities(x, work.config.eval_seg.mirror).cpu().numpy()


def _evaluated(work: Workspace) -> Dataset:
    """The set to evaluate on. It needs pictures only: neither image-level labels nor ground truth."""
    data = work.config.eval_seg.data
    if data is None:
        return work.dataset
    dataset = open_dataset(data.kind, data.root, **data.options)
    if missing := dataset.missing()["image"]:
        raise InputError(f"data set {dataset.name}: {list_ids(missing)} of {len(dataset.ids)} have no image")
    return dataset


def check_archive(folder: Path, dataset: Dataset) -> None:
    """Check that `folder` holds what VOC's server takes: a mask for each picture of its size, and nothing else.

    Raises:
        InputError: a mask is missing, of another size, with unknown ids or no palette PNG in VOC's colours, or there
            are other files.
    """
    check_masks(folder, dataset)
    others = sorted({path.name for path in folder.iterdir()} - {f"{id}.png" for id in dataset.ids})
    if others:
        raise InputError(f"{folder}: holds {list_ids(others)} that the data set has not")
    for id in dataset.ids:
        with Image.open(folder / f"{id}.png") as file:
            colours = file.getpalette() if file.mode == "P" else None
        if not colours or colours != voc_palette().ravel()[: len(colours)].tolist():
            raise InputError(f"{folder / f'{id}.png'}: is no palette PNG in VOC's colours")


def stage_for(config: Config) -> Stage:
    """The stage; it needs train-seg's weights."""
    return Stage(
        name="eval-seg",
        uses=("train_seg", "eval_seg"),
        needs=(train_seg.stage_for(config),),
        makes=(SEGMENTATION, str(SERVER_LAYOUT)),
        work=_evaluate,
    )


def run(config: Config) -> bool:
    """Run the stage; see `Stage.run`."""
    return stage_for(config).run(config)
