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


def print_summary(run: Path) -> None:
    """The results of a run, from its metrics.json."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    table = Table("", "mIoU", "at threshold", "coverage", title=f"{metrics['dataset']['name']}, on its own images")
    for key, name in (
        ("cam", "CAM, best threshold"),
        ("refined_seed", "refined seed"),
        ("amn", "AMN, best threshold"),
        ("amn_refined", "refined AMN seed"),
        ("mask", "mask"),
    ):
        if key in metrics:
            result = metrics[key]
            at = f"{result['curve']['best_threshold']:.2f}" if key in ("cam", "amn") else ""
            table.add_row(name, f"{result['miou']:.3f}", at, f"{result['scores']['coverage']:.2f}")
    console.print(table)
    if "segmentation" in metrics:
        print_segmentation(metrics["segmentation"])


def print_segmentation(record: Mapping[str, Any]) -> None:
    """The scores of the segmentation network, from eval-seg's record."""
    table = Table(
        "", "mIoU", title=f"{record['dataset']['name']}, {record['scored_pictures']} images with ground truth"
    )
    for key, name in (("without_crf", "network"), ("with_crf", "network and CRF")):
        if key in record:
            table.add_row(name, f"{record[key]['miou']:.3f}")
    console.print(table)


def print_sweep(path: Path, results: "Mapping[Setting, CurveResult]") -> None:
    """The best ten settings of a sweep, and the file with all of them."""
    table = Table(
        "beta", "exp_times", "power", "best mIoU", "at threshold", "width", "mean", title="best settings first"
    )
    for setting, curve in sorted(results.items(), key=lambda item: -item[1].best_miou)[:10]:
        figures = (curve.best_miou, curve.best_threshold, curve.width, curve.mean)
        table.add_row(*(f"{value:g}" for value in setting), *(f"{value:.3f}" for value in figures))
    console.print(table)
    console.print(f"all thresholds: {path}")
