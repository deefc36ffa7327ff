"""Ultralytics' semantic segmentation data set: grey PNG masks beside the images, and a YAML file; 255 is ignored."""

import io
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amn_fast.data.base import IGNORE
from amn_fast.data.image import read_mask
from amn_fast.errors import InputError
from amn_fast.files import write_atomically, write_text
from amn_fast.review.coco import label_of_name
from amn_fast.review.exporting import Entry, Item, Job, copy_image
from amn_fast.review.yolo import dataset_yaml, read_names


def export_ultralytics_semantic(items: Iterable[Item], out: Path, job: Job) -> None:
    """Write `out`/masks/ID.png and `out`/data.yaml; images go to `out`/images if asked for. Values are our labels."""
    for item in items:
        with job.attempt(item.id):
            if job.images:
                copy_image(item, out / "images")
            write_grey(out / "masks" / f"{item.id}.png", item.mask)
    names = {0: "background", **dict(enumerate(job.classes, 1))}
    write_text(out / "data.yaml", dataset_yaml({"masks_dir": "masks", "names": names}))


def write_grey(path: Path, mask: NDArray[np.uint8]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def import_ultralytics_semantic(path: Path, job: Job, images: Mapping[str, Path] | None) -> list[Entry]:
    """Masks from `path`/masks/*.png, with the names of their values in `path`/data.yaml.

    Raises:
        InputError: the folder lacks masks or names.
    """
    names = read_names(path)
    files = sorted(path.glob("masks/**/*.png"))
    if not files:
        raise InputError(f"{path}: holds no masks, expected files masks/ID.png")
    return [(file.stem, partial(_mask, file, names, job)) for file in files]


def _mask(file: Path, names: Mapping[int, str], job: Job) -> NDArray[np.uint8]:
    mask = read_mask(file)
    table = np.zeros(256, np.uint8)
    for value in np.unique(mask).tolist():
        if value == IGNORE:
            table[value] = IGNORE
        elif value not in names:
            raise InputError(f"{file}: holds the value {value}, which data.yaml does not name")
        elif names[value] != "background":
            table[value] = label_of_name(names[value], job, str(file))
    return table[mask]
