"""A data set in files of any layout: images, a source of labels and perhaps masks, joined by id."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import quote
from amn_fast.data.classes import Labels, read_classes
from amn_fast.data.image import image_size, read_image, read_mask
from amn_fast.data.labels import open_labels
from amn_fast.data.masks import check_foreground, check_ids, describe_size, find_masks, require_class_ids
from amn_fast.data.names import find_images, join, read_ids, require_some_match, unread_images
from amn_fast.errors import InputError

__all__ = ["FileDataset", "GroundTruth", "MaskFiles", "find_images", "find_pictures", "open_folder", "read_ids"]

find_pictures = find_images
"""The former name of `find_images`."""


class GroundTruth(Protocol):
    """Ground truth by id."""

    def __call__(self, id: str) -> NDArray[np.uint8] | None:
        """The mask, (H, W) uint8; None where there is none."""
        ...

    def file(self, id: str) -> Path | None:
        """The file that the mask is read from; None where there is none."""
        ...


class FileDataset:
    """A `Dataset` over image files; what an id lacks shows in `missing()`, and as an error where it is asked for."""

    def __init__(
        self,
        name: str,
        ids: Sequence[str],
        images: Mapping[str, Path],
        labels: Labels,
        ground_truth: GroundTruth | None = None,
        folder: Path | None = None,
    ) -> None:
        """`folder`: where `strays` looks for files that are not read; None where a list says what counts."""
        self.name = name
        self.classes = labels.classes
        self.ids = tuple(ids)
        self._images = images
        self._labels = labels
        self._ground_truth = ground_truth
        self._folder = folder
        self._label_of = join(labels, self.ids)

    def image(self, id: str) -> NDArray[np.uint8]:
        if id not in self._images:
            raise InputError(f"data set {self.name}: there is no image of the id {quote(id)}")
        return read_image(self._images[id])

    def labels(self, id: str) -> NDArray[np.bool_]:
        if id not in self._label_of:
            raise InputError(f"data set {self.name}: there is no label of the id {quote(id)}")
        return self._labels[self._label_of[id]].copy()

    def ground_truth(self, id: str) -> NDArray[np.uint8] | None:
        return self._ground_truth(id) if self._ground_truth else None

    truth = ground_truth

    def image_file(self, id: str) -> Path | None:
        return self._images.get(id)

    def truth_file(self, id: str) -> Path | None:
        return self._ground_truth.file(id) if self._ground_truth else None

    def missing(self) -> dict[str, list[str]]:
        return {
            "image": [id for id in self.ids if id not in self._images],
            "labels": [id for id in self.ids if id not in self._label_of],
        }

    def strays(self) -> dict[str, list[str]]:
        """List what lies beside the data set and is not part of it: reason -> ids or file names."""
        found: dict[str, list[str]] = {}
        if self._folder is not None:
            known = set(join(self._labels, tuple(self._images)).values())
            found["labels of images that do not exist"] = [key for key in self._labels if key not in known]
            found |= unread_images(self._folder)
        if isinstance(self._ground_truth, MaskFiles):
            found["masks without an image"] = self._ground_truth.without_image()
        return found


class MaskFiles:
    """Ground truth from the masks `folder/ID.png`; None where there is no such file."""

    def __init__(self, folder: Path, images: Mapping[str, Path], n_classes: int, foreground: int | None = None) -> None:
        """Find the masks.

        Args:
            folder: the folder of masks.
            images: the images by id.
            n_classes: C, the number of foreground classes.
            foreground: see `amn_fast.data.image.read_mask`.

        Raises:
            InputError: the folder is missing, no mask has the id of an image, or all masks hold only 0 and 255.
        """
        check_foreground(foreground, n_classes)
        self._files = find_masks(folder)
        self._images, self._n_classes, self._foreground = images, n_classes, foreground
        require_some_match(self._files, images, folder, "masks")
        if foreground is None:
            require_class_ids((path for id, path in self._files.items() if id in images), n_classes)

    def file(self, id: str) -> Path | None:
        return self._files.get(id)

    def __call__(self, id: str) -> NDArray[np.uint8] | None:
        path = self._files.get(id)
        if path is None:
            return None
        mask = read_mask(path, self._foreground)
        check_ids(path, mask, self._n_classes)
        if id in self._images and mask.shape != (size := image_size(self._images[id])):
            raise InputError(
                f"{path}: {describe_size(mask.shape)}, but its image {self._images[id]} is {describe_size(size)}"
            )
        return mask

    def without_image(self) -> list[str]:
        """The ids of masks whose image is missing."""
        return [id for id in self._files if id not in self._images]


def open_folder(
    root: Path | str,
    *,
    images: str = "images",
    labels: str = "labels.csv",
    masks: str | None = None,
    classes: str | None = None,
    ids: str | None = None,
    foreground: int | None = None,
) -> FileDataset:
    """Open the data set in the folder `root`; relative paths are below it.

    Args:
        root: the folder of the data set.
        images: the folder of images; the id of an image is its file name without the ending. Subfolders are not read.
        labels: a source of labels, see `amn_fast.data.labels.open_labels`.
        masks: the folder of ground-truth masks `ID.png`.
        classes: a text file of class names, one a line; without it the names in the labels count.
        ids: a text file of ids, one a line; without it all images count.
        foreground: the value of the foreground in binary masks, see `amn_fast.data.image.read_mask`.

    Raises:
        InputError: a path is missing, or a file is not as expected.
    """
    root = Path(root)
    found = find_images(root / images)
    table = open_labels(root / labels, read_classes(root / classes) if classes else None, foreground=foreground)
    chosen = _chosen(read_ids(root / ids), found) if ids else tuple(sorted(found))
    ground_truth = MaskFiles(root / masks, found, len(table.classes), foreground) if masks else None
    return FileDataset(root.name, chosen, found, table, ground_truth, None if ids else root / images)


def _chosen(listed: Sequence[str], images: Mapping[str, Path]) -> tuple[str, ...]:
    """The ids that a list means, whose lines may be file names; lines without an image stay as they are."""
    id_of = {name: id for id, name in join(listed, tuple(images)).items()}
    return tuple(id_of.get(name, name) for name in listed)
