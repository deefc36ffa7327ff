"""Train on one half of a data set, label the other half, and score both: how masks of new images compare.

    python docs/experiments/label_other_half.py voc6 --root data/voc12_animals --out runs/half --ids train

The halves are every other image of the list. The other half is labelled twice by `amn-fast label`: with its own labels,
and with labels that the run's classifier predicts. Prints mIoU of the masks of the training half and of both results,
and precision and recall of the predicted labels.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from amn_fast import pipeline
from amn_fast.config import read_config
from amn_fast.data import open_dataset
from amn_fast.data.base import Dataset
from amn_fast.data.image import read_mask
from amn_fast.data.labels import write_labels
from amn_fast.label.jobs import Options, label_images
from amn_fast.metrics import Confusion


def miou(dataset: Dataset, ids: tuple[str, ...], masks: Path) -> float:
    """mIoU of the masks ID.png of those images that have ground truth."""
    counts = Confusion(len(dataset.classes))
    for id in ids:
        true = dataset.ground_truth(id)
        if true is not None:
            counts.add(read_mask(masks / f"{id}.png"), true)
    return round(counts.scores().miou, 4)


def label(run: Path, dataset: Dataset, ids: tuple[str, ...], out: Path, predict: float | None) -> Path:
    """Label images by their ids; the list and the labels are written beside `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    source, labels = out.parent / "other_half.csv", out.parent / "other_half_labels.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("id", "image"), *((id, Path(str(dataset.image_file(id))).resolve()) for id in ids)]
        )
    write_labels(labels, {id: dataset.labels(id) for id in ids}, dataset.classes, ids)
    label_images(run, str(source), str(out), Options(labels=None if predict else labels, predict=predict))
    return out / "masks"


def predicted_labels(dataset: Dataset, table: Path) -> dict[str, Any]:
    """Precision and recall of the labels in a job's tables."""
    rows = pyarrow.parquet.read_table(table).to_pylist()
    found = np.array([[name in row["labels"] for name in dataset.classes] for row in rows])
    true = np.array([dataset.labels(row["id"]) for row in rows])
    right = (found & true).sum()
    return {"precision": round(float(right / max(1, found.sum())), 4), "recall": round(float(right / true.sum()), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="configuration of a data set in VOC's layout")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ids", default="train", help="list of the data set")
    parser.add_argument("--precision", type=float, default=0.9)
    parser.add_argument("--set", action="append", default=[], help="further settings, section.key=value")
    given = parser.parse_args()
    run = given.out / "run"
    settings = [
        f"data.root={json.dumps(str(given.root))}",
        f"run={json.dumps(str(run))}",
        "segmentation=false",
        *given.set,
    ]
    data = read_config(given.config, settings).data
    dataset = open_dataset(data.kind, data.root, **data.options | {"ids": given.ids})
    first, second = dataset.ids[::2], dataset.ids[1::2]
    given.out.mkdir(parents=True, exist_ok=True)
    half = given.out.resolve() / "first_half.txt"
    half.write_text("".join(f"{id}\n" for id in first))
    pipeline.run(read_config(given.config, [*settings, f"data.options.ids={json.dumps(str(half))}"]))
    results = {
        "images": {"training half": len(first), "other half": len(second)},
        "training half": miou(dataset, first, run / "masks"),
        "other half, given labels": miou(dataset, second, label(run, dataset, second, given.out / "given", None)),
        "other half, predicted labels": miou(
            dataset, second, label(run, dataset, second, given.out / "predicted", given.precision)
        ),
        "predicted labels": predicted_labels(dataset, given.out / "predicted" / "shards"),
    }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
