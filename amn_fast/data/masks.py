"""Masks as palette PNG, and the checks that a folder of masks has to pass."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amn_fast.data.base import IGNORE, Dataset, list_ids
from amn_fast.data.image import read_mask
from amn_fast.errors import InputError
from amn_fast.files import write_atomically


def voc_palette() -> NDArray[np.uint8]:
    """The colours of the PASCAL VOC masks, (256, 3): the bits of an id, spread over the high bits of R, G and B."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> (3 * bit + channel)) & 1).astype(np.uint8) << (7 - bit)
    return colours


def write_mask(path: Path | str, mask: NDArray[np.integer], *, palette: bool = True) -> None:
    """Write `mask`, (H, W) with values 0..255, as a PNG whose values are the ids, atomically.

    Args:
        palette: with VOC's colours, whose indices are the ids; otherwise grey.

    Raises:
        InputError: the mask is not a non-empty (H, W) array of integers in 0..255.
        OSError: the file cannot be written.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "bui":
        raise InputError(f"mask for {path}: has shape {mask.shape} and type {mask.dtype}, expected (H, W) integers")
    if mask.min() < 0 or mask.max() > 255:
        raise InputError(f"mask for {path}: has values {mask.min()}..{mask.max()}, expected 0..255")
    image = Image.fromarray(np.ascontiguousarray(mask, np.uint8))
    if palette:
        image.putpalette(voc_palette().tobytes())
    write_atomically(path, lambda file: image.save(file, "PNG"))


def check_mask(path: Path | str, size: tuple[int, int], n_classes: int) -> None:
    """Check that `path` holds a mask of `size` (H, W) with ids 0..n_classes or 255, and not 255 alone.

    Raises:
        InputError: it does not, or the file is missing or unreadable.
    """
    mask = read_mask(path)
    if mask.shape != tuple(size):
        raise InputError(f"{path}: {describe_size(mask.shape)}, but its picture is {describe_size(size)}")
    check_ids(path, mask, n_classes)
    if (mask == IGNORE).all():
        raise InputError(f"{path}: every pixel is {IGNORE} (unknown)")


def check_ids(path: Path | str, mask: NDArray[np.uint8], n_classes: int) -> None:
    """Raise InputError unless the values of `mask`, read from `path`, are 0..n_classes or 255."""
    unknown = np.unique(mask[(mask > n_classes) & (mask != IGNORE)])
    if unknown.size:
        found = ", ".join(map(str, unknown[:10]))
        raise InputError(f"{path}: holds the unknown ids {found}, expected 0..{n_classes} or {IGNORE}")


def check_masks(folder: Path | str, dataset: Dataset, highest: int | None = None) -> None:
    """Check that `folder` holds a good mask `ID.png` for every picture of `dataset`.

    Args:
        highest: the highest id; without it the number of classes.

    Raises:
        InputError: masks are missing, or of the wrong size, with unknown ids, all 255, or unreadable; all of them are
            counted and the first ids and the first reason given.
    """
    missing, wrong, reason = [], [], ""
    for id in dataset.ids:
        path = Path(folder) / f"{id}.png"
        if not path.is_file():
            missing.append(id)
            continue
        try:
            check_mask(path, dataset.image(id).shape[:2], highest or len(dataset.classes))
        except InputError as error:
            wrong.append(id)
            reason = reason or str(error)
    complaints = [f"{list_ids(missing)} without a mask"] if missing else []
    complaints += [f"{list_ids(wrong)} with a wrong mask, the first: {reason}"] if wrong else []
    if complaints:
        raise InputError(f"{folder}: {'; '.join(complaints)}")


def describe_size(size: tuple[int, ...]) -> str:
    """(H, W) as "W x H pixels"."""
    return f"{size[1]} x {size[0]} pixels"
