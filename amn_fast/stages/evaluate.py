"""evaluate: how good activations, seeds and masks are against ground truth, and the report page.

Masks and seeds are scored under a stated rule for 255 ("ignore" for seeds, whose coverage is given beside), activations
over all background thresholds. Pictures are joined by id.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast._info import package_version
from amn_fast.config import Config, to_yaml
from amn_fast.data.image import read_mask
from amn_fast.data.store import read_activations
from amn_fast.errors import InputError
from amn_fast.files import write_json
from amn_fast.metrics import ActivationHistogram, Confusion, ThresholdCurve
from amn_fast.report import Segmented, write_report
from amn_fast.stages import make_mask
from amn_fast.stages._stage import Stage, Workspace

ACTIVATIONS = ("cam", "amn")
SEEDS = {"refined_seed": "cam_seed", "amn_refined": "amn_seed"}
"""Name in metrics.json -> folder."""

SEGMENTATION = "segmentation.json"
"""What eval-seg writes; metrics.json holds the same under "segmentation"."""


@dataclass
class Tally:
    """Everything that is counted, over pictures in any order."""

    n_classes: int
    curves: dict[str, ThresholdCurve] = field(init=False)
    histograms: dict[str, ActivationHistogram] = field(init=False)
    confusions: dict[str, Confusion] = field(init=False)
    per_picture: dict[str, float] = field(default_factory=dict)
    """mIoU of the mask of each picture that shows a class."""
    pictures: int = 0

    def __post_init__(self) -> None:
        self.curves = {name: ThresholdCurve(self.n_classes) for name in (*ACTIVATIONS, "mask")}
        self.histograms = {name: ActivationHistogram(self.n_classes) for name in ACTIVATIONS}
        self.confusions = {name: Confusion(self.n_classes) for name in (*SEEDS, "mask")}


@dataclass
class Item:
    """What is counted of one picture."""

    truth: NDArray[np.uint8]
    activations: dict[str, tuple[NDArray[np.float32], NDArray[np.uint8]]]
    seeds: dict[str, NDArray[np.uint8]]
    mask: NDArray[np.uint8]


def count(tally: Tally, id: str, item: Item) -> None:
    """Add one picture."""
    for name, (maps, keys) in item.activations.items():
        tally.curves[name].add(maps, keys, item.truth)
        if name in tally.histograms:
            tally.histograms[name].add(maps, keys, item.truth)
    for name, seed in item.seeds.items():
        tally.confusions[name].add(seed, item.truth)
    tally.confusions["mask"].add(item.mask, item.truth)
    if len(item.activations["mask"][1]):  # a picture without any class is right by definition: not a best mask
        single = Confusion(tally.n_classes)
        single.add(item.mask, item.truth)
        tally.per_picture[id] = round(single.scores().miou, 6)
    tally.pictures += 1


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
    for name in SEEDS:
        scores = tally.confusions[name].scores(unknown="ignore")
        result[name] = {"scores": scores.to_json(), "miou": scores.miou}
    scores = tally.confusions["mask"].scores(unknown="wrong")
    result["mask"] |= {"scores": scores.to_json(), "miou": scores.miou, "per_picture": tally.per_picture}
    return result


def _evaluate(work: Workspace) -> None:
    dataset = work.dataset
    for kind in (*ACTIVATIONS, *SEEDS.values(), "edge", "masks"):
        work.require(kind)
    tally, lock = Tally(len(dataset.classes)), threading.Lock()

    def one(id: str) -> None:
        item = _read(work, id)
        if item is not None:
            with lock:
                count(tally, id, item)

    work.for_each("evaluation", dataset.ids, one, threads=os.cpu_count() or 1)
    tally.per_picture = dict(sorted(tally.per_picture.items()))
    metrics = {
        "dataset": {"name": work.config.name, "classes": list(dataset.classes), "pictures": len(dataset.ids)},
        "environment": environment(),
        "seed": work.config.seed,
        "stages": dict(_records(work)),
        **(summary(tally) if tally.pictures else {}),
    }
    _finish(work, metrics, _segmentation(work))


def _finish(work: Workspace, metrics: dict[str, Any], segmentation: dict[str, Any] | None) -> None:
    """Write metrics.json and the report, with eval-seg's record where there is one."""
    if segmentation:
        metrics = metrics | {"segmentation": segmentation}
    write_json(work.root / "metrics.json", metrics)
    _write_report(work)


def _write_report(work: Workspace) -> Path:
    metrics = json.loads((work.root / "metrics.json").read_text())
    pictures = RunPictures(work) if "stages" in metrics else None  # else eval-seg alone has run
    segmented = _segmented(work, metrics["segmentation"]) if "segmentation" in metrics else []
    return write_report(work.root, metrics, pictures, to_yaml(work.config), segmented)


def _segmentation(work: Workspace) -> dict[str, Any] | None:
    """What eval-seg found earlier under this configuration."""
    from amn_fast.stages import eval_seg  # which imports this module

    if not eval_seg.stage_for(work.config).is_done(work.config):
        return None
    return json.loads((work.root / SEGMENTATION).read_text())


def _segmented(work: Workspace, record: dict[str, Any]) -> list[Segmented]:
    """What the report shows of eval-seg's answers."""
    from amn_fast.stages import eval_seg

    dataset, folder = eval_seg.evaluated(work), work.root / eval_seg.SHOWN
    return [
        Segmented(
            id,
            dataset.image(id),
            {
                key: read_mask(path)
                for key, name in eval_seg.NAMES.items()
                if (path := folder / f"{id}.{name}.png").exists()
            },
            dataset.truth(id),
            miou,
        )
        for id, miou in record["shown"].items()
    ]


def add_segmentation(work: Workspace, record: dict[str, Any]) -> None:
    """Put eval-seg's record into metrics.json, which need not be there yet, and into the report."""
    path = work.root / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {"dataset": record["dataset"], "seed": record["seed"]}
    _finish(work, metrics, record)


def report(config: Config) -> Path:
    """Write report.html from metrics.json again.

    Raises:
        InputError: the run has not been evaluated.
    """
    work = Workspace(config)
    path = work.root / "metrics.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; run `amn-fast evaluate` first")
    return _write_report(work)


def _read(work: Workspace, id: str) -> Item | None:
    truth = work.dataset.truth(id)
    if truth is None:
        return None
    activations = {}
    for name in ACTIVATIONS:
        found = read_activations(work.item(name, id))
        activations[name] = (found.full, found.keys)
        _same_size(work.item(name, id), found.full.shape[1:], id, truth)
    walked = make_mask.scores(found, make_mask.read_edge(work.item("edge", id)), work.config.mask)
    activations["mask"] = (walked, found.keys)
    masks = {name: read_mask(work.item(folder, id)) for name, folder in {**SEEDS, "mask": "masks"}.items()}
    for name, folder in {**SEEDS, "mask": "masks"}.items():
        _same_size(work.item(folder, id), masks[name].shape, id, truth)
    return Item(truth, activations, {name: masks[name] for name in SEEDS}, masks["mask"])


def _same_size(path: Path, size: tuple[int, ...], id: str, truth: NDArray[np.uint8]) -> None:
    if size != truth.shape:
        raise InputError(f"{path} is {size}, but the ground truth of {id} is {truth.shape} (height, width)")


def _records(work: Workspace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Time and memory of all stages, first to last; of an adopted one its origin, of one that was left out nothing."""
    chain: list[Stage] = []
    stage: Stage | None = make_mask.stage
    while stage is not None:
        chain.append(stage)
        stage = stage.needs[0] if stage.needs else None
    for stage in reversed(chain):
        yield stage.name, measured(stage, work.config)


def measured(stage: Stage, config: Config) -> dict[str, Any]:
    """Time, memory and origin of a stage's last run."""
    record = stage.record(config)
    return {key: record[key] for key in ("seconds", "peak_memory_mb", "resumed", "from") if key in record}


def environment() -> dict[str, str]:
    """What a number was measured with."""
    packages = ("amn-fast", "numpy", "opencv-python-headless", "torch", "torchvision", "timm")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: package_version(name) for name in packages},
    }


class RunPictures:
    """The run folder as the report looks at it."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self.ids: Sequence[str] = work.dataset.ids

    def image(self, id: str) -> NDArray[np.uint8]:
        return self._work.dataset.image(id)

    def truth(self, id: str) -> NDArray[np.uint8] | None:
        return self._work.dataset.truth(id)

    def cam(self, id: str) -> NDArray[np.float32] | None:
        return self._largest("cam", id)

    def amn(self, id: str) -> NDArray[np.float32] | None:
        return self._largest("amn", id)

    def seed(self, id: str) -> NDArray[np.uint8] | None:
        return read_mask(self._work.item("cam_seed", id))

    def amn_seed(self, id: str) -> NDArray[np.uint8] | None:
        return read_mask(self._work.item("amn_seed", id))

    def mask(self, id: str) -> NDArray[np.uint8] | None:
        return read_mask(self._work.item("masks", id))

    def _largest(self, kind: str, id: str) -> NDArray[np.float32] | None:
        full = read_activations(self._work.item(kind, id)).full
        return full.max(0) if len(full) else np.zeros(full.shape[1:], np.float32)


stage = Stage(name="evaluate", uses=(), needs=(make_mask.stage,), makes=("metrics.json", "report.html"), work=_evaluate)
run = stage.run
