"""Experiment for docs/guides/quality.md: which signs of a good mask rank the masks of a set by their true quality.

    python docs/experiments/doubt.py WORK demo voc76 msrc msrc_val voc20 voc437

WORK is the folder of docs/experiments/thresholds_trained.py, which writes the signs of each mask, its mIoU and its
wrong pixels to WORK/SET/PAIR/signs.json. For each combination of signs it prints Spearman's rank correlation of doubt
with the mIoU at the chosen pair of each set, the mean over the sets, and the share of all wrong pixels in the most
doubtful fifth of the masks.
"""

import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from thresholds_trained import RESULTS

from amn_fast.steps.doubt import SIGNS, doubts, rank_correlation

TRIED = ("regions", "sureness", "lowest_class")
"""Share of the variance of foreground against background that lies between the regions of the image; the share of the
activations above .35 that exceed .65; the lowest mean score of a class inside its mask, 0 where the mask lacks it."""
BEFORE = ("stability", "agreement", "regions", "sureness")
"""The signs of an earlier version."""
Table = dict[str, NDArray[np.float64]]


def read(work: Path, name: str) -> Table:
    """Signs, "iou" and "wrong" of each image with a class, at the pair that was chosen for the set."""
    high, low = json.loads(RESULTS.read_text())[name]["base"]["auto"]
    images = json.loads((work / name / f"{high:g}_{low:g}" / "signs.json").read_text())
    return {key: np.array([one[key] for one in images.values()]) for key in next(iter(images.values()))}


def judge(table: Table, signs: tuple[str, ...]) -> tuple[float, float]:
    """Spearman's correlation of doubt with the mIoU, negated; share of the wrong pixels in the most doubtful fifth."""
    doubt = doubts(np.stack([table[sign] for sign in signs], 1).tolist())
    fifth = np.argsort(-doubt, kind="stable")[: len(doubt) // 5]
    return -rank_correlation(doubt, table["iou"]), float(table["wrong"][fifth].sum() / table["wrong"].sum())


def main() -> None:
    work, names = Path(sys.argv[1]), sys.argv[2:]
    tables = {name: read(work, name) for name in names}
    subsets = [signs for count in range(1, 8) for signs in combinations((*SIGNS, *TRIED), count)]
    found = {signs: [judge(tables[name], signs) for name in names] for signs in subsets}
    order = sorted(found, key=lambda signs: -np.mean([rho for rho, _ in found[signs]]))
    shown = dict.fromkeys([SIGNS, BEFORE, (*SIGNS, *TRIED), *order[:8]])
    print("| signs | " + " | ".join(names) + " | mean | in the worst fifth |\n" + "|---" * (len(names) + 3) + "|")
    for signs in [*shown, *((sign,) for sign in (*SIGNS, *TRIED))]:
        rho, share = np.array(found[signs]).T
        cells = " | ".join(f"{value:.2f}" for value in [*rho, rho.mean()])
        print(f"| {', '.join(signs)} | {cells} | {share.mean():.2f} |")


if __name__ == "__main__":
    main()
