"""Activations in the form of IRN's and AMN's code, read into our store and written back.

That code pickles a dictionary for each image into `ID.npy`:

- `keys`: (K,) int64 tensor, the image's classes *from 0*;
- `cam`: (C, h, w) float32 tensor at stride 4, and `high_res`: (C, H, W) float32 array.

A CAM has no channel for the background, C = K; AMN's activations have it first, C = K + 1. `keys` never names it. The
steps that make seeds and masks skip that channel and put a threshold in its place, here as there, so it is dropped on
reading. An image without any class has `keys` alone in the COCO variant, empty arrays in the VOC one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast._extras import require
from amn_fast.data.legacy import read_legacy, write_legacy
from amn_fast.data.names import find_files, find_images
from amn_fast.data.store import Activations, read_activations, strided_size, write_activations
from amn_fast.errors import InputError

Size = tuple[int, int]
SizeOf = Callable[[str], Size]
Advance = Callable[[int, int], object]
"""Called after each file with the number of those done and of all."""


def read_published(
    path: Path | str, size_of: SizeOf | None = None, labels: NDArray[np.bool_] | None = None
) -> Activations:
    """Read one image's activations from a `.npy` dictionary of IRN's or AMN's code; nothing in the file is executed.

    Args:
        path: the file, `ID.npy`.
        size_of: gives (H, W) of an image by its id, the file's name without `.npy`; asked where the file holds no map.
        labels: (C,) bool, the image's labels, where they are known: the file's classes have to be the same.

    Returns:
        the foreground classes alone, labels from 1.

    Raises:
        InputError: the file is missing, damaged, asks for anything but arrays and tensors, or lacks an entry, or its
            entries do not belong together; its classes are not those of `labels`; or it holds no map, and `size_of` is
            not given.
    """
    entries = read_legacy(path)
    if not isinstance(entries, dict) or "keys" not in entries:
        raise InputError(f"{path}: holds no dictionary with keys, cam and high_res")
    classes = entries["keys"]
    if not isinstance(classes, np.ndarray) or classes.ndim != 1 or (classes.size and classes.dtype.kind not in "iu"):
        found = f"{classes.dtype} of shape {classes.shape}" if isinstance(classes, np.ndarray) else "no array"
        raise InputError(f"{path}: keys are {found}, expected integers (K,)")
    # uint64 beyond int64 wraps below 0, which is refused as well.
    keys = classes.astype(np.int64) + 1
    if keys.size and not (keys[0] >= 1 and keys[-1] <= 254 and (np.diff(keys) > 0).all()):
        found = f"{classes[:20].tolist()}{'...' if len(classes) > 20 else ''}"
        raise InputError(f"{path}: keys are {found}, expected ascending classes within 0..253")
    if labels is not None and keys.tolist() != (own := (np.flatnonzero(labels) + 1).tolist()):
        raise InputError(
            f"{path}: keys are {classes.tolist()}, expected {[key - 1 for key in own]}, the classes of the image's "
            "labels, counted from 0"
        )
    return Activations(keys.astype(np.uint8), *_maps(Path(path), entries, len(keys), size_of))


def _maps(
    path: Path, entries: Mapping[str, Any], count: int, size_of: SizeOf | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The foreground's channels of both maps."""
    lacking = [name for name in ("cam", "high_res") if name not in entries]
    if lacking and count:
        raise InputError(f"{path}: lacks {' and '.join(lacking)}, expected keys, cam and high_res")
    if lacking:
        if size_of is None:
            raise InputError(f"{path}: has no class and so no map that tells the image's size; name the images too")
        size = size_of(path.stem)
        return np.zeros((0, *strided_size(*size)), np.float32), np.zeros((0, *size), np.float32)
    cam, full = entries["cam"], entries["high_res"]
    if not isinstance(cam, np.ndarray) or not isinstance(full, np.ndarray):
        raise InputError(f"{path}: cam or high_res is no array")
    fits = cam.ndim == full.ndim == 3 and len(cam) == len(full) and 0 not in full.shape[1:]
    if not fits or len(cam) - count not in (0, 1) or cam.shape[1:] != strided_size(*full.shape[1:]):
        raise InputError(f"{path}: {count} keys, cam {cam.shape} and high_res {full.shape} do not belong together")
    if cam.dtype.kind != "f" or full.dtype.kind != "f" or not (np.isfinite(cam).all() and np.isfinite(full).all()):
        raise InputError(f"{path}: cam is {cam.dtype}, high_res {full.dtype}, expected finite floating-point numbers")
    background = len(cam) - count
    return cam[background:].astype(np.float32), full[background:].astype(np.float32)


def write_published(path: Path | str, activations: Activations, *, background: bool) -> None:
    """Write one image's activations as IRN's and AMN's code does, atomically.

    Args:
        path: the file to write.
        activations: labels from 1.
        background: with AMN's channel for the background before the classes, which its steps after AMN expect. The
            store does not hold it: it is written as 1 - the highest class, and skipped there. An image without any
            class gets `keys` alone, as in the COCO variant.

    Raises:
        MissingExtra: PyTorch is not installed; `keys` and `cam` are tensors.
    """
    require("torch", "pipeline")
    import torch

    entries: dict[str, Any] = {"keys": torch.from_numpy(activations.keys.astype(np.int64) - 1)}
    if len(activations.keys):
        maps = [activations.strided, activations.full]
        if background:
            maps = [np.concatenate([1 - m.max(0, keepdims=True), m]) for m in maps]
        entries["cam"], entries["high_res"] = torch.from_numpy(maps[0].astype(np.float32)), maps[1].astype(np.float32)
    write_legacy(path, entries)


def to_store(
    source: Path,
    target: Path,
    *,
    compact: bool = True,
    size_of: SizeOf | None = None,
    advance: Advance = lambda done, total: None,
) -> int:
    """Convert every `ID.npy` in `source` to `ID.npz` in `target`, a folder of the store such as RUN/amn.

    Args:
        compact: without the maps at full size; see `amn_fast.data.store`.
        size_of: see `read_published`, and `sizes_in`.

    Returns:
        the number of images.

    Raises:
        InputError: there is no file, or one cannot be used; the message names it.
    """

    def one(path: Path) -> None:
        write_activations(target / f"{path.stem}.npz", read_published(path, size_of), compact=compact)

    return _for_each(_find_activations(source, ".npy"), one, advance)


def to_published(source: Path, target: Path, *, background: bool, advance: Advance = lambda done, total: None) -> int:
    """Convert every `ID.npz` in `source` to `ID.npy` in `target`; see `write_published`.

    Returns:
        the number of images.

    Raises:
        InputError: there is no file, or one cannot be read; the message names it.
    """

    def one(path: Path) -> None:
        write_published(target / f"{path.stem}.npy", read_activations(path), background=background)

    return _for_each(_find_activations(source, ".npz"), one, advance)


def _for_each(files: list[Path], one: Callable[[Path], None], advance: Advance) -> int:
    for done, path in enumerate(files, 1):
        one(path)
        advance(done, len(files))
    return len(files)


def sizes_in(folder: Path) -> SizeOf:
    """Give a function from an id to (H, W) of that image in `folder`, read when asked for.

    Raises:
        InputError: the folder is missing or holds no image; when asked for: it lacks that image.
    """
    from amn_fast.data.image import image_size

    images = find_images(folder)

    def size_of(id: str) -> Size:
        if id not in images:
            raise InputError(f"{folder}: holds no image {id!r}, and its activations do not tell its size")
        return image_size(images[id])

    return size_of


def _find_activations(folder: Path, suffix: str) -> list[Path]:
    """The activation files in `folder`, in the order of their names.

    Raises:
        InputError: there is none.
    """
    files = list(find_files(folder, {suffix}, "activations").values())
    if not files:
        raise InputError(f"{folder}: holds no activation file *{suffix}")
    return files
