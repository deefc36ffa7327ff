"""Activations on disk, one file a picture.

Each file is an `.npz` with `keys` (K,) uint8 labels, `strided` (K, h, w) and `full` (K, H, W) float16. Half precision
keeps eleven bits of each value: activations lie in [0, 1], so the error is below 2.5e-4. Nothing in it is a pickle.

A compact file holds `size` (H, W) in place of `full`, which is most of the bytes. make-mask needs no more; seeds
are not made from it. `benchmarks/bench_activation_store.py` measures both forms and what they change.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn_fast.errors import InputError
from amn_fast.files import write_atomically
from amn_fast.ops.mask import upsample


@dataclass(frozen=True)
class Activations:
    """Activations of one picture's classes.

    Attributes:
        keys: (K,) labels of the channels, 1..C, ascending; K = 0 for a picture without any class.
        strided: (K, h, w) float32 in [0, 1] at stride 4: h = (H - 1) // 4 + 1.
        full: (K, H, W) float32 in [0, 1] at the picture's size.
    """

    keys: NDArray[np.uint8]
    strided: NDArray[np.float32]
    full: NDArray[np.float32]


def write_activations(path: Path | str, activations: Activations, *, compact: bool = False) -> None:
    """Write one picture's activations, atomically and in the same bytes each time.

    Args:
        compact: leave out `full`; a reader gets `strided` enlarged bilinearly instead.

    Raises:
        InputError: a value is not finite.
    """
    for name in ("strided", "full"):
        if not np.isfinite(getattr(activations, name)).all():
            raise InputError(f"activations for {path}: {name} holds NaN or infinity, expected finite values")
    arrays = {"keys": activations.keys.astype(np.uint8), "strided": activations.strided.astype(np.float16)}
    if compact:
        arrays["size"] = np.array(activations.full.shape[1:], np.int32)
    else:
        arrays["full"] = activations.full.astype(np.float16)
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def read_activations(path: Path | str, *, enlarge: bool = True) -> Activations:
    """Read what `write_activations` wrote.

    Args:
        enlarge: take the enlarged `strided` of a compact file for `full`; if False, a compact file is an error.

    Raises:
        InputError: the file is missing, damaged or of another form, or compact.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not (enlarge or "full" in file):
                raise ValueError(
                    "it is compact, without the maps at full size, which are needed here; convert with --full"
                )
            strided = file["strided"].astype(np.float32)
            full = file["full"].astype(np.float32) if "full" in file else _enlarged(strided, file["size"])
            found = Activations(file["keys"], strided, full)
            _check(found)
            return found
    except FileNotFoundError:
        raise InputError(f"activation file {path} does not exist") from None
    except Exception as error:  # of damaged archives there are many, and each layer has its own errors
        raise InputError(f"activation file {path} cannot be read: {' '.join(str(error).split())}") from error


def _enlarged(strided: NDArray[np.float32], size: NDArray[np.integer]) -> NDArray[np.float32]:
    height, width = (int(side) for side in size)
    if strided.ndim != 3 or strided.shape[1:] != ((height - 1) // 4 + 1, (width - 1) // 4 + 1):
        raise ValueError(f"strided {strided.shape} and size {(height, width)} do not belong together")
    return upsample(strided, (height, width))


def _check(found: Activations) -> None:
    keys, strided, full = found.keys, found.strided, found.full
    if keys.dtype != np.uint8 or keys.ndim != 1 or full.ndim != 3:
        raise ValueError(
            f"keys are {keys.dtype} {keys.shape} and full is {full.shape}, expected uint8 (K,) and (K, H, W)"
        )
    expected = (len(keys), (full.shape[1] - 1) // 4 + 1, (full.shape[2] - 1) // 4 + 1)
    if len(full) != len(keys) or strided.shape != expected:
        raise ValueError(f"{len(keys)} keys, full {full.shape} and strided {strided.shape} do not belong together")
    if not (np.isfinite(strided).all() and np.isfinite(full).all()):
        raise ValueError("it holds NaN or infinity, expected finite values")
