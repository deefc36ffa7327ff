"""Reading the files that other methods write. Nothing in them is executed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from amn_fast.crf_folder import read_probabilities
from amn_fast.data.image import read_mask
from amn_fast.data.legacy import read_legacy
from amn_fast.data.masks import describe_size
from amn_fast.errors import InputError
from amn_fast.files import retried
from amn_fast.refine.settings import IGNORE, RefineSettings

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Scores:
    """The scores of an image's labels.

    Attributes:
        maps: (L, h, w) float32, at least 0, of any resolution.
        names: (L,) uint8, the labels that they stand for; the first is 0, except for label maps without background.
        hard: the CRF takes the best label of each pixel, with the label confidence `gt_prob`, as IRN's code does.
        unknown: (h, w) bool, the pixels of which nothing is known; None: there are none. The CRF fills them, otherwise
            they become 255.
    """

    maps: Array
    names: Array
    hard: bool = False
    unknown: Array | None = None


def read_scores(path: Path | str, settings: RefineSettings, size: tuple[int, int]) -> Scores:
    """Read the file of a method and apply that method's background rule.

    Args:
        path: IRN, AMN, ReCAM, AdvCAM: ID.npy with keys (0-based) and high_res (K, H, W), the background's score is a
            threshold. CLIP-ES: ID.npy with keys (0-based) and attn_highres (K, H, W), the background's is 1 - maximum.
            SeCo, ExCEL, ToCo: ID.npy with msc_seg (1, C, h, w) logits, the background is channel 0; upsampled, then
            softmax. "probabilities": see `crf_folder.read_probabilities`; a label map is hard.
        settings: method and background.
        size: (H, W) of the image.

    Raises:
        InputError: the file is damaged or is not such a file.

    Examples:
        >>> import numpy as np, tempfile
        >>> from amn_fast.refine import RefineSettings, read_scores
        >>> path = tempfile.mkdtemp() + "/a.npy"
        >>> np.save(path, {"keys": np.array([14]), "attn_highres": np.full((1, 4, 5), 0.75, np.float16)})
        >>> read_scores(path, RefineSettings.of_method("clip-es"), (4, 5)).names.tolist()
        [0, 15]
    """
    path = Path(path)
    if settings.method == "probabilities":
        given = read_probabilities(path, settings.key)
        if given.dtype.kind == "f":
            return Scores(given.astype(np.float32), np.arange(len(given), dtype=np.uint8))
        return scores_of_labels(path, given, settings)
    content = read_legacy(path)
    if settings.method in ("seco", "excel"):
        logits = _numbers(path, content, "msc_seg")
        if logits.ndim != 4 or logits.shape[0] != 1 or not 2 <= logits.shape[1] <= IGNORE or 0 in logits.shape:
            raise InputError(f"{path}: msc_seg has shape {logits.shape}, expected (1, C, h, w) with C in 2..255")
        return Scores(_softmax(upsample(logits[0], size)), np.arange(logits.shape[1], dtype=np.uint8))
    name = "attn_highres" if settings.method == "clip-es" else "high_res"
    maps = _numbers(path, content, name)
    keys = _numbers(path, content, "keys").reshape(-1)
    if maps.ndim != 3 or 0 in maps.shape[1:] or len(maps) != len(keys):
        raise InputError(f"{path}: {name} has shape {maps.shape}, expected ({len(keys)}, H, W), one map per key")
    if not np.isin(keys, np.arange(IGNORE - 1)).all() or len(np.unique(keys)) < len(keys):
        raise InputError(f"{path}: keys are {keys.tolist()}, expected different classes in 0..{IGNORE - 2}")
    if maps.size and maps.min() < 0:
        raise InputError(f"{path}: {name} holds {maps.min():g}, expected numbers of at least 0")
    if settings.method == "irn":
        background = np.full((1, *maps.shape[1:]), settings.background, np.float32)
    else:
        background = 1 - maps.max(0, keepdims=True, initial=0)
    names = np.concatenate([[0], keys + 1]).astype(np.uint8)
    return Scores(np.concatenate([np.maximum(background, 0), maps]), names, hard=settings.method == "irn")


def scores_of_labels(path: Path, labels: Array, settings: RefineSettings) -> Scores:
    """One-hot maps of a label map, of the labels that occur or of all."""
    unknown = labels == settings.unknown
    names = np.unique(labels[~unknown]).astype(np.uint8)
    if not names.size:
        raise InputError(f"{path}: every pixel is {settings.unknown} (unknown)")
    if settings.labels is not None:
        if names.max() >= settings.labels:
            expected = f"0..{settings.labels - 1} or {settings.unknown}"
            raise InputError(f"{path}: holds label {names.max()}, expected {expected}")
        names = np.setdiff1d(np.arange(settings.labels, dtype=np.uint8), settings.unknown)
    maps = (labels[None] == names[:, None, None]).astype(np.float32)
    return Scores(maps, names, hard=True, unknown=unknown if unknown.any() else None)


def _numbers(path: Path, content: Any, name: str) -> Array:
    if not isinstance(content, dict) or name not in content:
        found = f"the entries {', '.join(map(str, content))[:200]}" if isinstance(content, dict) else "no dictionary"
        raise InputError(f"{path}: holds {found}, expected an entry {name}; is the method right?")
    array = np.asarray(content[name])
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: {name} is of type {array.dtype}, expected numbers")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {name} holds NaN or infinity, expected finite numbers")
    return array


def read_numbers(path: Path) -> Array:
    try:
        array: Array = retried(lambda: np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as an array of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or array.ndim < 2:
        raise InputError(f"{path}: is no array (h, w) of numbers")
    return array


def _softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(0))
    return np.asarray(raised / raised.sum(0), np.float32)


def read_segments(path: Path, size: tuple[int, int]) -> list[Array]:
    if path.suffix == ".npy":
        numbers = read_numbers(path)
        require_size(path, numbers.shape, size)
        return [numbers == one for one in np.unique(numbers) if one >= 0]
    segment = read_mask(path)
    require_size(path, segment.shape, size)
    return [segment > 0]


def require_size(path: Path, found: tuple[int, ...], size: tuple[int, ...]) -> None:
    if tuple(found) != tuple(size):
        raise InputError(f"{path}: has shape {tuple(found)}, but its image is {describe_size(size)}")


def upsample(maps: Array, size: tuple[int, ...]) -> Array:
    """(L, h, w) maps, float32, resized bilinearly to (L, *size) as PyTorch does with align_corners=False."""
    height, width = size
    if maps.shape[1:] == (height, width):
        return np.ascontiguousarray(maps, np.float32)
    resized = np.zeros((len(maps), height, width), np.float32)
    for source, target in zip(np.ascontiguousarray(maps, np.float32), resized, strict=True):
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    return resized
