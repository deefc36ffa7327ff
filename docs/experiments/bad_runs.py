"""Are bad runs called out, and good ones not? The demo's images, run as they are and spoiled in two ways.

    python docs/experiments/bad_runs.py --work work/bad_runs

good: the demo's classifier and seeds, linear heads in place of AMN, masks by CRF. rate: its learning rates
100 times too high. shuffled: each image has the label of another one. Prints what check-run says of each run.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import yaml

from amn_fast.config import read_config
from amn_fast.data.demo import make_demo
from amn_fast.pipeline import run

RATES = {"lr": 0.02, "new_lr": 0.2}
SETTINGS = {
    "base": "fast",
    "train_cam": {"kind": "network", "epochs": 6, "batch": 16, "crop": 160, "momentum": 0.9, "long_side": [144, 208]},
    "cam": {"scales": [1.0, 1.5]},
    "cam_seed": {"fg": 0.6, "bg": 0.2},
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
        training = SETTINGS["train_cam"] | {key: factor * rate for key, rate in RATES.items()}
        data = {"kind": "folder", "root": str(root.resolve()), "options": {"masks": "masks", "classes": "classes.txt"}}
        own = {"name": name, "data": data, "run": str((options.work / name).resolve()), "device": "cpu"}
        file = options.work / f"{name}.yaml"
        file.write_text(yaml.safe_dump(SETTINGS | own | {"train_cam": training}))
        config = read_config(file)
        run(config)
        metrics = json.loads((config.run / "metrics.json").read_text())
        print(f"{name}: mask mIoU {metrics['mask']['miou']:.3f}", flush=True)
        for finding in metrics["health"]:
            print(f"  {'problem' if finding['serious'] else 'warning'}: {finding['text']}", flush=True)


if __name__ == "__main__":
    main()
