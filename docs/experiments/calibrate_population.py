"""Write the population that calibrate's intervals are checked on: what the pixels of a run's masks show, by cell.

    python docs/experiments/calibrate_population.py RUN tests/golden/calibrate/NAME.json

Needs ground truth of all images. Pixels without ground truth are left out.
"""

import json
import sys
from pathlib import Path

import numpy as np

from amn_fast.calibrate.sampling import ScoredRun

POINTS = 200


def main() -> None:
    scored = ScoredRun(sys.argv[1])
    dataset = scored.work.dataset
    n_classes = len(dataset.classes)
    scored.draw(max(POINTS, 4 * n_classes), 0)
    pixels = np.zeros((n_classes, len(scored.edges) + 1, n_classes + 1), np.int64)
    for id in dataset.ids:
        truth = dataset.ground_truth(id)
        assert truth is not None
        if dataset.labels(id).any():
            label, bins = scored.cells(id)
            known = truth != 255
            np.add.at(pixels, (label[known].astype(int) - 1, bins[known], truth[known]), 1)
    found = {
        "edges": scored.edges,
        "pixels": pixels.tolist(),
        "images_together": scored.together.tolist(),
        "without_class": scored.sure,
    }
    Path(sys.argv[2]).write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
