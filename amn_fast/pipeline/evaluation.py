"""evaluate: scores of activations, seeds and masks against ground truth.

Masks and seeds are scored under a stated rule for 255 ("ignore" for seeds, whose coverage is given beside), activations
over all background thresholds. Images are joined by id.
"""

import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast._info import package_version
from amn_fast.config import AUTO, Config
from amn_fast.data.image import read_mask
from amn_fast.data.store import read_activations
from amn_fast.errors import InputError
from amn_fast.files import write_json
from amn_fast.metrics import ActivationHistogram, Confusion, ThresholdCurve
from amn_fast.pipeline.chosen import heads_file
from amn_fast.pipeline.dependencies import stages_of
from amn_fast.pipeline.engine import cores, for_each
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.inference import read_edge
from amn_fast.pipeline.training import read_losses
from amn_fast.report.names import NETWORKS
from amn_fast.report.statistics import LabelStatistics
from amn_fast.steps import mask

ACTIVATIONS = ("cam", "amn")
SEEDS = {"refined_seed": "cam_seed", "amn_refined": "amn_seed"}
LABEL_MAPS = {**SEEDS, "mask": "masks"}
"""Name in metrics.json -> folder."""


def label_maps_of(config: Config) -> dict[str, str]:
    """Those of `LABEL_MAPS` that the configuration makes."""
    folders = {path.split("/")[0] for stage in stages_of(config) for path in stage.outputs}
    return {name: folder for name, folder in LABEL_MAPS.items() if folder in folders}


@dataclass
class Tally:
    """Everything that is counted, over images in any order."""

    n_classes: int
    label_map_names: Sequence[str] = tuple(LABEL_MAPS)
    walk: bool = True
    """Whether the masks come from scores, which have a threshold curve."""
    curves: dict[str, ThresholdCurve] = field(init=False)
    histograms: dict[str, ActivationHistogram] = field(init=False)
    confusions: dict[str, Confusion] = field(init=False)
    per_image: dict[str, float] = field(default_factory=dict)
    """mIoU of the mask of each image that shows a class."""
    label_maps: dict[str, LabelStatistics] = field(init=False)
    """What seeds and masks hold, of all images."""
    beside_heads: dict[str, ThresholdCurve] = field(init=False)
    """Of "heads", the linear heads of choose-seed, and of "amn", over the images that have both."""
    with_heads: int = 0
    scored: int = 0
    """Images with ground truth."""

    def __post_init__(self) -> None:
        self.curves = {
            name: ThresholdCurve(self.n_classes) for name in (*ACTIVATIONS, *(["mask"] if self.walk else []))
        }
        self.histograms = {name: ActivationHistogram(self.n_classes) for name in ACTIVATIONS}
        self.confusions = {name: Confusion(self.n_classes) for name in self.label_map_names}
        self.label_maps = {name: LabelStatistics(self.n_classes) for name in self.label_map_names}
        self.beside_heads = {name: ThresholdCurve(self.n_classes) for name in ("heads", "amn")}


@dataclass
class Item:
    """What is counted of one image."""

    ground_truth: NDArray[np.uint8]
    activations: dict[str, tuple[NDArray[np.float32], NDArray[np.uint8]]]
    label_maps: dict[str, NDArray[np.uint8]]
    heads: NDArray[np.float32] | None = None
    """Activations of the linear heads, of the same channels as AMN's."""


def count(tally: Tally, id: str, item: Item) -> None:
    """Add one image."""
    for name, (maps, keys) in item.activations.items():
        tally.curves[name].add(maps, keys, item.ground_truth)
        if name in tally.histograms:
            tally.histograms[name].add(maps, keys, item.ground_truth)
    for name, label_map in item.label_maps.items():
        tally.confusions[name].add(label_map, item.ground_truth)
    if len(item.activations["amn"][1]):  # an image without any class is right by definition: not a best mask
        single = Confusion(tally.n_classes)
        single.add(item.label_maps["mask"], item.ground_truth)
        tally.per_image[id] = round(single.scores().miou, 6)
    if item.heads is not None:
        amn, keys = item.activations["amn"]
        tally.beside_heads["heads"].add(item.heads, keys, item.ground_truth)
        tally.beside_heads["amn"].add(amn, keys, item.ground_truth)
        tally.with_heads += 1
    tally.scored += 1


def summary(tally: Tally) -> dict[str, Any]:
    """The scores for metrics.json."""
    result: dict[str, Any] = {}
    for name, curve in tally.curves.items():
        best = curve.result()
        result[name] = {
            "scores": curve.scores(best.best_threshold).to_json(),
            "curve": best.to_json(),
            "miou": best.best_miou,
        }
        if name in tally.histograms:
            result[name]["histogram"] = tally.histograms[name].to_json()
    for name in SEEDS.keys() & tally.confusions.keys():
        scores = tally.confusions[name].scores(unknown="ignore")
        result[name] = {"scores": scores.to_json(), "miou": scores.miou}
    scores = tally.confusions["mask"].scores(unknown="wrong")
    result["mask"] = result.get("mask", {}) | {
        "scores": scores.to_json(),
        "miou": scores.miou,
        "per_image": tally.per_image,
    }
    if tally.with_heads:
        heads, amn = (tally.beside_heads[name].result() for name in ("heads", "amn"))
        result["heads"] = {"miou": heads.best_miou, "amn": amn.best_miou, "images": tally.with_heads}
    return result


def evaluate(work: Workspace, new: Callable[[Path], Path]) -> None:
    """Score the images with ground truth; write evaluation.json."""
    dataset = work.dataset
    folders = label_maps_of(work.config)
    tally = Tally(len(dataset.classes), tuple(folders), work.config.mask.kind == "walk")
    lock = threading.Lock()

    def one(id: str) -> None:
        label_maps = {name: read_mask(work.item(folder, id)) for name, folder in folders.items()}
        ground_truth, labels = dataset.ground_truth(id), dataset.labels(id)
        item = None if ground_truth is None else _read(work, id, ground_truth, label_maps)
        with lock:
            for name, label_map in label_maps.items():
                tally.label_maps[name].add(label_map, labels)
            if item is not None:
                count(tally, id, item)

    for_each("evaluation", dataset.ids, one, cores())
    tally.per_image = dict(sorted(tally.per_image.items()))
    metrics = {
        "dataset": {
            "name": work.config.name,
            "classes": list(dataset.classes),
            "images": len(dataset.ids),
            "scored": tally.scored,
            "images_per_class": np.sum([dataset.labels(id) for id in dataset.ids], axis=0).tolist(),
        },
        "environment": environment(),
        "seed": work.config.seed,
        "stages": _times(work),
        "training": _training(work),
        "label_maps": {name: statistics.to_json() for name, statistics in tally.label_maps.items()},
        **(summary(tally) if tally.scored else {}),
    }
    write_json(new(work.root / "evaluation.json"), metrics)


def _training(work: Workspace) -> dict[str, dict[str, list[float]]]:
    """Mean loss, and accuracy where it is logged, of each epoch of the networks that this run has trained."""
    found = {
        name: {figure: values for figure in ("loss", "accuracy") if (values := read_losses(work, name, figure))}
        for name in NETWORKS
    }
    return {name: figures for name, figures in found.items() if figures}


def _times(work: Workspace) -> dict[str, Any]:
    """Time and memory of the stages before this one; of an imported one its origin, of one left out nothing."""
    records = {s.name: work.record(s) for s in stages_of(work.config) if not (s.scores or s.segmentation)}
    return {name: record.measured if record else {} for name, record in records.items()}


def _read(work: Workspace, id: str, ground_truth: NDArray[np.uint8], label_maps: dict[str, NDArray[np.uint8]]) -> Item:
    activations = {}
    for name in ACTIVATIONS:
        found = read_activations(work.item(name, id))
        activations[name] = (found.full, found.keys)
        _same_size(work.item(name, id), found.size, id, ground_truth)
    if work.config.mask.kind == "walk":
        propagated = mask.scores(found, read_edge(work.item("edge", id)), work.config.mask, work.device, threads=1)
        activations["mask"] = (propagated, found.keys)
    for name, label_map in label_maps.items():
        _same_size(work.item(LABEL_MAPS[name], id), label_map.shape, id, ground_truth)
    path = heads_file(work.root, "cam_seed", id)
    beside = work.config.cam_seed.fg == AUTO and work.config.train_amn.kind == "network" and path.exists()
    return Item(ground_truth, activations, label_maps, read_activations(path).full if beside else None)


def _same_size(path: Path, size: tuple[int, ...], id: str, ground_truth: NDArray[np.uint8]) -> None:
    if size != ground_truth.shape:
        raise InputError(f"{path} is {size}, but the ground truth of {id} is {ground_truth.shape} (height, width)")


def environment() -> dict[str, str]:
    """What a number was measured with."""
    packages = ("amn-fast", "numpy", "opencv-python-headless", "torch", "torchvision", "timm")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: package_version(name) for name in packages},
    }
