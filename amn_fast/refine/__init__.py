"""Masks from the files that other methods write: their scores, upsampled and refined along the edges of the images.

`read_scores` knows the files, `refine` computes one mask, `refine_outputs` a folder of them. Nothing in the files is
executed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from amn_fast.crf_folder import Pair, find_pairs, refine_folder
from amn_fast.data.image import read_image, read_mask
from amn_fast.errors import InputError, MissingExtra
from amn_fast.ops.dense_crf import DenseCRF
from amn_fast.ops.mask import make_mask
from amn_fast.ops.unary import unary_from_labels, unary_from_softmax
from amn_fast.refine.scores import (
    Scores,
    read_numbers,
    read_scores,
    read_segments,
    require_size,
    scores_of_labels,
    upsample,
)
from amn_fast.refine.settings import IGNORE, METHODS, REFINERS, RefineSettings

__all__ = [
    "METHODS",
    "REFINERS",
    "RefineSettings",
    "Scores",
    "read_scores",
    "refine",
    "refine_outputs",
    "upsample",
    "vote",
]

Array = np.ndarray[Any, np.dtype[Any]]
BGR_MEAN = (104.008, 116.669, 122.675)
"""What deeplab-pytorch and CLIP-ES subtract."""
IN_SEGMENT, OF_CLASS = 0.5, 0.85
"""SAM_WSSS: a segment votes if more than this share of it is in the class, or it covers this share of the class."""


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
    edge = read_numbers(extra.pop(0)) if settings.refiner == "walk" else None
    if edge is not None and (edge.ndim not in (2, 3) or edge.size != edge.shape[-1] * edge.shape[-2]):
        raise InputError(f"{pair.others[0]} has shape {edge.shape}, expected (h, w) or (1, h, w)")
    if settings.method == "sam-votes":
        labels = read_mask(pair.probabilities)
        require_size(pair.probabilities, labels.shape, size)
        voted = vote(labels, [segment for path in extra for segment in read_segments(path, size)])
        scores = scores_of_labels(pair.probabilities, voted, settings)
        if settings.refiner == "none":
            return voted
    else:
        scores = read_scores(pair.probabilities, settings, size)
        require_size(pair.probabilities, scores.maps.shape[1:], size)  # SeCo's and ExCEL's are upsampled by now
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


def _shown(image: Array, settings: RefineSettings) -> Array:
    if not settings.bgr_minus_mean:
        return image
    shifted = image[..., ::-1].astype(np.float32) - np.array(BGR_MEAN, np.float32)
    return np.ascontiguousarray(shifted.astype(np.int32).astype(np.uint8))  # towards 0, then modulo 256, as x86 does
