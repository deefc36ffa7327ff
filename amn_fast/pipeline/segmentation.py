"""eval-seg: the segmentation network on whole images, with and without CRF; perhaps masks for a benchmark's server.

Nothing but the scores, a few masks for the report and, when asked for, all masks reaches the disk.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amn_fast.config import Config
from amn_fast.data.base import IGNORE, Dataset, list_ids
from amn_fast.data.masks import check_masks, voc_palette, write_mask
from amn_fast.errors import InputError
from amn_fast.files import write_json
from amn_fast.metrics import Confusion
from amn_fast.models import DeepLabV2, MultiScale, prepare
from amn_fast.pipeline.engine import console, cores, for_each, on_device
from amn_fast.pipeline.evaluation import environment
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.table import producer
from amn_fast.pipeline.training import load_weights, read_losses, read_origin
from amn_fast.pipeline.trainings import list_checksum
from amn_fast.steps import seg

New = Callable[[Path], Path]

RESULTS = Path("segmentation") / "results"
SERVER_LAYOUT = RESULTS / "VOC2012" / "Segmentation" / "comp6_test_cls"
"""Where masks are written; below `segmentation`, the layout that VOC's server expects of its comp6 competition."""
COCO_LAYOUT = RESULTS / "COCO2014"
"""The same for COCO: PNGs of category ids, named by the number of the image."""
SHOWN = Path("segmentation_shown")
IMAGES_SHOWN = 6
NAMES = {"without_crf": "network", "with_crf": "crf"}
"""Name of a result in the record -> of the folder of its masks in `SHOWN`."""


class _Results:
    """Scores and writes the answer for each image, on any thread."""

    def __init__(self, work: Workspace, new: New) -> None:
        dataset = self.dataset = work.evaluated
        self.settings, self.new = work.config.eval_seg, new
        self.masks = work.root / layout(work.config)
        self.ids = result_ids(dataset) if self.settings.save_masks else np.arange(256, dtype=np.uint8)
        self.shown_folder = work.root / SHOWN
        names = ("without_crf", "with_crf") if self.settings.crf else ("without_crf",)
        self.confusions = {name: Confusion(len(dataset.classes)) for name in names}
        count = min(IMAGES_SHOWN, len(dataset.ids))
        self.shown: dict[str, float | None] = {dataset.ids[k * len(dataset.ids) // count]: None for k in range(count)}
        self.scored = 0
        self._lock = threading.Lock()

    def add(self, id: str, image: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> None:
        ground_truth = self.dataset.ground_truth(id)
        labels = {"without_crf": probabilities.argmax(0).astype(np.uint8)}
        if self.settings.crf:
            labels["with_crf"] = seg.crf_labels(image, probabilities, self.settings)
        last = labels["with_crf" if self.settings.crf else "without_crf"]
        if self.settings.save_masks:
            write_mask(self.new(self.masks / f"{id}.png"), self.ids[last])
        if id in self.shown:
            for name, mask in labels.items():
                write_mask(self.new(self.shown_folder / NAMES[name] / f"{id}.png"), mask)
        if ground_truth is None:
            return
        if id in self.shown:
            single = Confusion(len(self.dataset.classes))
            single.add(last, ground_truth)
            self.shown[id] = round(single.scores().miou, 6)
        with self._lock:
            for name, confusion in self.confusions.items():
                confusion.add(labels[name], ground_truth)
            self.scored += 1

    def scores(self) -> dict[str, Any]:
        """Scores by class; a class absent from the ground truth is left out of the means, as published for DeepLab."""
        if not self.scored:
            return {}
        found = {name: confusion.scores(absent="skip") for name, confusion in self.confusions.items()}
        return {name: {"miou": round(scores.miou, 6), "scores": scores.to_json()} for name, scores in found.items()}


def layout(config: Config) -> Path:
    """Where in the run folder `eval_seg.save_masks` writes."""
    return COCO_LAYOUT if (config.eval_seg.data or config.data).kind == "coco" else SERVER_LAYOUT


def result_ids(dataset: Dataset) -> NDArray[np.uint8]:
    """The value of label k in result masks, at place k: k itself; for COCO, the id of the category.

    Raises:
        InputError: a class is none of COCO's categories.
    """
    categories: dict[str, int] | None = getattr(dataset, "category_ids", None)
    if categories is None:
        return np.arange(len(dataset.classes) + 1, dtype=np.uint8)
    if unknown := [name for name in dataset.classes if name not in categories]:
        raise InputError(f"data set {dataset.name}: no category of the instances is called {', '.join(unknown)}")
    return np.array([0, *(categories[name] for name in dataset.classes)], np.uint8)


def evaluate(work: Workspace, new: New) -> None:
    """Score the network; write segmentation.json, masks to show and, when asked for, the masks of all images."""
    config, settings = work.config, work.config.eval_seg
    dataset, classes = work.evaluated, work.dataset.classes
    weights = work.weights("seg")
    _say_why_again(work)
    base = DeepLabV2(len(classes), config.train_seg.backbone)
    net = MultiScale(base, settings.scales).to(work.device)
    load_weights(weights, net)
    net = prepare(net, config.precision)
    results = _Results(work, new)

    def one(id: str) -> None:
        image = dataset.image(id)
        with on_device(work.device):
            probabilities = seg.probabilities(net, image, settings, work.device)
        results.add(id, image, probabilities)

    for_each("segmentation", dataset.ids, one, cores())
    if settings.save_masks:
        check_archive(new(results.masks), dataset)
    data = config.eval_seg.data or config.data
    record = {
        "dataset": {
            "name": dataset.name,
            "classes": list(classes),
            "images": len(dataset.ids),
            "list_sha256": list_checksum(dataset.ids),
            "data": data.model_copy(update={"options": data.options | settings.options}).model_dump(mode="json"),
        },
        "scored_images": results.scored,
        "environment": environment(),
        "seed": config.seed,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "training": json.loads(read_origin(weights) or "{}"),
        "train_seg": config.train_seg.model_dump(mode="json"),
        "eval_seg": settings.model_dump(mode="json"),
        "losses": read_losses(work, "seg"),
        "stages": _training_time(work),
        "shown": results.shown,
        **results.scores(),
    }
    write_json(new(work.root / "segmentation.json"), record)


def _training_time(work: Workspace) -> dict[str, Any]:
    stage = producer("weights/seg.safetensors")
    assert stage is not None
    record = work.record(stage)
    return {stage.name: record.measured if record else {}}


def _say_why_again(work: Workspace) -> None:
    """An evaluation keeps scores only: masks that are asked for later need the network once more."""
    stage = producer("segmentation.json")
    assert stage is not None
    record = work.record(stage)
    if record is not None and work.config.eval_seg.save_masks and not record.settings.get("eval_seg.save_masks"):
        console.print("  the earlier evaluation kept scores, not masks: the network runs over all images once more")


def check_archive(folder: Path, dataset: Dataset) -> None:
    """Check that `folder` holds what a benchmark's server takes: a mask of the size of each image, and nothing else.

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
