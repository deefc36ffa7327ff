"""metrics.json and report.html: what evaluate and eval-seg found, together."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast.config import Config, to_yaml
from amn_fast.data.image import read_mask
from amn_fast.data.labels import read_json
from amn_fast.data.store import read_activations
from amn_fast.errors import InputError
from amn_fast.files import write_json
from amn_fast.pipeline.chosen import FOLDER, choice_file, neighbours
from amn_fast.pipeline.dependencies import exists, settings_changes, settings_of
from amn_fast.pipeline.engine import cores, progress
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.records import Item, Record
from amn_fast.pipeline.segmentation import NAMES, SHOWN
from amn_fast.pipeline.table import REPORT, producer
from amn_fast.report import Segmented, write_report
from amn_fast.report.gallery import GALLERY_MOST
from amn_fast.steps import health

SCORES = {"evaluation.json", "segmentation.json"}
"""Results without which there is no report."""
CALIBRATION, COMPARISON = "calibration.json", "comparison.json"
"""Written by `amn-fast calibrate` and `amn_fast.pipeline.comparing`; a report shows them where they are."""


def publish(work: Workspace, writable: bool) -> None:
    """Write metrics.json and report.html, unless they are up to date."""
    results = dict(_results(work))
    if not results.keys() & SCORES:
        return
    beside = [name for name in (CALIBRATION, COMPARISON) if (work.root / name).is_file()]
    inputs = {path: work.contents.hash(work.root / path) for path in (*results, *beside)}
    record = work.record(REPORT)
    item = record.items.get("") if record else None
    written = item.outputs.items() if item and item.inputs == inputs else ()
    if written and all(work.contents.hash(work.root / path) == found for path, found in written):
        return
    if not writable:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(work.root))
    write(work)
    outputs = {path: work.contents.hash(work.root / path) for path in REPORT.outputs}
    work.set_record(REPORT, Record({}, {"": Item(inputs, outputs)}))
    work.contents.save()


def report(config: Config) -> Path:
    """Write metrics.json and report.html again.

    Raises:
        InputError: the run has not been evaluated.
    """
    return write(Workspace(config))


def write(work: Workspace) -> Path:
    """Write metrics.json and report.html from what the stages that score have found; the path of the report."""
    found = dict(_results(work))
    if not found.keys() & SCORES:
        raise InputError(f"run folder {work.root} has no results; run `amn-fast evaluate` first")
    metrics: dict[str, Any] = dict(found.get("evaluation.json") or {})
    segmented: list[Segmented] = []
    if record := found.get("segmentation.json"):
        metrics = metrics or {"dataset": record["dataset"], "seed": record["seed"]}
        metrics["segmentation"] = record
        segmented = _segmented(work, record)
    checked = found.get("health.json") or {"findings": [], "doubt": {}}
    metrics["health"] = checked["findings"]
    metrics["doubt"] = checked["doubt"]
    metrics["health"] = [*metrics["health"], *(finding.to_json() for finding in _scored(metrics))]
    for name in (CALIBRATION, COMPARISON):
        if (work.root / name).is_file():
            metrics[Path(name).stem] = read_json(work.root / name)
    chosen = {Path(path).stem: record for path, record in found.items() if path.startswith(f"{FOLDER}/")}
    if chosen:
        metrics["thresholds"] = chosen
    write_json(work.root / "metrics.json", metrics)
    images = RunImages(work) if "evaluation.json" in found else None
    with progress(shown=images is not None) as bar:
        task = bar.add_task("report", total=min(len(work.dataset.ids), GALLERY_MOST))
        return write_report(
            work.root, metrics, images, to_yaml(work.config), segmented,
            examples={section: _examples(work, section, record) for section, record in chosen.items()},
            threads=cores(), advance=lambda: bar.advance(task),
        )  # fmt: skip


def _scored(metrics: dict[str, Any]) -> list[health.Finding]:
    """What the scores say of AMN: against the activations that it started from, and against the linear heads."""
    found = []
    if metrics.get("cam") and metrics.get("amn"):
        found.append(health.below_cam(metrics["amn"]["miou"], metrics["cam"]["miou"]))
    if heads := metrics.get("heads"):
        found.append(health.below_heads(heads["amn"], heads["miou"]))
    return [one for one in found if one is not None]


def _results(work: Workspace) -> list[tuple[str, dict[str, Any]]]:
    """(file, content) of the results that stages wrote under this configuration."""
    found = []
    for path in REPORT.inputs:
        stage = producer(path)
        assert stage is not None
        record = work.record(stage)
        if record is None or path not in record.outputs() or not exists(work.config, stage):
            continue
        if settings_changes(record.settings, settings_of(work, stage)) or not (work.root / path).exists():
            continue
        try:
            found.append((path, json.loads((work.root / path).read_text(encoding="utf-8"))))
        except ValueError as error:
            raise InputError(f"{work.root / path} is not JSON, remove it to run {stage.name} again") from error
    return found


def _segmented(work: Workspace, record: dict[str, Any]) -> list[Segmented]:
    """What the report shows of the segmentation network's answers."""
    dataset, folder = work.evaluated, work.root / SHOWN
    return [
        Segmented(
            id,
            dataset.image(id),
            {key: read_mask(path) for key, name in NAMES.items() if (path := folder / name / f"{id}.png").exists()},
            dataset.ground_truth(id),
            miou,
        )
        for id, miou in record["shown"].items()
    ]


def _examples(work: Workspace, section: str, record: dict[str, Any]) -> list[Segmented]:
    """Seeds of the example images of a choice of thresholds."""
    found = []
    for number, id in enumerate(record.get("examples", ())):
        masks = {}
        for name, (fg, bg) in neighbours((record["pair"][0], record["pair"][1])).items():
            path = choice_file(work.root, section).with_suffix("") / f"{number}.{name}.png"
            if path.exists():
                masks[f"{name}: fg {fg:g}, bg {bg:g}"] = read_mask(path)
        found.append(Segmented(id, work.dataset.image(id), masks, work.dataset.ground_truth(id), None))
    return found


class RunImages:
    """The run folder as the report looks at it."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self.ids: Sequence[str] = work.dataset.ids

    def image(self, id: str) -> NDArray[np.uint8]:
        return self._work.dataset.image(id)

    def ground_truth(self, id: str) -> NDArray[np.uint8] | None:
        return self._work.dataset.ground_truth(id)

    def cam(self, id: str) -> NDArray[np.float32] | None:
        return self._largest("cam", id)

    def amn(self, id: str) -> NDArray[np.float32] | None:
        return self._largest("amn", id)

    def seed(self, id: str) -> NDArray[np.uint8] | None:
        return read_mask(self._work.item("cam_seed", id))

    def amn_seed(self, id: str) -> NDArray[np.uint8] | None:
        if self._work.config.mask.kind == "crf":  # needs none
            return None
        return read_mask(self._work.item("amn_seed", id))

    def mask(self, id: str) -> NDArray[np.uint8] | None:
        return read_mask(self._work.item("masks", id))

    def _largest(self, kind: str, id: str) -> NDArray[np.float32] | None:
        full = read_activations(self._work.item(kind, id)).full
        return full.max(0) if len(full) else np.zeros(full.shape[1:], np.float32)
