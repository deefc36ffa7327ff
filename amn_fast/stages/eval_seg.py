"""eval-seg: the segmentation network on whole pictures, with and without CRF; perhaps masks for a benchmark's server.

The network runs on one thread; the CRFs of pictures that it has left behind run beside it in a pool. Nothing but the
scores, a few masks for the report and, when asked for, all masks reaches the disk.
"""

import hashlib
import json
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
from amn_fast.data.base import IGNORE, Dataset, list_ids
from amn_fast.data.masks import check_masks, voc_palette, write_mask
from amn_fast.errors import InputError
from amn_fast.files import write_json
from amn_fast.metrics import Confusion
from amn_fast.models import DeepLabV2, MultiScale
from amn_fast.ops.dense_crf import dense_crf
from amn_fast.ops.unary import unary_from_softmax
from amn_fast.stages import train_seg
from amn_fast.stages._stage import Stage, Workspace, naming_picture, progress
from amn_fast.stages._training import load_weights, read_losses, read_origin
from amn_fast.stages.evaluate import SEGMENTATION, add_segmentation, environment, measured

RESULTS = Path("segmentation") / "results"
SERVER_LAYOUT = RESULTS / "VOC2012" / "Segmentation" / "comp6_test_cls"
"""Where the masks go; below `segmentation`, it is what VOC's server expects in an archive of its comp6 competition."""
COCO_LAYOUT = RESULTS / "COCO2014"
"""Where those of COCO go: PNGs of category ids, named by the picture's number."""
SHOWN = "segmentation_shown"
PICTURES_SHOWN = 6
NAMES = {"without_crf": "network", "with_crf": "crf"}
"""Name of a result in the record -> of its masks in the folder `SHOWN`, ID.NAME.png."""


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

    def __init__(self, work: Workspace, dataset: Dataset) -> None:
        self.dataset, self.settings = dataset, work.config.eval_seg
        self.masks = work.root / layout(work.config)
        self.ids = result_ids(dataset) if self.settings.save_masks else np.arange(256, dtype=np.uint8)
        self.shown_folder = work.root / SHOWN
        names = ("without_crf", "with_crf") if self.settings.crf else ("without_crf",)
        self.confusions = {name: Confusion(len(dataset.classes)) for name in names}
        count = min(PICTURES_SHOWN, len(dataset.ids))
        self.shown: dict[str, float | None] = {dataset.ids[k * len(dataset.ids) // count]: None for k in range(count)}
        self.scored = 0
        self._lock = threading.Lock()

    def add(self, id: str, image: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> None:
        with naming_picture(id):
            truth = self.dataset.truth(id)
            labels = {"without_crf": probabilities.argmax(0).astype(np.uint8)}
            if self.settings.crf:
                labels["with_crf"] = crf_labels(image, probabilities, self.settings)
            last = labels["with_crf" if self.settings.crf else "without_crf"]
            if self.settings.save_masks:
                write_mask(self.masks / f"{id}.png", self.ids[last])
            if id in self.shown:
                for name, mask in labels.items():
                    write_mask(self.shown_folder / f"{id}.{NAMES[name]}.png", mask)
            if truth is None:
                return
            if id in self.shown:
                single = Confusion(len(self.dataset.classes))
                single.add(last, truth)
                self.shown[id] = round(single.scores().miou, 6)
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


def layout(config: Config) -> Path:
    """Where in the run folder `eval_seg.save_masks` writes."""
    return COCO_LAYOUT if (config.eval_seg.data or config.data).kind == "coco" else SERVER_LAYOUT


def result_ids(dataset: Dataset) -> NDArray[np.uint8]:
    """What stands for label k in result masks, at place k: k itself; for COCO, the category's id.

    Raises:
        InputError: a class is none of COCO's categories.
    """
    categories: dict[str, int] | None = getattr(dataset, "category_ids", None)
    if categories is None:
        return np.arange(len(dataset.classes) + 1, dtype=np.uint8)
    if unknown := [name for name in dataset.classes if name not in categories]:
        raise InputError(f"data set {dataset.name}: no category of the instances is called {', '.join(unknown)}")
    return np.array([0, *(categories[name] for name in dataset.classes)], np.uint8)


def _evaluate(work: Workspace) -> None:
    config, settings = work.config, work.config.eval_seg
    dataset, classes = evaluated(work), work.dataset.classes
    base = DeepLabV2(len(classes), config.train_seg.backbone)
    net = MultiScale(base, settings.scales).to(work.device)
    load_weights(work.weights("seg"), net)
    net.eval()
    results = _Results(work, dataset)
    _run(work, net, dataset, results)
    if settings.save_masks:
        check_archive(results.masks, dataset)
    data = config.eval_seg.data or config.data
    record = {
        "dataset": {
            "name": dataset.name,
            "classes": list(classes),
            "pictures": len(dataset.ids),
            "list_sha256": train_seg.list_checksum(dataset.ids),
            "data": data.model_copy(update={"options": data.options | settings.options}).model_dump(mode="json"),
        },
        "scored_pictures": results.scored,
        "environment": environment(),
        "seed": config.seed,
        "weights_sha256": hashlib.sha256(work.weights("seg").read_bytes()).hexdigest(),
        "training": json.loads(read_origin(work.weights("seg")) or "{}"),
        "train_seg": config.train_seg.model_dump(mode="json"),
        "eval_seg": settings.model_dump(mode="json"),
        "losses": read_losses(work, "seg"),
        "stages": {"train-seg": measured(train_seg.stage_for(config), config)},
        "shown": results.shown,
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
        return net.probabilities(x, work.config.eval_seg.mirror, work.config.eval_seg.window).cpu().numpy()


def evaluated(work: Workspace) -> Dataset:
    """The set to evaluate on. It needs pictures only: neither image-level labels nor ground truth.

    Raises:
        InputError: pictures are missing, or it has other classes than the set that the network is trained on.
    """
    settings = work.config.eval_seg
    if settings.data is None and not settings.options:
        return work.dataset
    data = settings.data or work.config.data
    dataset = open_dataset(data.kind, data.root, **data.options | settings.options)
    if missing := dataset.missing()["image"]:
        raise InputError(f"data set {dataset.name}: {list_ids(missing)} of {len(dataset.ids)} have no image")
    if dataset.classes != work.dataset.classes:
        raise InputError(
            f"data set {dataset.name} has the classes {', '.join(dataset.classes)},"
            f" expected those that the network was trained on: {', '.join(work.dataset.classes)}"
        )
    return dataset


def check_archive(folder: Path, dataset: Dataset) -> None:
    """Check that `folder` holds what a benchmark's server takes: a mask for each picture of its size, and nothing else.

    Raises:
        InputError: a mask is missing, of another size, with unknown ids or no palette PNG in VOC's colours, or there
            are other files.
    """
    ids = result_ids(dataset)
    check_masks(folder, dataset, highest=int(ids.max()))
    others = sorted({path.name for path in folder.iterdir()} - {f"{id}.png" for id in dataset.ids})
    if others:
        raise InputError(f"{folder}: holds {list_ids(others)} that the data set has not")
    for id in dataset.ids:
        path = folder / f"{id}.png"
        with Image.open(path) as file:
            colours = file.getpalette() if file.mode == "P" else None
            found = np.unique(np.asarray(file))
        if not colours or colours != voc_palette().ravel()[: len(colours)].tolist():
            raise InputError(f"{path}: is no palette PNG in VOC's colours")
        if unknown := sorted(set(found.tolist()) - {*ids.tolist(), IGNORE}):
            raise InputError(f"{path}: holds {', '.join(map(str, unknown))}, which is the id of no class")


def stage_for(config: Config) -> Stage:
    """The stage; it needs train-seg's weights."""
    return Stage(
        name="eval-seg",
        uses=("train_seg", "eval_seg"),
        needs=(train_seg.stage_for(config),),
        makes=(SEGMENTATION, SHOWN, str(layout(config))),
        work=_evaluate,
    )


def run(config: Config) -> bool:
    """Run the stage; see `Stage.run`."""
    return stage_for(config).run(config)
