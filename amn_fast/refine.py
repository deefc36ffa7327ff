"""Masks from the files that other methods write: their scores, upsampled and refined along the edges of the images.

`read_scores` knows the files, `refine` computes one mask, `refine_outputs` a folder of them. Nothing in the files is
executed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from amn_fast.crf_folder import PRESETS, Pair, Settings, find_pairs, read_probabilities, refine_folder
from amn_fast.data.image import read_image, read_mask
from amn_fast.data.legacy import read_legacy
from amn_fast.data.masks import describe_size
from amn_fast.errors import InputError, MissingExtra
from amn_fast.ops._arrays import choice, flag, integer, number
from amn_fast.ops.dense_crf import DenseCRF
from amn_fast.ops.mask import make_mask
from amn_fast.ops.unary import unary_from_labels, unary_from_softmax

Array = np.ndarray[Any, np.dtype[Any]]
METHODS = ("clip-es", "seco", "excel", "irn", "probabilities", "sam-votes")
REFINERS = ("crf", "par", "walk", "none")
IGNORE = 255
BGR_MEAN = (104.008, 116.669, 122.675)
"""What deeplab-pytorch and CLIP-ES subtract."""
IN_SEGMENT, OF_CLASS = 0.5, 0.85
"""SAM_WSSS: a segment votes if more than this share of it is in the class, or it covers this share of the class."""


@dataclass(frozen=True)
class RefineSettings(Settings):
    """Everything but the files that a mask depends on. The CRF's parameters are those of `crf_folder.Settings`.

    Attributes:
        method: whose files, one of METHODS.
        refiner: "crf"; "par", pixel-adaptive refinement; "walk", the random walk with IRN's edges; or "none".
        background: the background's score where the method has none: irn's threshold, and that of the walk.
        confidence: pixels whose largest probability is below become 255; 0 keeps all.
        bgr_minus_mean: give the CRF the image as deeplab-pytorch and CLIP-ES do, BGR minus the mean, cast to uint8,
            where negative numbers wrap around.
        par_iterations: steps of PAR.
        beta, exp_times: of the random walk.
    """

    method: str = "probabilities"
    refiner: str = "crf"
    background: float = 0.25
    confidence: float = 0.0
    bgr_minus_mean: bool = False
    par_iterations: int = 10
    beta: float = 10
    exp_times: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("method", self.method, METHODS)
        choice("refiner", self.refiner, REFINERS)
        number("background", self.background, "[0, 1]")
        number("confidence", self.confidence, "[0, 1]")
        flag("bgr_minus_mean", self.bgr_minus_mean)
        integer("par_iterations", self.par_iterations, 0)

    @classmethod
    def of_method(cls, method: str, **changes: Any) -> "RefineSettings":
        """The published settings of a method, with changes.

        CLIP-ES, SeCo and ExCEL use deeplab's kernels, IRN its own; CLIP-ES turns pixels with a confidence below 0.95
        to 255. Votes need no refiner.
        """
        choice("method", method, METHODS)
        gaussian, bilateral = PRESETS["irn" if method in ("irn", "probabilities", "sam-votes") else "deeplab"]
        published: dict[str, Any] = {"method": method, "gaussian": gaussian, "bilateral": bilateral}
        if method == "clip-es":
            published["confidence"] = 0.95
        if method == "sam-votes":
            published["refiner"] = "none"
        return cls(**published | changes)


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

    Example:
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
        return _of_labels(path, given, settings)
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


def refine(image: Array, scores: Scores, settings: RefineSettings, edge: Array | None = None) -> Array:
    """The mask (H, W) uint8 of an image (H, W, 3) uint8.

    Args:
        image: RGB.
        scores: of any resolution; upsampled bilinearly.
        settings: how to refine; see `RefineSettings`.
        edge: (h, w) in [0, 1], IRN's edges at stride 4, for the random walk.

    Raises:
        InputError: a shape or value is not as above.
    """
    size = image.shape[:2]
    if settings.refiner == "walk":
        if edge is None:
            raise InputError("refiner 'walk' needs an edge map for each image")
        if scores.names[0] != 0:
            raise InputError("refiner 'walk' needs scores of the background")
        edge = edge.reshape(edge.shape[-2:])
        return make_mask(
            upsample(scores.maps[1:], edge.shape),
            edge,
            scores.names,
            size,
            threshold=settings.background,
            beta=settings.beta,
            exp_times=settings.exp_times,
            threads=1,
        )
    maps = upsample(scores.maps, size)
    if len(scores.names) == 1:
        return np.full(size, scores.names[0], np.uint8)
    if settings.refiner == "crf":
        maps = _crf(image, maps, scores, settings)
    elif settings.refiner == "par":
        maps = _par(image, maps, settings)
    mask = scores.names[maps.argmax(0)]
    if settings.confidence > 0:
        mask[maps.max(0) < settings.confidence * maps.sum(0)] = IGNORE
    if scores.unknown is not None and settings.refiner != "crf":
        mask[scores.unknown] = IGNORE
    return mask


def vote(labels: Array, segments: list[Array]) -> Array:
    """A label map (H, W) uint8 whose classes take the shape of the segments that vote for them (SAM_WSSS).

    A class becomes the union of the segments (H, W) bool of which more than half lies in it, or which cover at least
    85 % of it; without any it stays as it is. Of several classes that take a pixel, its own wins, then the lowest.
    """
    result = np.where(labels == IGNORE, IGNORE, 0).astype(np.uint8)
    kept = np.zeros(labels.shape, bool)  # pixels that their own class takes
    for label in np.setdiff1d(labels, (0, IGNORE))[::-1]:
        own = labels == label
        taken, area = np.zeros_like(own), int(own.sum())
        for segment in segments:
            common = int((segment & own).sum())
            if common > IN_SEGMENT * int(segment.sum()) or common >= OF_CLASS * area:
                taken |= segment
        if not taken.any():
            taken = own
        result[taken & ~kept] = label
        result[taken & own] = label
        kept |= taken & own
    return result


def refine_outputs(
    inputs: Path | str,
    out: Path | str,
    settings: RefineSettings,
    *,
    images: Path | str,
    edges: Path | str | None = None,
    proposals: Path | str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    announce: Callable[[int], None] = lambda count: None,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Write a mask ID.png into `out` for each file ID of the folder `inputs`; what is up to date is skipped.

    One image at a time on each thread; a file that cannot be used stops no other. `out`/crf.jsonl records settings and
    inputs.

    Args:
        inputs: folder of the method's files; for "sam-votes" of label maps ID.png.
        out: folder of the masks.
        settings: `RefineSettings.of_method(...)`.
        images: folder of the images.
        edges: for the walk, a folder of ID.npy, (h, w) or (1, h, w).
        proposals: for "sam-votes", a folder with a folder ID of 0 / 255 PNGs for each image, or ID.npy, an integer map
            with -1 where there is no segment.
        threads: None takes all CPUs that this process may use.
        overwrite: replace masks that other settings gave.
        announce: called once with the number of images.
        advance: called after each image.

    Returns:
        how many masks were computed; the others were up to date.

    Raises:
        InputError: see `crf_folder.refine_folder`; or a folder that the settings need is missing.
    """
    if settings.refiner == "walk" and edges is None:
        raise InputError("refiner 'walk' needs a folder of edges")
    if settings.method == "sam-votes" and proposals is None:
        raise InputError("method 'sam-votes' needs a folder of proposals")
    if settings.refiner == "par":
        _pixel_adaptive_refinement()  # a missing PyTorch is not a fault of each file
    pairs, _ = find_pairs(Path(images), Path(inputs), Path(out))
    whole = [_with_others(pair, edges if settings.refiner == "walk" else None, proposals, settings) for pair in pairs]
    announce(len(whole))
    return refine_folder(
        whole,
        Path(out),
        settings,
        threads=threads,
        overwrite=overwrite,
        advance=advance,
        compute=lambda pair: _mask_of(pair, settings),
    )


def _mask_of(pair: Pair, settings: RefineSettings) -> Array:
    image = read_image(pair.image)
    size = image.shape[:2]
    extra = list(pair.others)
    edge = _read_numbers(extra.pop(0)) if settings.refiner == "walk" else None
    if edge is not None and (edge.ndim not in (2, 3) or edge.size != edge.shape[-1] * edge.shape[-2]):
        raise InputError(f"{pair.others[0]} has shape {edge.shape}, expected (h, w) or (1, h, w)")
    if settings.method == "sam-votes":
        labels = read_mask(pair.probabilities)
        _require_size(pair.probabilities, labels.shape, size)
        voted = vote(labels, [segment for path in extra for segment in _segments(path, size)])
        scores = _of_labels(pair.probabilities, voted, settings)
        if settings.refiner == "none":
            return voted
    else:
        scores = read_scores(pair.probabilities, settings, size)
        _require_size(pair.probabilities, scores.maps.shape[1:], size)  # SeCo's and ExCEL's are upsampled by now
    try:
        return refine(_shown(image, settings), scores, settings, edge)
    except InputError as error:
        raise InputError(f"{pair.probabilities}: {error}") from error


def _with_others(pair: Pair, edges: Path | str | None, proposals: Path | str | None, settings: RefineSettings) -> Pair:
    others = [] if edges is None else [Path(edges) / f"{pair.id}.npy"]
    if settings.method == "sam-votes" and proposals is not None:
        folder, file = Path(proposals) / pair.id, Path(proposals) / f"{pair.id}.npy"
        others += sorted(folder.glob("*.png")) if folder.is_dir() else [file]
    return Pair(pair.id, pair.image, pair.probabilities, pair.mask, tuple(others))


def _crf(image: Array, maps: Array, scores: Scores, settings: RefineSettings) -> Array:
    if scores.hard:
        best, n = maps.argmax(0), len(maps)
        if scores.unknown is not None:
            best[scores.unknown] = n
        unary = unary_from_labels(best, n, settings.gt_prob, zero_unsure=False, ignore_label=n)
    else:
        unary = unary_from_softmax(maps)
    crf = DenseCRF(image, gaussian=settings.gaussian, bilateral=settings.bilateral, threads=1)
    marginals: Array = crf.marginals(unary, settings.iterations)
    return marginals


def _par(image: Array, maps: Array, settings: RefineSettings) -> Array:
    torch, refinement = _pixel_adaptive_refinement()
    guide = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))[None]).float() / 255
    refined: Array = refinement(guide, torch.from_numpy(maps)[None], iterations=settings.par_iterations)[0].numpy()
    return refined


def _pixel_adaptive_refinement() -> tuple[Any, Any]:
    try:
        import torch

        from amn_fast.ops.local_affinity import pixel_adaptive_refinement
    except ModuleNotFoundError as error:
        raise MissingExtra("refiner 'par' needs PyTorch: pip install 'amn-fast[pipeline]'") from error
    return torch, pixel_adaptive_refinement


def upsample(maps: Array, size: tuple[int, ...]) -> Array:
    """(L, h, w) maps, float32, resized bilinearly to (L, *size) as PyTorch does with align_corners=False."""
    height, width = size
    if maps.shape[1:] == (height, width):
        return np.ascontiguousarray(maps, np.float32)
    resized = np.zeros((len(maps), height, width), np.float32)
    for source, target in zip(np.ascontiguousarray(maps, np.float32), resized, strict=True):
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def _shown(image: Array, settings: RefineSettings) -> Array:
    if not settings.bgr_minus_mean:
        return image
    shifted = image[..., ::-1].astype(np.float32) - np.array(BGR_MEAN, np.float32)
    return np.ascontiguousarray(shifted.astype(np.int32).astype(np.uint8))  # towards 0, then modulo 256, as x86 does


def _softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(0))
    return np.asarray(raised / raised.sum(0), np.float32)


def _of_labels(path: Path, labels: Array, settings: RefineSettings) -> Scores:
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


def _read_numbers(path: Path) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as an array of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or array.ndim < 2:
        raise InputError(f"{path}: is no array (h, w) of numbers")
    return array


def _segments(path: Path, size: tuple[int, int]) -> list[Array]:
    if path.suffix == ".npy":
        numbers = _read_numbers(path)
        _require_size(path, numbers.shape, size)
        return [numbers == one for one in np.unique(numbers) if one >= 0]
    segment = read_mask(path)
    _require_size(path, segment.shape, size)
    return [segment > 0]


def _require_size(path: Path, found: tuple[int, ...], size: tuple[int, ...]) -> None:
    if tuple(found) != tuple(size):
        raise InputError(f"{path}: has shape {tuple(found)}, but its image is {describe_size(size)}")
