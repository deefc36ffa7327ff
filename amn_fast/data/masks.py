"""Masks as palette PNG, and the checks that a folder of masks has to pass."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amn_fast.data.base import IGNORE, Dataset, list_ids
from amn_fast.data.image import read_mask
from amn_fast.data.names import find_files
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
    """Write a mask as a PNG whose values are the ids, atomically.

    Args:
        path: the file to write.
        mask: (H, W) integers in 0..255.
        palette: with VOC's colours, whose indices are the ids; otherwise grey.

    Raises:
        InputError: the mask is not a non-empty (H, W) array of integers in 0..255.
        OSError: the file cannot be written.
    """
    encoded = encode_mask(mask, str(path), palette=palette)
    write_atomically(path, lambda file: file.write(encoded))


def encode_mask(mask: NDArray[np.integer], name: str, *, palette: bool = True) -> bytes:
    """The bytes that `write_mask` writes.

    Args:
        mask, palette: see `write_mask`.
        name: what the mask is for, for messages.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "bui":
        raise InputError(f"mask for {name}: has shape {mask.shape} and type {mask.dtype}, expected (H, W) integers")
    if mask.min() < 0 or mask.max() > 255:
        raise InputError(f"mask for {name}: has values {mask.min()}..{mask.max()}, expected 0..255")
    image = Image.fromarray(np.ascontiguousarray(mask, np.uint8))
    if palette:
        image.putpalette(voc_palette().tobytes())
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def find_masks(folder: Path) -> dict[str, Path]:
    """Map ids to the PNG files in `folder`; see `names.find_files`."""
    return find_files(folder, {".png"}, "masks")


def check_mask(path: Path | str, size: tuple[int, int], n_classes: int, foreground: int | None = None) -> None:
    """Check that `path` holds a mask of `size` (H, W) with ids 0..n_classes or 255, and not 255 alone.

    Raises:
        InputError: it does not, or the file is missing or unreadable.
    """
    mask = read_mask(path, foreground)
    if mask.shape != tuple(size):
        raise InputError(f"{path}: {describe_size(mask.shape)}, but its image is {describe_size(size)}")
    check_ids(path, mask, n_classes)
    if (mask == IGNORE).all():
        raise InputError(f"{path}: every pixel is {IGNORE} (unknown)")


def check_ids(path: Path | str, mask: NDArray[np.uint8], n_classes: int) -> None:
    """Raise InputError unless the values of `mask`, read from `path`, are 0..n_classes or 255."""
    unknown = np.unique(mask[(mask > n_classes) & (mask != IGNORE)])
    if unknown.size:
        found = ", ".join(map(str, unknown[:10]))
        remedy = ""
        if n_classes == 1 and unknown.size == 1 and not (mask == 1).any():
            remedy = f"; if {found} is the foreground, set foreground to {found}"
        raise InputError(f"{path}: holds the unknown ids {found}, expected 0..{n_classes} or {IGNORE}{remedy}")


def check_labels(
    path: Path | str, mask: NDArray[np.uint8], labels: NDArray[np.bool_], classes: tuple[str, ...]
) -> None:
    """Raise InputError when `mask`, read from `path`, shows a class that the image's `labels`, (C,) bool, lack."""
    shown = np.unique(mask[(mask > 0) & (mask != IGNORE)]) - 1
    extra = [classes[index] for index in shown if not labels[index]]
    if extra:
        own = ", ".join(name for name, on in zip(classes, labels, strict=True) if on) or "no class"
        raise InputError(f"{path}: shows {', '.join(extra)}, but the labels of its image are {own}")


def check_foreground(foreground: int | None, n_classes: int) -> None:
    """Raise InputError unless `foreground` is None, or 1..255 and the masks are of one class."""
    if foreground is not None and (isinstance(foreground, bool) or not isinstance(foreground, int)):
        raise InputError(f"foreground is {foreground!r}, expected an integer 1..255")
    if foreground is not None and not 1 <= foreground <= 255:
        raise InputError(f"foreground is {foreground}, expected 1..255")
    if foreground is not None and n_classes != 1:
        raise InputError(f"foreground is {foreground}, which is for masks of one class, but there are {n_classes}")


def require_class_ids(paths: Iterable[Path], n_classes: int, remedy: str = "") -> None:
    """Refuse a set of masks whose only values are 0 and 255.

    255 means unknown, but most tools write binary masks as 0 and 255. A single mask does not tell; a set in which no
    mask has any class does. Reads until the first mask with a class; files that cannot be read are left to those who
    use them.

    Args:
        paths: the masks.
        n_classes: C, the number of foreground classes.
        remedy: what to do about it, instead of setting `foreground`.

    Raises:
        InputError: no mask has a class, and some have 255; the message has the remedy.
    """
    first: Path | None = None
    count = 0
    for path in paths:
        try:
            mask = read_mask(path)
        except InputError:
            continue
        if ((mask > 0) & (mask != IGNORE)).any():
            return
        count += 1
        if first is None and (mask == IGNORE).any():
            first = path
    if first is not None:
        remedy = remedy or (
            "if 255 is the foreground, set foreground to 255" if n_classes == 1 else "expected class ids"
        )
        raise InputError(
            f"{first.parent}: all {count} masks hold only 0 and 255, and 255 means unknown (the first: {first.name}); "
            f"{remedy}"
        )


def check_masks(
    folder: Path | str, dataset: Dataset, highest: int | None = None, *, foreground: int | None = None
) -> None:
    """Check that `folder` holds a good mask `ID.png` for every image of `dataset`.

    Args:
        folder: the folder of masks.
        dataset: gives the images, whose sizes the masks must have.
        highest: the highest id; without it the number of classes.
        foreground: see `amn_fast.data.image.read_mask`.

    Raises:
        InputError: masks are missing, or of the wrong size, with unknown ids, all 255, or unreadable; all of them are
            counted and the first ids and the first reason given. Or all masks hold only 0 and 255.
    """
    n_classes = highest or len(dataset.classes)
    check_foreground(foreground, n_classes)
    found = find_masks(Path(folder))
    present = {id: found[id] for id in dataset.ids if id in found}
    if foreground is None:
        require_class_ids(present.values(), n_classes)
    missing = [id for id in dataset.ids if id not in found]
    wrong, reason = [], ""
    for id, path in present.items():
        try:
            check_mask(path, dataset.image(id).shape[:2], n_classes, foreground)
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
