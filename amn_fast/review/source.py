"""A set of masks, and what belongs to it: class names, images, and the run that made it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn_fast.config import Config, read_config
from amn_fast.data import open_dataset
from amn_fast.data.base import IGNORE, Dataset, list_ids
from amn_fast.data.image import image_size, read_mask
from amn_fast.data.labels import check_classes, read_classes, read_json
from amn_fast.data.masks import check_ids, describe_size, find_masks
from amn_fast.data.names import find_images
from amn_fast.errors import InputError


@dataclass(frozen=True)
class MaskSet:
    """Masks in files `ID.png`.

    Attributes:
        folder: the folder of the masks.
        files: id -> mask file.
        ids: ids of the masks, sorted.
        classes: names of the C classes; label k of a mask is `classes[k - 1]`, 0 is background, 255 is unknown.
        images: id -> image file; ids without a known image are absent.
        notes: what a user has to know about this set, one sentence each.
    """

    folder: Path
    files: Mapping[str, Path]
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    images: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def mask(self, id: str) -> NDArray[np.uint8]:
        """The mask of image `id`, (H, W) uint8, checked against the class names and the image's size.

        Raises:
            InputError: the file is damaged, holds an id that is no class, or has another size than its image.
        """
        path = self.files[id]
        mask = read_mask(path)
        check_ids(path, mask, len(self.classes))
        if id in self.images and mask.shape != (size := image_size(self.images[id])):
            raise InputError(
                f"{path}: is {describe_size(mask.shape)}, but its image {self.images[id]} is {describe_size(size)}"
            )
        return mask


def open_masks(path: Path | str, *, classes: Path | None = None, images: Path | None = None) -> MaskSet:
    """The masks of a run folder, or of a plain folder of PNG files.

    Args:
        path: a run folder (it holds config.yaml and masks/), or a folder of masks `ID.png`.
        classes: a text file of class names, one per line; a plain folder needs it.
        images: a folder of images `ID.*`; without it, a run's own images.

    Raises:
        InputError: there are no masks, no class names, or `images` lacks images.
    """
    path = Path(path)
    is_run = (path / "config.yaml").is_file()
    folder = path / "masks" if is_run else path
    files = find_masks(folder)
    ids = tuple(sorted(files))
    if not ids:
        raise InputError(f"{folder}: holds no masks, expected files ID.png")
    if classes is not None:
        names = read_classes(classes)
    elif is_run:
        names = run_classes(path)
    else:
        raise InputError(f"{path}: is not a run folder, so class names are unknown; pass --classes FILE, one per line")
    notes: list[str] = []
    found: Mapping[str, Path] = {}
    if images is not None:
        found = find_images(images)
        lacking = [id for id in ids if id not in found]
        if lacking:
            raise InputError(f"{images}: holds no image for {list_ids(lacking)}")
    elif is_run:
        try:
            found = run_images(path, ids)
        except InputError as error:
            notes.append(f"The run's images were not found ({error}); pass --images DIR to use them.")
    return MaskSet(folder, files, ids, names, {id: found[id] for id in ids if id in found}, tuple(notes))


def run_classes(run: Path) -> tuple[str, ...]:
    """The class names of a run: from metrics.json, or from its data set where the run is not evaluated."""
    try:
        return check_classes(read_json(run / "metrics.json")["dataset"]["classes"], run / "metrics.json")
    except (InputError, KeyError, TypeError):
        return _dataset(run).classes


def run_images(run: Path, ids: Iterable[str]) -> dict[str, Path]:
    """The image files of a run's data set, for those of `ids` that it has.

    Raises:
        InputError: the data set is not where the run's configuration says.
    """
    dataset = _dataset(run)
    files = {id: dataset.image_file(id) for id in ids}
    return {id: file for id, file in files.items() if file is not None}


def _dataset(run: Path) -> Dataset:
    data = run_config(run).data
    return open_dataset(data.kind, data.root, **data.options)


def run_config(run: Path) -> Config:
    """The configuration of a run folder, with `run` set to where the folder is now."""
    return read_config(str(run / "config.yaml"), [f"run={json.dumps(str(run))}"])


def unknown_name(classes: tuple[str, ...]) -> str:
    """The label that stands for 255 in tools without an unknown label: "unknown", or "unknown_255" if that is taken."""
    taken = {name.casefold() for name in classes}
    name = "unknown"
    while name in taken:
        name += f"_{IGNORE}"
    return name
