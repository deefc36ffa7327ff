"""A data set in files of any layout: pictures, a source of labels and perhaps masks, joined by id."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.image import PICTURE_SUFFIXES, image_size, read_image, read_mask
from amn_fast.data.labels import Labels, join, open_labels, read_classes, read_text
from amn_fast.data.masks import check_ids, describe_size
from amn_fast.errors import InputError


class Truth(Protocol):
    """Ground truth by id."""

    def __call__(self, id: str) -> NDArray[np.uint8] | None:
        """The mask, (H, W) uint8; None where there is none."""
        ...

    def file(self, id: str) -> Path | None:
        """The file that the mask is read from; None where there is none."""
        ...


class FileDataset:
    """A `Dataset` over picture files; what an id lacks shows in `missing()`, and as an error where it is asked for."""

    def __init__(
        self, name: str, ids: Sequence[str], images: Mapping[str, Path], labels: Labels, truth: Truth | None = None
    ) -> None:
        self.name = name
        self.classes = labels.classes
        self.ids = tuple(ids)
        self._images = images
        self._labels = labels
        self._truth = truth
        self._label_of = join(labels, self.ids)

    def image(self, id: str) -> NDArray[np.uint8]:
        if id not in self._images:
            raise InputError(f"data set {self.name}: there is no picture of the id {id!r}")
        return read_image(self._images[id])

    def labels(self, id: str) -> NDArray[np.bool_]:
        if id not in self._label_of:
            raise InputError(f"data set {self.name}: there is no label of the id {id!r}")
        return self._labels[self._label_of[id]].copy()

    def truth(self, id: str) -> NDArray[np.uint8] | None:
        return self._truth(id) if self._truth else None

    def image_file(self, id: str) -> Path | None:
        return self._images.get(id)

    def truth_file(self, id: str) -> Path | None:
        return self._truth.file(id) if self._truth else None

    def missing(self) -> dict[str, list[str]]:
        return {
            "image": [id for id in self.ids if id not in self._images],
            "labels": [id for id in self.ids if id not in self._label_of],
        }


class MaskFiles:
    """Ground truth from the masks `folder/ID.png`; None where there is no such file."""

    def __init__(self, folder: Path, images: Mapping[str, Path], n_classes: int) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder of masks")
        self._folder, self._images, self._n_classes = folder, images, n_classes

    def file(self, id: str) -> Path | None:
        path = self._folder / f"{id}.png"
        return path if path.exists() else None

    def __call__(self, id: str) -> NDArray[np.uint8] | None:
        path = self.file(id)
        if path is None:
            return None
        mask = read_mask(path)
        check_ids(path, mask, self._n_classes)
        if id in self._images and mask.shape != (size := image_size(self._images[id])):
            raise InputError(
                f"{path}: {describe_size(mask.shape)}, but its picture {self._images[id]} is {describe_size(size)}"
            )
        return mask


def open_folder(
    root: Path | str,
    *,
    images: str = "images",
    labels: str = "labels.csv",
    masks: str | None = None,
    classes: str | None = None,
    ids: str | None = None,
) -> FileDataset:
    """The data set in the folder `root`; the other arguments are paths in it, absolute ones stand for themselves.

    Args:
        images: the folder of pictures; the id of a picture is its file name without the ending.
        labels: a source of labels, see `amn_fast.data.labels.open_labels`.
        masks: the folder of ground-truth masks `ID.png`.
        classes: a text file of class names, one a line; without it the names in the labels count.
        ids: a text file of ids, one a line; without it all pictures count.

    Raises:
        InputError: a path is missing, or a file in it is not what it has to be.
    """
    root = Path(root)
    pictures = find_pictures(root / images)
    table = open_labels(root / labels, read_classes(root / classes) if classes else None)
    chosen = read_ids(root / ids) if ids else tuple(sorted(pictures))
    truth = MaskFiles(root / masks, pictures, len(table.classes)) if masks else None
    return FileDataset(root.name, chosen, pictures, table, truth)


def find_pictures(folder: Path) -> dict[str, Path]:
    """The pictures in `folder` by their file name without the ending.

    Raises:
        InputError: the folder is missing or holds no picture, or two pictures have the same id.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of pictures")
    pictures: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in PICTURE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in pictures:
            raise InputError(f"{path} and {pictures[path.stem].name}: two pictures have the id {path.stem!r}")
        pictures[path.stem] = path
    if not pictures:
        raise InputError(f"{folder}: holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
    return pictures


def read_ids(path: Path | str) -> tuple[str, ...]:
    """The ids in a text file, one a line, as strings; blank lines do not count.

    Raises:
        InputError: the file is missing or holds no id, or an id stands twice.
    """
    return unique_ids((line.strip() for line in read_text(path).splitlines()), path)


def unique_ids(lines: Iterable[str], path: Path | str) -> tuple[str, ...]:
    """The non-empty `lines`, which have to be different ids."""
    ids: dict[str, None] = {}
    for id in lines:
        if id in ids:
            raise InputError(f"{path}: the id {id!r} stands twice")
        if id:
            ids[id] = None
    if not ids:
        raise InputError(f"{path}: holds no ids")
    return tuple(ids)
