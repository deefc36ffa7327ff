"""What the commands print of their results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from amn_fast.cli._common import console

if TYPE_CHECKING:
    from amn_fast.metrics import CurveResult
    from amn_fast.pipeline.sweep import Setting

RESULTS = {
    "cam": "CAM, best threshold",
    "refined_seed": "refined seed",
    "amn": "AMN, best threshold",
    "amn_refined": "refined AMN seed",
    "mask": "mask",
}
SHORT = {"refined_seed": "seed", "amn_refined": "AMN seed", "mask": "mask"}
SEGMENTATION = {"without_crf": "network", "with_crf": "network and CRF"}


def print_summary(run: Path) -> None:
    """The results of a run, from its metrics.json: scores, or what is known without ground truth."""
    from amn_fast.report import tables

    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    results = tables.results_of(metrics)
    scored, images = tables.image_counts(metrics["dataset"])
    title = metrics["dataset"]["name"]
    health = metrics.get("health") or []
    useless = any(one["serious"] for one in health)
    if results:
        _print_scores(results, f"{title}, scored on {tables.scored_of(scored, images) or 'its own images'}")
    elif not useless:
        _print_known(metrics, f"{title}, {images} image{'s' * (images != 1)}, no ground truth")
    if "segmentation" in metrics:
        print_segmentation(metrics["segmentation"])
    if useless:
        console.print(f"{title}: these masks are not useful as they are")
    for one in sorted(health, key=lambda one: not one["serious"]):
        console.print(f"{'problem' if one['serious'] else 'warning'}: {one['text']}", soft_wrap=True)


def _print_scores(results: Mapping[str, Any], title: str) -> None:
    console.print(title)
    table = Table("", "mIoU", "at threshold", "coverage")
    for key, name in RESULTS.items():
        if key in results:
            result = results[key]
            at = _figure(result["curve"]["best_threshold"], ".2f") if key in ("cam", "amn") else ""
            table.add_row(name, _figure(result["miou"]), at, _figure(result["scores"]["coverage"], ".2f"))
    console.print(table)


def _print_known(metrics: Mapping[str, Any], title: str) -> None:
    """Seeds and masks, classes, the classifier and the stages: all that needs no ground truth."""
    from amn_fast.report import tables

    maps = metrics.get("label_maps") or {}
    console.print(title)
    table = Table("", "labelled", "of these foreground")
    for key, name in RESULTS.items():
        if key in maps:
            table.add_row(name, _figure(maps[key]["coverage"], ".1%"), _figure(maps[key]["foreground"], ".1%"))
    if maps:
        console.print(table)
    names = ["background", *metrics["dataset"].get("classes", [])]
    if labels := tables.label_rows(metrics, names):
        console.print("share of each class in seeds and masks of the images with its label")
        table = Table("class", "images", *(SHORT[key] for key in labels["keys"]), "masks without it")
        for row in labels["rows"]:
            shares = (_figure(share, ".1%") for share in row["shares"])
            table.add_row(row["name"], str(row["images"]), *shares, _figure(row["empty"], "d"))
        console.print(table)
    for row in tables.training_rows(metrics):
        if row["key"] == "cam":
            right = f", all labels right in {row['accuracy']:.0%} of the images" if row["accuracy"] is not None else ""
            console.print(f"classifier on the training images, last epoch: loss {row['loss']:.3f}{right}")
    stages = tables.stage_rows(metrics, {})
    if stages["rows"]:
        table = Table("stage", "seconds", "peak MB")
        for row in stages["rows"]:
            table.add_row(row["name"], _figure(row["seconds"], ".1f"), _figure(row["memory"], ".0f"))
        console.print(table)


def _figure(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def print_segmentation(record: Mapping[str, Any]) -> None:
    """The scores of the segmentation network, from eval-seg's record."""
    dataset = record["dataset"]
    images = dataset.get("images", dataset.get("pictures"))
    scored = record.get("scored_images", record.get("scored_pictures"))
    title = f"{dataset['name']}, segmentation network, scored on {scored} of {images} images"
    if not any(key in record for key in SEGMENTATION):
        console.print(f"{title}: no ground truth")
        return
    console.print(title)
    table = Table("", "mIoU")
    for key, name in SEGMENTATION.items():
        if key in record:
            table.add_row(name, _figure(record[key]["miou"]))
    console.print(table)


def print_sweep(path: Path, results: "Mapping[Setting, CurveResult]") -> None:
    """The best ten settings of a sweep, and the file with all of them."""
    console.print("best settings first")
    table = Table("beta", "exp_times", "power", "best mIoU", "at threshold", "width", "mean")
    for setting, curve in sorted(results.items(), key=lambda item: -item[1].best_miou)[:10]:
        figures = (curve.best_miou, curve.best_threshold, curve.width, curve.mean)
        table.add_row(*(f"{value:g}" for value in setting), *(f"{value:.3f}" for value in figures))
    console.print(table)
    console.print(f"all thresholds: {path}")
