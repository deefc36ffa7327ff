"""Activations on disk, one file an image.

Each file is an `.npz` with `keys` (K,) uint8 labels, `strided` (K, h, w) and `full` (K, H, W) float16, and `full_size`
(H, W). Half precision keeps eleven bits of each value: activations lie in [0, 1], so the error is below 2.5e-4. Nothing
in it is a pickle.

A compact file holds `size` (H, W) in place of `full`, which is most of the bytes. Masks need no more; seeds are not
made from it. `benchmarks/test_store.py` measures both forms and what they change.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast.errors import InputError
from amn_fast.files import retried, write_atomically
from amn_fast.ops.mask import upsample

_MOST_BYTES = 1 << 32
"""The most that a file may unfold to; 80 maps of 2048 x 2048 pixels take 0.7 GB."""


@dataclass(frozen=True)
class Activations:
    """Activations of one image's classes.

    Attributes:
        keys: (K,) labels of the channels, 1..C, ascending; K = 0 for an image without any class.
        strided: (K, h, w) float32 in [0, 1] at stride 4: h = (H - 1) // 4 + 1.
        full: (K, H, W) float32 in [0, 1] at the size of the image.
    """

    keys: NDArray[np.uint8]
    strided: NDArray[np.float32]
    full: NDArray[np.float32]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return (self.full.shape[1], self.full.shape[2])


@dataclass(frozen=True)
class StridedActivations:
    """Activations at stride 4 alone, and the size (H, W) of the image."""

    keys: NDArray[np.uint8]
    strided: NDArray[np.float32]
    size: tuple[int, int]


class _Unfit(Exception):
    """What is wrong with a file, for a message."""


def write_activations(path: Path | str, activations: Activations, *, compact: bool = False) -> None:
    """Write one image's activations, atomically and in the same bytes each time.

    Args:
        compact: leave out `full`; a reader gets `strided` upsampled bilinearly instead.

    Raises:
        InputError: a value is not finite.
    """
    for name in ("strided", "full"):
        if not np.isfinite(getattr(activations, name)).all():
            raise InputError(f"activations for {path}: {name} holds NaN or infinity, expected finite values")
    arrays = {"keys": activations.keys.astype(np.uint8), "strided": activations.strided.astype(np.float16)}
    size = np.array(activations.size, np.int32)
    if compact:
        arrays["size"] = size
    else:
        arrays |= {"full_size": size, "full": activations.full.astype(np.float16)}
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def as_stored(activations: Activations) -> Activations:
    """What a reader gets of these activations once they were written: every value rounded to half precision."""
    strided, full = (maps.astype(np.float16).astype(np.float32) for maps in (activations.strided, activations.full))
    return Activations(activations.keys, strided, full)


def read_activations(path: Path | str, *, upsampled: bool = True) -> Activations:
    """Read what `write_activations` wrote.

    Args:
        upsampled: take the upsampled `strided` of a compact file for `full`; if False, a compact file is an error.

    Raises:
        InputError: the file is missing, damaged or of another form, or compact.
    """

    def read(file: Any) -> Activations:
        if "size" in file and not upsampled:
            raise _Unfit("it is compact, without the maps at full size, which are needed here; convert with --full")
        strided = file["strided"].astype(np.float32)
        full = upsample(strided, _size(file)) if "size" in file else file["full"].astype(np.float32)
        found = Activations(file["keys"], strided, full)
        _check(found)
        if len(full) != len(strided) or not np.isfinite(full).all():
            raise _Unfit(f"full has shape {full.shape} or holds NaN or infinity, expected {len(strided)} maps")
        return found

    return _read(path, read)


def is_compact(path: Path | str) -> bool:
    """Whether a file lacks the maps at full size.

    Raises:
        InputError: the file is missing, damaged or of another form.
    """
    return _read(path, lambda file: "size" in file)


def read_strided(path: Path | str) -> StridedActivations:
    """Read the maps at stride 4 alone; the maps at full size are not decompressed.

    Raises:
        InputError: the file is missing, damaged or of another form.
    """

    def read(file: Any) -> StridedActivations:
        found = StridedActivations(file["keys"], file["strided"].astype(np.float32), _size(file))
        _check(found)
        return found

    return _read(path, read)


def _read(path: Path | str, read: Any) -> Any:
    try:
        with np.load(path, allow_pickle=False) as file:
            archive: Any = file.zip
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise _Unfit(f"it unfolds to more than {_MOST_BYTES >> 30} GiB")
            return retried(lambda: read(file))
    except FileNotFoundError:
        raise InputError(f"activation file {path} does not exist") from None
    except _Unfit as error:
        raise InputError(f"activation file {path} cannot be read: {error}") from error
    except Exception as error:  # of damaged archives there are many, and each layer has its own errors and words
        raise InputError(f"activation file {path} cannot be read: it is damaged or of another format") from error


def _size(file: Any) -> tuple[int, int]:
    """(H, W); files of earlier versions with `full` lack it, and the header of `full` tells."""
    for name in ("size", "full_size"):
        if name in file:
            height, width = (int(side) for side in file[name])
            return height, width
    archive: zipfile.ZipFile = file.zip
    with archive.open("full.npy") as member:
        np.lib.format.read_magic(member)
        shape, _, _ = np.lib.format.read_array_header_1_0(member)
    if len(shape) != 3:
        raise _Unfit(f"full has shape {shape}, expected (K, H, W)")
    return int(shape[1]), int(shape[2])


def strided_size(height: int, width: int) -> tuple[int, int]:
    """The size of the maps at stride 4 of an image.

    Examples:
        >>> strided_size(375, 500)
        (94, 125)
    """
    return (height - 1) // 4 + 1, (width - 1) // 4 + 1


def _check(found: Activations | StridedActivations) -> None:
    keys, strided, size = found.keys, found.strided, found.size
    if keys.dtype != np.uint8 or keys.ndim != 1:
        raise _Unfit(f"keys are {keys.dtype} {keys.shape}, expected uint8 (K,)")
    expected = (len(keys), *strided_size(*size))
    if min(size) < 1 or strided.shape != expected:
        raise _Unfit(f"{len(keys)} keys, strided {strided.shape} and size {size} do not belong together")
    if not np.isfinite(strided).all():
        raise _Unfit("it holds NaN or infinity, expected finite values")
