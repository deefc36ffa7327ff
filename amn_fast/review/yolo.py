"""YOLO segmentation labels: one polygon per line, in shares of the image's sides."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from amn_fast._yaml import parse_yaml
from amn_fast.data.base import IGNORE
from amn_fast.data.image import image_size
from amn_fast.data.labels import read_text
from amn_fast.data.names import clean_id
from amn_fast.errors import InputError
from amn_fast.files import write_text
from amn_fast.review.coco import label_of_name
from amn_fast.review.exporting import Entry, Item, Job, copy_image
from amn_fast.review.objects import filled, find_regions, polygons

# Readers multiply by the image's size and round down (Ultralytics) or to the nearest (supervision); a quarter pixel
# inside the pixel gives both the same corner.
_INSIDE = 0.25


def export_yolo_seg(items: Iterable[Item], out: Path, job: Job) -> None:
    """Write `out`/labels/ID.txt and `out`/data.yaml; images go to `out`/images if asked for.

    The format has no objects of several parts: each part is a line. Holes are joined to the outline by bridges. The
    pixels that differ when the polygons are filled as readers do are counted, and the job's notes say how many.
    """
    names = dict(enumerate(job.classes))
    unknown = len(job.classes)
    changed = total = 0
    for item in items:
        with job.attempt(item.id):
            lines, drawn = [], np.zeros_like(item.mask)
            for region in find_regions(item.mask, instances=job.instances):
                if region.label == IGNORE:
                    names[unknown] = job.unknown
                x, y, _, _ = region.box
                parts = [np.add(part, (x, y)) for part in polygons(region.pixels)]
                drawn[filled(parts, item.mask.shape)] = region.label
                label = unknown if region.label == IGNORE else region.label - 1
                lines += [_line(label, part, item.mask.shape) for part in parts]
            if job.images:
                copy_image(item, out / "images")
            write_text(out / "labels" / f"{item.id}.txt", "".join(lines))
            changed += int(np.count_nonzero(drawn != item.mask))
            total += int(np.count_nonzero(item.mask))
    write_text(out / "data.yaml", dataset_yaml({"names": names}))
    job.notes.append(f"Polygons change {changed} of {total} labelled pixels ({changed / max(total, 1):.3%}).")


def dataset_yaml(content: dict[str, object]) -> str:
    """A data set file for Ultralytics; all images are listed as train and val, and the user splits them."""
    head = {"train": "images", "val": "images"}
    return yaml.safe_dump({**head, **content}, allow_unicode=True, sort_keys=False)


def _line(label: int, part: NDArray[np.intp], size: tuple[int, ...]) -> str:
    corners = part + _INSIDE
    if len(part) < 3:  # a pixel or a straight line: out along one side of it and back along the other
        corners = np.concatenate([part + 0.1, np.add(part[-1:], (0.4, 0.1)), part[::-1] + 0.4])
    shares = corners / (size[1], size[0])
    return f"{label} " + " ".join(f"{share:.8f}" for share in shares.ravel()) + "\n"


def import_yolo_seg(path: Path, job: Job, images: Mapping[str, Path] | None) -> list[Entry]:
    """Masks from `path`/labels/*.txt and the names in `path`/data.yaml, drawn as Ultralytics does: later lines on top.

    Raises:
        InputError: the folder lacks labels or names, or `images` is not given.
    """
    if images is None:
        raise InputError(f"{path}: YOLO's labels hold no image sizes; pass --images DIR")
    names = read_names(path)
    files = sorted(path.glob("labels/**/*.txt")) or sorted(path.glob("*.txt"))
    if not files:
        raise InputError(f"{path}: holds no labels, expected files labels/ID.txt")
    return [(file.stem, partial(_mask, file, names, images, job)) for file in files]


def read_names(path: Path) -> dict[int, str]:
    """The class names of a data set file: `path`/data.yaml or the only YAML file in `path`.

    Raises:
        InputError: there is none, or it has no names.
    """
    found = sorted({*path.glob("*.yaml"), *path.glob("*.yml")})
    chosen = [file for file in found if file.name == "data.yaml"] or found
    if len(chosen) != 1:
        raise InputError(f"{path}: holds {len(found)} YAML files, expected data.yaml with the class names")
    try:
        values = parse_yaml(read_text(chosen[0]))
    except ValueError as error:
        raise InputError(f"{chosen[0]} is not YAML: {error}") from error
    try:
        names = values["names"]
        return {int(key): str(name) for key, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{chosen[0]}: has no class names, expected YAML with names: {{0: NAME, ...}}") from error


def _mask(file: Path, names: Mapping[int, str], images: Mapping[str, Path], job: Job) -> NDArray[np.uint8]:
    height, width = image_size(images[clean_id(file.stem)])
    mask = np.zeros((height, width), np.uint8)
    for number, line in enumerate(read_text(file).splitlines(), 1):
        where = f"{file}, line {number}"
        words = line.split()
        if not words:
            continue
        try:
            key, shares = int(words[0]), np.array(words[1:], float)
        except ValueError as error:
            raise InputError(f"{where}: holds no numbers: {error}") from error
        if len(shares) < 6 or len(shares) % 2 or not (np.abs(shares - 0.5) <= 1).all():
            raise InputError(f"{where}: holds {len(shares)} coordinates, expected 3 or more pairs in 0..1")
        if key not in names:
            raise InputError(f"{where}: class {key} has no name in data.yaml")
        corners = (shares.reshape(-1, 2) * (width, height)).astype(np.int32)
        cv2.fillPoly(mask, [corners], label_of_name(names[key], job, where))
    return mask
