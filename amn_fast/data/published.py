"""Activations in the published code's form, and the way from it to our store and back.

The published CAM and AMN code pickles a dictionary for each picture into `ID.npy`:

- `keys`: (K,) int64 tensor, the picture's classes *from 0*;
- `cam`: (C, h, w) float32 tensor at stride 4, and `high_res`: (C, H, W) float32 array.

The background: a CAM has no channel for it, C = K; AMN's activations have it first, C = K + 1. `keys` never names it.
The published steps that make seeds and masks skip that channel and put a threshold in its place, as ours do, so it is
left aside on reading. A picture without any class has `keys` alone in the COCO variant, empty arrays in the VOC one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast._extras import require
from amn_fast.data.legacy import read_legacy, write_legacy
from amn_fast.data.store import Activations, read_activations, write_activations
from amn_fast.errors import InputError

Size = tuple[int, int]
SizeOf = Callable[[str], Size]
Advance = Callable[[int, int], object]
"""Called after each file with the number of those done and of all."""


def read_published(path: Path | str, size_of: SizeOf | None = None) -> Activations:
    """One picture's activations from a published `.npy` dictionary; nothing in the file is executed.

    Args:
        size_of: gives (H, W) of a picture by its id, the file's name without `.npy`; asked where the file holds no map.

    Returns:
        the foreground classes alone, labels from 1.

    Raises:
        InputError: the file is missing, damaged, asks for anything but arrays and tensors, or lacks an entry, or its
            entries do not belong together; or it holds no map, and `size_of` is not given.
    """
    entries = read_legacy(path)
    if not isinstance(entries, dict) or "keys" not in entries:
        raise InputError(f"{path}: holds no dictionary with keys, cam and high_res")
    classes = np.asarray(entries["keys"])
    if classes.ndim != 1 or (classes.size and classes.dtype.kind not in "iu"):
        raise InputError(f"{path}: keys are {classes.dtype} of shape {classes.shape}, expected whole numbers (K,)")
    keys = classes.astype(np.int64) + 1
    if keys.size and not (keys[0] >= 1 and keys[-1] <= 254 and (np.diff(keys) > 0).all()):
        raise InputError(f"{path}: keys are {classes.tolist()}, expected ascending classes within 0..253")
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
            raise InputError(f"{path}: has no class and so no map that tells the picture's size; name the pictures too")
        size = size_of(path.stem)
        return np.zeros((0, *_strided(size)), np.float32), np.zeros((0, *size), np.float32)
    cam, full = np.asarray(entries["cam"]), np.asarray(entries["high_res"])
    fits = cam.ndim == full.ndim == 3 and len(cam) == len(full) and 0 not in full.shape[1:]
    if not fits or len(cam) - count not in (0, 1) or cam.shape[1:] != _strided(full.shape[1:]):
        raise InputError(f"{path}: {count} keys, cam {cam.shape} and high_res {full.shape} do not belong together")
    if cam.dtype.kind != "f" or full.dtype.kind != "f" or not (np.isfinite(cam).all() and np.isfinite(full).all()):
        raise InputError(f"{path}: cam is {cam.dtype}, high_res {full.dtype}, expected finite floating-point numbers")
    background = len(cam) - count
    return cam[background:].astype(np.float32), full[background:].astype(np.float32)


def write_published(path: Path | str, activations: Activations, *, background: bool) -> None:
    """Write one picture's activations as the published code does, atomically.

    Args:
        background: with AMN's channel for the background before the classes, which the published steps after AMN take
            for granted. Our activations do not hold it: it is written as 1 - the highest class, and skipped there. A
            picture without any class gets `keys` alone, as in the COCO variant.

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
    """Convert every `ID.npy` in `source` to `ID.npz` in `target`, a folder of ours such as RUN/amn.

    Args:
        compact: without the maps at full size; see `amn_fast.data.store`.
        size_of: see `read_published`, and `sizes_in`.

    Returns:
        the number of pictures.

    Raises:
        InputError: there is no file, or one cannot be used; the message names it.
    """

    def one(path: Path) -> None:
        write_activations(target / f"{path.stem}.npz", read_published(path, size_of), compact=compact)

    return _for_each(_find_activations(source, ".npy"), one, advance)


def to_published(source: Path, target: Path, *, background: bool, advance: Advance = lambda done, total: None) -> int:
    """Convert every `ID.npz` in `source` to `ID.npy` in `target`; see `write_published`.

    Returns:
        the number of pictures.

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
    """(H, W) of the pictures in `folder` by id, read when asked for.

    Raises:
        InputError: the folder is missing or holds no picture; when asked for: it lacks that picture.
    """
    from amn_fast.data.folder import find_pictures
    from amn_fast.data.image import image_size

    pictures = find_pictures(folder)

    def size_of(id: str) -> Size:
        if id not in pictures:
            raise InputError(f"{folder}: holds no picture {id!r}, whose size its activations do not tell")
        return image_size(pictures[id])

    return size_of


def _find_activations(folder: Path, suffix: str) -> list[Path]:
    """The activation files in `folder`, in the order of their names.

    Raises:
        InputError: there is none.
    """
    files = sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))
    if not files:
        raise InputError(f"{folder}: holds no activation file *{suffix}")
    return files


def _strided(size: tuple[int, ...]) -> Size:
    return (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1
