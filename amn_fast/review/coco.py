"""COCO instances JSON: run-length coded objects, one file for all images."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import IGNORE
from amn_fast.data.coco import Instances, coco_id
from amn_fast.data.labels import read_json
from amn_fast.errors import InputError, MissingExtra
from amn_fast.files import write_atomically
from amn_fast.review.exporting import Entry, Item, Job, copy_image
from amn_fast.review.objects import Region, find_regions


def export_coco(items: Iterable[Item], out: Path, job: Job) -> None:
    """Write `out`/annotations.json; images go to `out`/images if asked for.

    Category k is class k; the unknown pixels are a crowd region of a further category, written only if there are any.
    """
    write_atomically(out / "annotations.json", lambda file: _stream(file, items, out, job))


def _stream(file: IO[bytes], items: Iterable[Item], out: Path, job: Job) -> None:
    """The images go to `file` as they come, their objects to a temporary file that is appended."""
    unknown, objects = False, 0
    with tempfile.TemporaryFile() as spool:
        file.write(b'{"images": [')
        for number, item in enumerate(items, 1):
            with job.attempt(item.id):
                found = [
                    _annotation(region, item.mask.shape, number, objects + index)
                    for index, region in enumerate(find_regions(item.mask, instances=job.instances), 1)
                ]
                name = copy_image(item, out / "images") if job.images else item.file_name
                height, width = item.mask.shape
                image = {"id": number, "file_name": name, "height": height, "width": width}
                file.write((",\n" if job.done else "\n").encode() + json.dumps(image).encode())
                for annotation in found:
                    spool.write((",\n" if objects else "\n").encode() + json.dumps(annotation).encode())
                    objects += 1
                    unknown = unknown or annotation["category_id"] == IGNORE
        names = list(enumerate(job.classes, 1)) + [(IGNORE, job.unknown)] * unknown
        categories = [{"id": id, "name": name, "supercategory": ""} for id, name in names]
        file.write(b'],\n"categories": ' + json.dumps(categories).encode() + b',\n"annotations": [')
        spool.seek(0)
        shutil.copyfileobj(spool, file)
        file.write(b"]}\n")


def _annotation(region: Region, size: tuple[int, ...], image: int, id: int) -> dict[str, Any]:
    coder = _coder()
    code = coder.encode(np.asfortranarray(region.full(size)))
    return {
        "id": id,
        "image_id": image,
        "category_id": region.label,
        "segmentation": {"size": list(size), "counts": code["counts"].decode()},
        "area": region.area,
        "bbox": list(region.box),
        "iscrowd": int(region.label == IGNORE),
    }


def _coder() -> Any:
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise MissingExtra("COCO's run lengths need faster-coco-eval: pip install 'amn-fast[pipeline]'") from error
    return mask


def import_coco(path: Path, job: Job, images: Mapping[str, Path] | None) -> list[Entry]:
    """Masks from an instances JSON, joined by file name; of overlapping objects the smaller one lies on top.

    Categories are joined with the classes by name; "unknown" becomes 255. Whether a region is a crowd plays no role:
    CVAT and datumaro mark every run-length coded mask as one.

    Raises:
        InputError: the file is not an instances JSON.
    """
    if path.is_dir():
        path = path / "annotations.json"
    value = read_json(path)
    try:
        names = {category["id"]: str(category["name"]) for category in value["categories"]}
        entries = list(value["images"])
        by_image: dict[Any, list[dict[str, Any]]] = {}
        for annotation in value["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is not an instances file; it lacks or damages {error}") from error
    found: list[Entry] = []
    for number, image in enumerate(entries):
        id = PurePosixPath(str(image.get("file_name", ""))).stem if isinstance(image, dict) else f"image {number}"
        found.append((id, partial(_mask, path, image, by_image, names, job)))
    return found


def _mask(path: Path, image: Any, by_image: Mapping[Any, Any], names: Mapping[Any, str], job: Job) -> NDArray[np.uint8]:
    try:
        annotations = by_image.get(image["id"], [])
        used = sorted({annotation["category_id"] for annotation in annotations}, key=str)
        label_of = {category: label_of_name(names.get(category, category), job, str(path)) for category in used}
        # One image as an instances file of its own: a damaged image does not spoil the others.
        single = Instances(
            {
                "images": [image],
                "categories": [{"id": k, "name": name} for k, name in enumerate(job.classes, 1)],
                "annotations": [
                    {**annotation, **_label(label_of[annotation["category_id"]])} for annotation in annotations
                ],
            },
            path,
        )
        return single.mask(coco_id(image["id"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: the entry of image {image!r:.80} lacks or damages {error}") from error


def _label(label: int) -> dict[str, int]:
    """The fields of an annotation that say its label; `Instances` draws a crowd as 255."""
    return {"category_id": 1, "iscrowd": 1} if label == IGNORE else {"category_id": label, "iscrowd": 0}


def label_of_name(name: Any, job: Job, where: str) -> int:
    """The label 1..C or 255 of a tool's label name.

    Raises:
        InputError: the name is none of the classes.
    """
    if name in job.classes:
        return job.classes.index(name) + 1
    if name == job.unknown:
        return IGNORE
    raise InputError(f"{where}: the label {name!r} is none of the classes {', '.join(job.classes)}")


def coco_masks(path: Path) -> tuple[tuple[str, ...], Iterator[tuple[str, Callable[[], NDArray[np.uint8]]]]]:
    """Class names, and (id, reader) of each image, of an instances file; the classes are its own categories."""
    found = Instances(read_json(path), path)
    readers = ((PurePosixPath(name).stem, partial(found.mask, key)) for key, name in found.file_names.items())
    return found.classes, readers
