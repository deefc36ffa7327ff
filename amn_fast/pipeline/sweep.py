"""sweep: mIoU of the masks over a grid of walk settings and all thresholds, edges computed once.

Settings are chosen against the ground truth of the images they are scored on: an oracle, good for understanding a data
set; a fair number needs images that the sweep has not seen.
"""

import csv
import io
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from amn_fast.config import Config
from amn_fast.data.store import read_strided
from amn_fast.errors import InputError
from amn_fast.files import write_text
from amn_fast.metrics import CurveResult, ThresholdCurve
from amn_fast.ops.mask import sweep_scores
from amn_fast.pipeline.engine import cores, for_each
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.inference import read_edge


class Setting(NamedTuple):
    """One point of the grid."""

    beta: float
    exp_times: int
    power: float


def run(
    config: Config, betas: Sequence[float], exp_times: Sequence[int], powers: Sequence[float]
) -> tuple[Path, dict[Setting, CurveResult]]:
    """Score all combinations on the images with ground truth; the masks must have been made.

    Returns:
        the path of sweep.csv in the run folder (a row for each setting and threshold), and the threshold curve of each
        setting.

    Raises:
        InputError: activations or edges are missing, or no image has ground truth.
    """
    work = Workspace(config)
    for kind in ("amn", "edge"):
        work.require(kind)
    n_classes = len(work.dataset.classes)
    curves = {Setting(*point): ThresholdCurve(n_classes) for point in itertools.product(betas, exp_times, powers)}
    lock, scored = threading.Lock(), []

    def one(id: str) -> None:
        ground_truth = work.dataset.ground_truth(id)
        if ground_truth is None:
            return
        found = read_strided(work.item("amn", id))
        points = sweep_scores(
            found.strided,
            read_edge(work.item("edge", id)),
            (ground_truth.shape[0], ground_truth.shape[1]),
            betas=betas,
            exp_times=exp_times,
            powers=powers,
            radius=config.mask.radius,
            per_class=config.mask.maximum == "class",
            threads=1,
        )
        for point in points:
            with lock:
                curves[Setting(point.beta, point.exp_times, point.power)].add(point.scores, found.keys, ground_truth)
        scored.append(id)

    for_each("sweep", work.dataset.ids, one, cores())
    if not scored:
        raise InputError(f"data set {work.config.name} has no ground truth, expected some for a sweep")
    results = {setting: curve.result() for setting, curve in curves.items()}
    path = work.root / "sweep.csv"
    write_text(path, _table(results))
    return path, results


def _table(results: dict[Setting, CurveResult]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*Setting._fields, "threshold", "miou"])
    for setting, curve in results.items():
        for threshold, miou in zip(curve.thresholds, curve.miou, strict=True):
            rows.writerow([*setting, f"{threshold:.2f}", f"{miou:.6f}"])
    return text.getvalue()
