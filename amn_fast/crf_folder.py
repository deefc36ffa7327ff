"""`amn-fast crf`: the dense CRF over a folder of pictures and a folder of probabilities or label maps."""

import hashlib
import json
import math
import os
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amn_fast.data.base import list_ids
from amn_fast.data.image import PICTURE_SUFFIXES, read_image, read_mask
from amn_fast.data.masks import describe_size, write_mask
from amn_fast.errors import InputError
from amn_fast.ops.dense_crf import DenseCRF
from amn_fast.ops.unary import unary_from_labels, unary_from_softmax

Array = np.ndarray[Any, np.dtype[Any]]
PROBABILITY_SUFFIXES = frozenset({".npy", ".npz", ".png"})
RECORD = "crf.jsonl"
FORMAT = 1
"""Raised when masks come out differently than before under the same settings."""


@dataclass(frozen=True)
class Settings:
    """Everything but the files that a mask depends on.

    Attributes:
        gaussian: (sxy, compat) of the smoothness kernel.
        bilateral: (sxy, srgb, compat) of the appearance kernel.
        iterations: mean-field steps.
        gt_prob: how far label maps are trusted.
        labels: how many labels compete in a label map: 0..labels-1. None: those that occur in it.
        unknown: the label that stands for "unknown" in label maps; the CRF fills such pixels.
        key: the array to take from NPZ files that hold several.
    """

    gaussian: tuple[float, float] = (3, 3)
    bilateral: tuple[float, float, float] = (50, 5, 10)
    iterations: int = 10
    gt_prob: float = 0.7
    labels: int | None = None
    unknown: int = 255
    key: str | None = None

    def __post_init__(self) -> None:
        for name, kernel in (("gaussian", self.gaussian), ("bilateral", self.bilateral)):
            if not all(0 < deviation < math.inf for deviation in kernel[:-1]) or not math.isfinite(kernel[-1]):
                raise InputError(f"{name} is {kernel}, expected deviations greater than 0, then a finite compat")
        if not 0 < self.gt_prob < 1:
            raise InputError(f"gt_prob is {self.gt_prob}, expected a probability between 0 and 1, both excluded")
        if self.labels is not None and not 2 <= self.labels <= 255:
            raise InputError(f"labels is {self.labels}, expected 2..255")

    def fingerprint(self) -> str:
        content = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


# The published settings of three projects whose pictures, like those of VOC, measure about 375 x 500 pixels.
PRESETS: dict[str, tuple[tuple[float, float], tuple[float, float, float]]] = {
    "irn": ((3, 3), (50, 5, 10)),
    "psa": ((3, 3), (80, 13, 10)),
    "deeplab": ((1, 3), (67, 3, 4)),
}


@dataclass(frozen=True)
class Pair:
    """A picture, its probabilities or label map, and the mask to write."""

    id: str
    picture: Path
    probabilities: Path
    mask: Path
    others: tuple[Path, ...] = ()
    """More files that the mask depends on."""


def find_pairs(pictures: Path, probabilities: Path, out: Path) -> tuple[list[Pair], list[str]]:
    """Join two folders by the files' stems.

    Returns:
        the pairs in order of their ids, and the ids of the pictures without probabilities.

    Raises:
        InputError: a folder is missing or is `out` as well, two files have one stem, probabilities have no picture, or
            there is no pair at all.
    """
    for folder in (pictures, probabilities):
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder")
        if out.exists() and out.samefile(folder):
            raise InputError(f"{out}: is the folder of the masks and of the inputs, expected another one")
    picture_of = _by_stem(pictures, PICTURE_SUFFIXES)
    probability_of = _by_stem(probabilities, PROBABILITY_SUFFIXES)
    strays = sorted(set(probability_of) - set(picture_of))
    if strays:
        raise InputError(f"{probabilities}: {list_ids(strays)} without a picture in {pictures}")
    if not probability_of:
        raise InputError(f"{probabilities}: holds no NPY, NPZ or PNG file")
    pairs = [Pair(id, picture_of[id], probability_of[id], out / f"{id}.png") for id in sorted(probability_of)]
    return pairs, sorted(set(picture_of) - set(probability_of))


def _by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in found:
            raise InputError(f"{found[path.stem]} and {path.name} have one name, expected one file for each")
        found[path.stem] = path
    return found


def refine_folder(
    pairs: list[Pair],
    out: Path,
    settings: Settings,
    *,
    threads: int | None = None,
    advance: Callable[[], None] = lambda: None,
    compute: Callable[[Pair], Array] | None = None,
) -> int:
    """Write the mask of each pair; those that exist under the same settings and from the same files are skipped.

    Each thread works on a picture of its own; the masks do not depend on how many there are. `out`/crf.jsonl records
    the settings and inputs of each mask.

    Args:
        threads: None takes all cores that this process may use.
        advance: called after each pair.
        compute: gives the mask of a pair; None: the dense CRF of its probabilities.

    Returns:
        how many masks were computed; the rest existed.

    Raises:
        InputError: `out` holds masks of unknown origin; or files could not be used: the others' masks are written, then
            those files are counted and the first reasons given.
        OSError: a mask cannot be written.
    """
    threads = _cores() if threads is None else threads
    if threads < 1:
        raise InputError(f"threads is {threads}, expected at least 1")
    record = _Record(out, settings)
    record.claim(pairs)
    due = [pair for pair in pairs if not record.has(pair)]
    for _ in range(len(pairs) - len(due)):
        advance()
    mask_of = compute or (lambda pair: _mask_of(pair, settings))
    failures: list[str] = []
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(_refine, pair, record, mask_of) for pair in due]
        try:
            for future in as_completed(futures):
                try:
                    future.result()
                except InputError as error:
                    failures.append(str(error))
                advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if failures:
        more = "" if len(failures) <= 3 else f"; and {len(failures) - 3} more"
        reasons = "; ".join(sorted(failures)[:3])
        raise InputError(f"{len(failures)} of {len(pairs)} pictures have no mask: {reasons}{more}")
    return len(due)


def _refine(pair: Pair, record: "_Record", compute: Callable[[Pair], Array]) -> None:
    entry = record.entry(pair)  # before the files are read: one that changes meanwhile counts as changed
    mask = compute(pair)
    record.forget(pair)
    write_mask(pair.mask, mask)
    record.append(entry)


def _mask_of(pair: Pair, settings: Settings) -> Array:
    image = read_image(pair.picture)
    given = read_probabilities(pair.probabilities, settings.key)
    if given.shape[-2:] != image.shape[:2]:
        raise InputError(
            f"{pair.probabilities} has shape {given.shape}, but its picture {pair.picture} is "
            f"{describe_size(image.shape[:2])}, expected (..., {image.shape[0]}, {image.shape[1]})"
        )
    try:
        unary, names = _unary(given, settings)
    except InputError as error:
        raise InputError(f"{pair.probabilities}: {error}") from error
    if len(names) == 1:
        return np.full(image.shape[:2], names[0], np.uint8)
    crf = DenseCRF(image, gaussian=settings.gaussian, bilateral=settings.bilateral)
    best: Array = names[crf.labels(unary, settings.iterations)]
    return best


def _unary(given: Array, settings: Settings) -> tuple[Array, Array]:
    """Energies (L, H, W), and the labels (L,) uint8 that their rows stand for."""
    if given.dtype.kind == "f":
        return unary_from_softmax(given), np.arange(len(given), dtype=np.uint8)
    known = given[given != settings.unknown]
    if not known.size:
        raise InputError(f"every pixel is {settings.unknown} (unknown)")
    if settings.labels is not None:
        names = np.setdiff1d(np.arange(settings.labels), settings.unknown)
        if known.max() >= settings.labels:
            raise InputError(f"holds label {known.max()}, expected 0..{settings.labels - 1} or {settings.unknown}")
    else:
        names = np.unique(known)
    if len(names) == 1:
        return np.zeros((1, *given.shape), np.float32), names.astype(np.uint8)
    rows = np.where(given == settings.unknown, len(names), np.searchsorted(names, given))
    unary = unary_from_labels(rows, len(names), settings.gt_prob, zero_unsure=False, ignore_label=len(names))
    return unary, names.astype(np.uint8)


def read_probabilities(path: Path, key: str | None = None) -> Array:
    """Probabilities (L, H, W) float, L in 2..255, or a label map (H, W) of whole numbers 0..255, from a file.

    A float array (H, W) or (1, H, W) is the foreground's probability and becomes (2, H, W).

    Raises:
        InputError: the file is missing or damaged, holds Python objects, several arrays without `key`, another shape,
            or values that are no probabilities or labels.
    """
    array = read_mask(path) if path.suffix.lower() == ".png" else _read_numpy(path, key)
    if array.size == 0 or array.ndim not in (2, 3):
        raise InputError(f"{path} has shape {array.shape}, expected (L, H, W) probabilities or (H, W) labels")
    if array.dtype.kind in "biu" and array.ndim == 2:
        if array.min() < 0 or array.max() > 255:
            raise InputError(f"{path} holds labels {array.min()}..{array.max()}, expected 0..255")
        return array.astype(np.uint8)
    if array.dtype.kind != "f":
        raise InputError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected (L, H, W) floating-point probabilities or "
            "(H, W) whole-number labels"
        )
    if not array.min() >= -1e-3 or not array.max() <= 1 + 1e-3:  # NaN too
        raise InputError(
            f"{path} holds values {array.min():g}..{array.max():g}, expected probabilities 0..1: take the softmax first"
        )
    if array.ndim == 2 or len(array) == 1:
        foreground = np.clip(array.reshape(array.shape[-2:]).astype(np.float32), 0, 1)
        return np.stack([1 - foreground, foreground])
    if len(array) > 255:
        hint = ": move the labels to the front" if array.shape[2] <= 255 else ""
        raise InputError(f"{path} has shape {array.shape}, expected (L, H, W) with at most 255 labels{hint}")
    return array


# What NumPy raises on damaged files, and on Python objects.
_DAMAGE = (OSError, ValueError, EOFError, KeyError, SyntaxError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def _read_numpy(path: Path, key: str | None) -> Array:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = loaded.files
            if key is None and len(names) == 1:
                key = names[0]
            if key not in names:
                wanted = "one array, or its name as --key" if key is None else f"one named {key}"
                raise InputError(f"{path} holds the arrays {', '.join(names) or 'none'}, expected {wanted}")
            return np.asarray(loaded[key])
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{path} cannot be read as an array of numbers: {error}") from error


class _Record:
    """`crf.jsonl`: a first line of settings for people, then a line for each mask that was written."""

    def __init__(self, out: Path, settings: Settings) -> None:
        self._path = out / RECORD
        self._settings = settings
        self._fingerprint = settings.fingerprint()
        self._lock = threading.Lock()
        self._known = self._path.exists()
        self._entries = {entry["id"]: entry for entry in self._read() if "id" in entry}

    def claim(self, pairs: list[Pair]) -> None:
        """Make sure that the masks to be written replace only masks that an earlier run has written."""
        if not self._known:
            foreign = [pair.id for pair in pairs if pair.mask.exists()]
            if foreign:
                raise InputError(
                    f"{self._path.parent}: {list_ids(foreign)} there already, and not from this command (no {RECORD}); "
                    "expected a folder of its own"
                )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.append({"settings": {**asdict(self._settings), "fingerprint": self._fingerprint}})

    def has(self, pair: Pair) -> bool:
        return pair.mask.exists() and self._entries.get(pair.id) == self.entry(pair)

    def entry(self, pair: Pair) -> dict[str, Any]:
        """Names what the mask depends on."""
        inputs = [_state(path) for path in (pair.picture, pair.probabilities, *pair.others)]
        return {"id": pair.id, "settings": self._fingerprint, "inputs": inputs}

    def forget(self, pair: Pair) -> None:
        """Called before a mask is replaced: a run that ends in between leaves no mask under another's entry."""
        if pair.id in self._entries:
            self.append({"id": pair.id})

    def append(self, entry: dict[str, Any]) -> None:
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _read(self) -> list[dict[str, Any]]:
        entries = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines() if self._known else []:
            try:
                entries.append(json.loads(line))
            except ValueError:  # a line that was cut off when the run was: its mask is computed again
                continue
        return [entry for entry in entries if isinstance(entry, dict)]


def _state(path: Path) -> list[Any]:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: there is no such file any more") from error
    return [path.name, status.st_size, status.st_mtime_ns]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
