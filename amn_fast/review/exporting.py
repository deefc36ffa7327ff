"""Masks out: `export_masks` writes a set of masks in the form that a labelling tool or a trainer reads."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import list_ids
from amn_fast.errors import InputError
from amn_fast.files import write_atomically, write_json
from amn_fast.review.source import MaskSet, unknown_name

EXPORTERS = {
    "coco": "coco",
    "cvat": "voc",
    "label-studio": "label_studio",
    "voc": "voc",
    "yolo-seg": "yolo",
    "ultralytics-semantic": "ultralytics",
    "fiftyone": "fiftyone",
}
"""Format -> module of this package; each has `export_<format>(items, out, job)`."""

FAILURES = "failures.json"

Entry = tuple[str, Callable[[], NDArray[np.uint8]]]
"""What an importer finds: an image's id, and a function that reads its mask or raises InputError."""


@dataclass(frozen=True)
class Item:
    """One image to export."""

    id: str
    mask: NDArray[np.uint8]
    image: Path | None

    @property
    def file_name(self) -> str:
        """The name of the image file; `ID.jpg` where the image is not known."""
        return self.image.name if self.image else f"{self.id}.jpg"


@dataclass
class Job:
    """What one export or import is told, and what becomes of it.

    Attributes:
        classes: class names.
        instances: one object per connected component instead of one per class region.
        images: copy the images into the output folder.
        done: how many images were written.
        failures: id -> reason, for the images that were not.
        notes: what the user has to know, one sentence each.
    """

    classes: tuple[str, ...]
    instances: bool = False
    images: bool = False
    done: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def unknown(self) -> str:
        """The name of label 255 in tools that have no unknown label."""
        return unknown_name(self.classes)

    def name(self, label: int) -> str:
        return self.unknown if label == 255 else self.classes[label - 1]

    @contextmanager
    def attempt(self, id: str) -> Iterator[None]:
        """Count image `id` as done, or record why it is not; the other images continue."""
        try:
            yield
            self.done += 1
        except InputError as error:
            self.failures[id] = str(error)


def export_masks(
    masks: MaskSet,
    out: Path | str,
    to: str,
    *,
    instances: bool = False,
    images: bool = False,
    only: Iterable[str] | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Job:
    """Write `masks` into the new folder `out` in the format `to`.

    Images are read and written one at a time. An image that cannot be exported is recorded in the result and in
    `out`/failures.json; the others are written.

    Args:
        to: a key of `EXPORTERS`.
        instances: one object per connected component instead of one per class region.
        images: copy the images into `out`, for tools that want them beside the labels.
        only: export these ids alone.
        advance: called after each image.

    Raises:
        InputError: `out` is not empty, `to` is unknown, or a class name cannot be written in this format.

    Examples:
        >>> from amn_fast.review import export_masks, open_masks
        >>> job = export_masks(open_masks("runs/demo"), "to_cvat", "cvat")  # doctest: +SKIP
        >>> job.done, job.failures  # doctest: +SKIP
    """
    if to not in EXPORTERS:
        raise InputError(f"format is {to!r}, expected {', '.join(EXPORTERS)}")
    out = new_folder(out)
    chosen = _choose(masks, only)
    if images and not masks.images:
        raise InputError("images are to be copied, but no image file is known; pass --images DIR")
    job = Job(masks.classes, instances, images, notes=list(masks.notes))
    write = getattr(import_module(f"amn_fast.review.{EXPORTERS[to]}"), f"export_{to.replace('-', '_')}")
    write(_items(masks, chosen, job, advance), out, job)
    write_failures(out, job)
    return job


def new_folder(path: Path | str) -> Path:
    """`path` as a folder that exists and is empty.

    Raises:
        InputError: it holds something, or is a file.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: is not empty, expected a new or empty folder; nothing was written")
    path.mkdir(parents=True, exist_ok=True)
    return path


def copy_image(item: Item, folder: Path) -> str:
    """Copy the image to `folder`/ID.SUFFIX and return that file name.

    Raises:
        InputError: the image is not known.
    """
    if item.image is None:
        raise InputError(f"image {item.id!r} is not known, expected a file of that name")
    name = f"{item.id}{item.image.suffix}"
    with item.image.open("rb") as source:
        write_atomically(folder / name, lambda file: shutil.copyfileobj(source, file))
    return name


def write_failures(out: Path, job: Job) -> None:
    if job.failures:
        write_json(out / FAILURES, job.failures)


def _choose(masks: MaskSet, only: Iterable[str] | None) -> tuple[str, ...]:
    if only is None:
        return masks.ids
    wanted = set(only)
    strange = sorted(wanted - set(masks.ids))
    if strange:
        raise InputError(f"{masks.folder}: holds no mask for {list_ids(strange)}")
    return tuple(id for id in masks.ids if id in wanted)


def _items(masks: MaskSet, ids: Iterable[str], job: Job, advance: Callable[[], object]) -> Iterator[Item]:
    for id in ids:
        try:
            item = Item(id, masks.mask(id), masks.images.get(id))
        except InputError as error:
            job.failures[id] = str(error)
        else:
            yield item
        advance()
