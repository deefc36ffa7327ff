"""FiftyOne: grey masks, a list of samples, a script that makes a FiftyOne data set of them, and its exported masks."""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import IGNORE
from amn_fast.data.image import read_mask
from amn_fast.data.masks import check_ids
from amn_fast.errors import InputError
from amn_fast.files import write_atomically, write_json, write_text
from amn_fast.review.exporting import Entry, Item, Job, copy_image
from amn_fast.review.ultralytics import write_grey

SCRIPT = '''"""Make a FiftyOne data set of the masks beside this file: python import_fiftyone.py NAME"""

import json
import sys
from pathlib import Path

import fiftyone as fo

if len(sys.argv) != 2:
    sys.exit("expected one argument, the name of the data set: python import_fiftyone.py NAME")
if fo.dataset_exists(sys.argv[1]):
    sys.exit(f"FiftyOne has a data set {sys.argv[1]} already; choose another name")
here = Path(__file__).resolve().parent
targets = json.loads((here / "targets.json").read_text(encoding="utf-8"))


def samples(file):
    for line in file:
        entry = json.loads(line)
        mask = fo.Segmentation(mask_path=str(here / "masks" / (entry["id"] + ".png")))
        yield fo.Sample(filepath=str(here / entry["image"]), image_id=entry["id"], mask=mask)


dataset = fo.Dataset(sys.argv[1], persistent=True)
dataset.default_mask_targets = {int(value): name for value, name in targets.items()}
with (here / "samples.jsonl").open(encoding="utf-8") as file:
    dataset.add_samples(samples(file))
print(f"{len(dataset)} samples in data set {dataset.name}")
'''


def export_fiftyone(items: Iterable[Item], out: Path, job: Job) -> None:
    """Write `out`/masks/ID.png, samples.jsonl, targets.json and import_fiftyone.py, the script to run."""
    write_json(out / "targets.json", {**dict(enumerate(job.classes, 1)), IGNORE: job.unknown})
    write_text(out / "import_fiftyone.py", SCRIPT)
    write_atomically(out / "samples.jsonl", lambda file: [file.write(_sample(item, out, job)) for item in items])


def _sample(item: Item, out: Path, job: Job) -> bytes:
    with job.attempt(item.id):
        if item.image is None:
            raise InputError(f"image {item.id!r} is not known, and FiftyOne shows masks on images; pass --images DIR")
        image = f"images/{copy_image(item, out / 'images')}" if job.images else str(item.image.resolve())
        write_grey(out / "masks" / f"{item.id}.png", item.mask)
        return json.dumps({"id": item.id, "image": image}).encode() + b"\n"
    return b""


def import_fiftyone(path: Path, job: Job, images: Mapping[str, Path] | None) -> list[Entry]:
    """Masks from `path`/labels/*.png, where FiftyOne's `ImageSegmentationDirectory` has them. Values are our labels.

    Raises:
        InputError: the folder lacks masks.
    """
    files = sorted(path.glob("labels/**/*.png"))
    if not files:
        raise InputError(f"{path}: holds no masks, expected files labels/ID.png (ImageSegmentationDirectory)")
    return [(file.stem, partial(_mask, file, job)) for file in files]


def _mask(file: Path, job: Job) -> NDArray[np.uint8]:
    mask = read_mask(file)
    check_ids(file, mask, len(job.classes))
    return mask
