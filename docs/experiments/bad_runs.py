"""Are bad runs called out, and good ones not? The demo's images, run as they are and spoiled in two ways.

    python docs/experiments/bad_runs.py --work /tmp/bad_runs

good: the settings of the demo, fewer epochs and scales. rate: learning rates of the classifier 100 times too high.
shuffled: each image has the label of another one. Prints what check-run says of each run.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np

from amn_fast.config import Config
from amn_fast.data.demo import make_demo
from amn_fast.pipeline import run

RATES = {"lr": 0.02, "new_lr": 0.2}
SHORT = {
    "train_cam": {"epochs": 6, "batch": 16, "crop": 128, "momentum": 0.9, "long_side": [115, 166]},
    "cam": {"scales": [1.0]},
    "cam_seed": {"fg": 0.6, "bg": 0.2},
    "train_amn": {"epochs": 5, "batch": 8, "crop": 128, "lr": 5e-4, "new_lr": 1e-3, "rescale": [0.75, 1.25]},
    "amn": {"scales": [1.0], "softmax": "all"},
    "train_irn": {"epochs": 3, "batch": 8, "crop": 128, "lr": 0.1, "rescale": [0.75, 1.25], "displacement": False},
    "mask": {"exp_times": 3, "maximum": "global"},
}


def spoiled(source, folder):
    """A copy of a data set in which each image has the label of another one."""
    shutil.copytree(source, folder)
    rows = list(csv.reader((source / "labels.csv").read_text().splitlines()))
    order = np.random.default_rng(0).permutation(len(rows) - 1) + 1
    with (folder / "labels.csv").open("w") as file:
        csv.writer(file).writerows([rows[0], *([row[0], *rows[k][1:]] for row, k in zip(rows[1:], order, strict=True))])
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="new folder for sets and runs")
    parser.add_argument("--images", type=int, default=60)
    options = parser.parse_args()
    good = make_demo(options.work / "good_images", n=options.images)
    shuffled = spoiled(good, options.work / "shuffled_images")
    cases = {"good": (good, 1), "rate": (good, 100), "shuffled": (shuffled, 1)}
    for name, (root, factor) in cases.items():
        training = SHORT["train_cam"] | {key: factor * rate for key, rate in RATES.items()}
        config = Config.model_validate(
            {"name": name, "mode": "fixed", "device": "cpu", "backbone": "efficientnet_lite0", **SHORT,
             "data": {"kind": "folder", "root": root, "options": {"masks": "masks", "classes": "classes.txt"}},
             "run": options.work / name, "train_cam": training}
        )  # fmt: skip
        run(config)
        metrics = json.loads((config.run / "metrics.json").read_text())
        print(f"{name}: mask mIoU {metrics['mask']['miou']:.3f}", flush=True)
        for finding in metrics["health"]:
            print(f"  {'problem' if finding['serious'] else 'warning'}: {finding['text']}", flush=True)


if __name__ == "__main__":
    main()
