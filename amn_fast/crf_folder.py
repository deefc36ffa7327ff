"""`amn-fast crf`: the dense CRF over a folder of images and a folder of probabilities or label maps."""

import hashlib
import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amn_fast._pool import thread_pool
from amn_fast.data.base import IGNORE, list_ids
from amn_fast.data.image import read_image, read_mask
from amn_fast.data.masks import describe_size, require_class_ids, write_mask
from amn_fast.data.names import IMAGE_SUFFIXES, find_files
from amn_fast.errors import InputError
from amn_fast.files import locked, remove_leftovers, retried
from amn_fast.ops._arrays import thread_count
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
        gaussian: (sigma_xy, compat) of the smoothness kernel.
        bilateral: (sigma_xy, sigma_rgb, compat) of the appearance kernel.
        iterations: mean-field iterations.
        gt_prob: label confidence of label maps.
        labels: number of labels of a label map: 0..labels-1. None: those present in it.
        unknown: the label of unknown pixels in label maps; the CRF fills them.
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
            if not all(0 < sigma < math.inf for sigma in kernel[:-1]) or not math.isfinite(kernel[-1]):
                raise InputError(f"{name} is {kernel}, expected sigmas greater than 0, then a finite compat")
        if not 0 < self.gt_prob < 1:
            raise InputError(f"gt_prob is {self.gt_prob}, expected a probability between 0 and 1, both excluded")
        if self.labels is not None and not 2 <= self.labels <= 255:
            raise InputError(f"labels is {self.labels}, expected 2..255")

    def fingerprint(self) -> str:
        content = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


# The published settings of three projects for images of about 375 x 500 pixels, like those of VOC.
PRESETS: dict[str, tuple[tuple[float, float], tuple[float, float, float]]] = {
    "irn": ((3, 3), (50, 5, 10)),
    "psa": ((3, 3), (80, 13, 10)),
    "deeplab": ((1, 3), (67, 3, 4)),
}


@dataclass(frozen=True)
class Pair:
    """An image, its probabilities or label map, and the mask to write."""

    id: str
    image: Path
    probabilities: Path
    mask: Path
    others: tuple[Path, ...] = ()
    """More files that the mask depends on."""


def find_pairs(images: Path, probabilities: Path, out: Path) -> tuple[list[Pair], list[str]]:
    """Join two folders by the files' stems.

    Returns:
        the pairs in order of their ids, and the ids of the images without probabilities.

    Raises:
        InputError: a folder is missing or is `out` as well, two files have one stem, probabilities have no image, or
            there is no pair at all.
    """
    for folder in (images, probabilities):
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder")
        if out.exists() and out.samefile(folder):
            raise InputError(f"{out}: is the folder of the masks and of the inputs, expected another one")
    image_of = find_files(images, IMAGE_SUFFIXES, "images")
    probability_of = find_files(probabilities, PROBABILITY_SUFFIXES, "files")
    strays = sorted(set(probability_of) - set(image_of))
    if strays:
        raise InputError(f"{probabilities}: {list_ids(strays)} without an image in {images}")
    if not probability_of:
        raise InputError(f"{probabilities}: holds no NPY, NPZ or PNG file")
    pairs = [Pair(id, image_of[id], probability_of[id], out / f"{id}.png") for id in sorted(probability_of)]
    return pairs, sorted(set(image_of) - set(probability_of))


def refine_folder(
    pairs: list[Pair],
    out: Path,
    settings: Settings,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    advance: Callable[[], None] = lambda: None,
    compute: Callable[[Pair], Array] | None = None,
) -> int:
    """Write the mask of each pair; masks that are up to date are skipped.

    A mask is up to date when the same settings gave it, its input files have not changed and it is as it was written.
    Each thread works on one image; the masks do not depend on their number. `out`/crf.jsonl records the settings and
    inputs of each mask.

    Args:
        threads: None takes all CPUs that this process may use.
        overwrite: replace masks that other settings gave.
        advance: called after each pair.
        compute: gives the mask of a pair; None: the dense CRF of its probabilities.

    Returns:
        how many masks were computed; the rest existed.

    Raises:
        InputError: `out` holds masks of unknown origin or of other settings, or another process writes there; or files
            could not be used: the masks of the others are written, then those files are counted and the first reasons
            given.
        OSError: a mask cannot be written.
    """
    threads = thread_count(threads)
    _require_labels(pairs, settings)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock") as alone:
        if not alone:
            raise InputError(f"{out}: another amn-fast crf writes masks there, expected one at a time")
        record = _Record(out, settings)
        record.claim(pairs, overwrite)
        return _refine_all(pairs, record, threads, advance, compute or (lambda pair: _mask_of(pair, settings)))


def _require_labels(pairs: list[Pair], settings: Settings) -> None:
    """Refuse binary masks of 0 and 255, as most tools write them, where 255 means unknown."""
    files = [pair.probabilities for pair in pairs]
    if settings.unknown == IGNORE and all(path.suffix.lower() == ".png" for path in files):
        require_class_ids(
            files, 1, "if 255 is a label, name an unknown label that does not occur, such as --unknown 254"
        )


def _refine_all(
    pairs: list[Pair],
    record: "_Record",
    threads: int,
    advance: Callable[[], None],
    mask_of: Callable[[Pair], Array],
) -> int:
    due = [pair for pair in pairs if not record.has(pair)]
    for _ in range(len(pairs) - len(due)):
        advance()
    failures: list[str] = []
    with thread_pool(threads) as pool:
        for future in as_completed([pool.submit(_refine, pair, record, mask_of) for pair in due]):
            try:
                future.result()
            except InputError as error:
                failures.append(str(error))
            except MemoryError:
                failures.append("there is not enough memory for an image")
            advance()
    if failures:
        more = "" if len(failures) <= 3 else f"; and {len(failures) - 3} more"
        reasons = "; ".join(sorted(failures)[:3])
        raise InputError(f"{len(failures)} of {len(pairs)} images have no mask: {reasons}{more}")
    return len(due)


def _refine(pair: Pair, record: "_Record", compute: Callable[[Pair], Array]) -> None:
    entry = record.entry(pair)  # before the files are read: one that changes meanwhile counts as changed
    mask = compute(pair)
    record.forget(pair)
    write_mask(pair.mask, mask)
    record.append({**entry, "mask": _content(pair.mask)})


def _mask_of(pair: Pair, settings: Settings) -> Array:
    image = read_image(pair.image)
    given = read_probabilities(pair.probabilities, settings.key)
    if given.shape[-2:] != image.shape[:2]:
        raise InputError(
            f"{pair.probabilities} has shape {given.shape}, but its image {pair.image} is "
            f"{describe_size(image.shape[:2])}, expected (..., {image.shape[0]}, {image.shape[1]})"
        )
    try:
        unary, names = _unary(given, settings)
    except InputError as error:
        raise InputError(f"{pair.probabilities}: {error}") from error
    if len(names) == 1:
        return np.full(image.shape[:2], names[0], np.uint8)
    crf = DenseCRF(image, gaussian=settings.gaussian, bilateral=settings.bilateral, threads=1)
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
    """Probabilities (L, H, W) float, L in 2..255, or a label map (H, W) of integers 0..255, from a file.

    A float array (H, W) or (1, H, W) is the probability of the foreground and becomes (2, H, W).

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
            "(H, W) integer labels"
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


def _read_numpy(path: Path, key: str | None) -> Array:
    try:
        loaded = retried(lambda: np.load(path, allow_pickle=False))
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = loaded.files
            if key is None and len(names) == 1:
                key = names[0]
            if key not in names:
                wanted = "one array, or its name as --key" if key is None else f"one named {key}"
                raise InputError(f"{path} holds the arrays {', '.join(names) or 'none'}, expected {wanted}")
            return np.asarray(retried(lambda: loaded[key]))
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} holds an array that does not fit into memory") from error
    except Exception as error:  # of damaged and encrypted archives there are many, and each layer has its own errors
        raise InputError(f"{path} cannot be read as an array of numbers: {' '.join(str(error).split())}") from error


class _Record:
    """`crf.jsonl`: a first line of settings for people, then a line for each mask that was written."""

    def __init__(self, out: Path, settings: Settings) -> None:
        self._path = out / RECORD
        self.settings = settings
        self._fingerprint = settings.fingerprint()
        self._lock = threading.Lock()
        self._known = self._path.exists()
        self._entries = {entry["id"]: entry for entry in self._read() if isinstance(entry.get("id"), str)}

    def claim(self, pairs: list[Pair], overwrite: bool) -> None:
        """Make sure that the masks to be written replace only masks of these settings, or of others if allowed."""
        remove_leftovers(self._path.parent)
        if not self._known:
            foreign = [pair.id for pair in pairs if pair.mask.exists()]
            if foreign:
                raise InputError(
                    f"{self._path.parent}: {list_ids(foreign)} there already, and not from this command (no {RECORD}); "
                    "expected a folder of its own"
                )
        others = [id for id, e in self._entries.items() if e.get("settings") not in (None, self._fingerprint)]
        if others and not overwrite:
            raise InputError(
                f"{self._path.parent}: holds masks of other settings, {list_ids(others, 3)};"
                " expected another folder, or --overwrite to replace them"
            )
        self.append({"settings": {**asdict(self.settings), "fingerprint": self._fingerprint}})

    def has(self, pair: Pair) -> bool:
        known = dict(self._entries.get(pair.id, {}))
        mask = known.pop("mask", None)
        return pair.mask.is_file() and known == self.entry(pair) and mask == _content(pair.mask)

    def entry(self, pair: Pair) -> dict[str, Any]:
        """Names what the mask depends on."""
        inputs = [_state(path) for path in (pair.image, pair.probabilities, *pair.others)]
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
            except (ValueError, RecursionError):  # a line that a kill cut off: its mask is computed again
                continue
        return [entry for entry in entries if isinstance(entry, dict)]


def _state(path: Path) -> list[Any]:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: there is no such file any more") from error
    return [path.name, status.st_size, status.st_mtime_ns]


def _content(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
