"""Runs over the same images side by side: comparison.json in each of them, which their reports show."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amn_fast.config import Config
from amn_fast.data.labels import read_json
from amn_fast.files import write_json
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.reporting import COMPARISON, publish

RESULTS = ("cam", "amn", "mask")


def compare(runs: Mapping[str, Config]) -> None:
    """Write comparison.json and the report of each of some finished runs.

    Args:
        runs: name of each run in the table -> its configuration.

    Raises:
        InputError: one of the runs has not been evaluated.
    """
    rows = [(name, config.run, _figures(config.run)) for name, config in runs.items()]
    for config in runs.values():
        own = [
            {"name": name, "run": Path(os.path.relpath(run, config.run)).as_posix(), **figures}
            for name, run, figures in rows
        ]
        write_json(config.run / COMPARISON, {"rows": own})
        publish(Workspace(config), writable=True)


def _figures(run: Path) -> dict[str, Any]:
    """mIoU of the activations at their best threshold and of the masks, and seconds of the stages."""
    metrics = read_json(run / "metrics.json")
    seconds = [stage["seconds"] for stage in metrics["stages"].values() if "seconds" in stage]
    scores = {key: metrics[key]["miou"] if metrics.get(key) else None for key in RESULTS}
    return {**scores, "seconds": round(sum(seconds), 1)}
