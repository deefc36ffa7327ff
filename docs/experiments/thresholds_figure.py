"""Draw docs/images/thresholds.png from docs/experiments/thresholds.json.

    python docs/experiments/thresholds_figure.py

For each set: the score of each pair of thresholds, which needs no ground truth, against the best mIoU of its heads.
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
IMAGE = HERE.parent / "images" / "thresholds.png"
FIXED = {"fixed .6 / .2": (0.6, 0.2), "fixed .3 / .05": (0.3, 0.05)}
MARKS = {"chosen": ("o", "#c0392b"), "fixed .6 / .2": ("s", "#2471a3"), "fixed .3 / .05": ("^", "#1e8449")}


def main() -> None:
    found = json.loads((HERE / "thresholds.json").read_text(encoding="utf-8"))
    grid = [tuple(pair) for pair in found["grid"]]
    first = {record["set"]: record for record in reversed(found["records"])}
    names = list(dict.fromkeys(record["set"] for record in found["records"]))
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    for place, name in enumerate(names, start=1):
        record = first[name]
        eta, eta_mask, view = np.array(record["figures"])
        score, miou = eta * eta_mask * view**2, np.array(record["miou"]).max(1)
        axes = figure.add_subplot(2, 3, place)
        axes.scatter(score, miou, s=14, color="#95a5a6", label="other pairs")
        shown = {"chosen": int(score.argmax()), **{rule: grid.index(pair) for rule, pair in FIXED.items()}}
        for rule, pair in shown.items():
            marker, colour = MARKS[rule]
            axes.scatter(score[pair], miou[pair], s=52, marker=marker, color=colour, label=rule)
        axes.set_title(f"{name}: {record['images']} images, {record['classes']} classes", fontsize=9)
        axes.tick_params(labelsize=7)
        if place == 1:
            axes.legend(fontsize=7, loc="lower right")
    figure.supxlabel("score of the pair, without ground truth", fontsize=9)
    figure.supylabel("best mIoU of the heads", fontsize=9)
    figure.savefig(IMAGE, dpi=110)


if __name__ == "__main__":
    main()
