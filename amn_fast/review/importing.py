"""Corrected masks in: `import_masks` turns a labelling tool's export back into palette PNGs."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from amn_fast.data.image import image_size
from amn_fast.data.masks import describe_size, write_mask
from amn_fast.data.names import clean_id, find_images
from amn_fast.errors import InputError
from amn_fast.review.exporting import Job, new_folder, write_failures

IMPORTERS = {
    "coco": "coco",
    "cvat": "voc",
    "label-studio": "label_studio",
    "voc": "voc",
    "yolo-seg": "yolo",
    "ultralytics-semantic": "ultralytics",
    "fiftyone": "fiftyone",
}
"""Format -> module of this package; each has `import_<format>(path, job, images)`, an iterator of (id, reader)."""


def import_masks(
    path: Path | str,
    out: Path | str,
    source: str,
    classes: tuple[str, ...],
    *,
    images: Path | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Job:
    """Write the annotations in `path` as masks `out`/ID.png; `out` has to be a new folder.

    An image whose annotations cannot be read is recorded in the result and in `out`/failures.json; the others are
    written.

    Args:
        path: the file or folder that the tool exported.
        source: a key of `IMPORTERS`.
        classes: class names; label k of a mask is `classes[k - 1]`. The tool's labels are joined by name.
        images: the folder of images. Each id has to be one of them, and each mask has to have its image's size.
            YOLO's labels need it, because they hold no size.
        advance: called after each image.

    Raises:
        InputError: `path` is missing or not of this format as a whole, or `out` is not empty.
    """
    path = Path(path)
    if source not in IMPORTERS:
        raise InputError(f"format is {source!r}, expected {', '.join(IMPORTERS)}")
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    files = find_images(images) if images is not None else None
    job = Job(classes)
    read = getattr(import_module(f"amn_fast.review.{IMPORTERS[source]}"), f"import_{source.replace('-', '_')}")
    entries = read(path, job, files)
    out = new_folder(out)
    seen: set[str] = set()
    for name, load in entries:
        id = clean_id(name)
        with job.attempt(id):
            _check_id(id, seen, files)
            mask = load()
            if files is not None and mask.shape != (size := image_size(files[id])):
                raise InputError(
                    f"{id!r}: the annotation is {describe_size(mask.shape)}, but its image {files[id]} is "
                    f"{describe_size(size)}"
                )
            write_mask(out / f"{id}.png", mask)
        advance()
    if files is not None and (without := len(set(files) - seen)):
        job.notes.append(f"{without} of {len(files)} images have no annotation in {path}.")
    write_failures(out, job)
    return job


def _check_id(id: str, seen: set[str], files: Mapping[str, Path] | None) -> None:
    if not id or id in (".", "..") or "/" in id or "\\" in id or "\0" in id:
        raise InputError(f"id is {id!r}, expected a file name without folders")
    if id in seen:
        raise InputError(f"{id!r} is annotated twice, expected one annotation per image; the first one was taken")
    seen.add(id)
    if files is not None and id not in files:
        raise InputError(f"{id!r} is none of the images")
