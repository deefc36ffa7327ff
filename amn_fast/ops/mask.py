"""From activations to a pseudo-mask: the arithmetic of the make-mask stage for one image.

scores = mask_scores(activations, edge, size)         power, random walk, upsampling, division by the maximum
mask = mask_from_scores(scores, keys, threshold=.25)  the best class, or background
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from amn_fast.errors import InputError
from amn_fast.ops._arrays import as_array, flag, image_size, number, on_gpu, shown
from amn_fast.ops.random_walk import TOLERANCE, Affinities, random_walk

Scores = NDArray[np.float32]
FACTOR = 4  # activations and edges have a quarter of the image's size


class SweepPoint(NamedTuple):
    """One setting of a sweep and its scores (K, H, W), to which `mask_from_scores` applies any threshold."""

    beta: float
    exp_times: int
    power: float
    scores: Scores


def make_mask(
    activations: ArrayLike,
    edge: ArrayLike,
    keys: ArrayLike,
    size: tuple[int, int],
    *,
    threshold: float = 0.25,
    power: float = 1.3,
    per_class: bool = False,
    **walk: Any,
) -> NDArray[np.uint8]:
    """The pseudo-mask of one image: `mask_scores`, then `mask_from_scores`.

    Args:
        activations: (K, h, w) array or CPU tensor, the activations of the image's classes without background, at
            least 0, at stride 4.
        edge: (h, w) or (1, h, w) edge map in [0, 1] at stride 4; a CUDA tensor makes the walk run on its GPU.
        keys: (K,) labels of the channels, 1..255; or (K + 1,) with the background's label first.
        size: (H, W) of the image, with 4h >= H and 4w >= W.
        threshold: score that a class has to exceed, a finite number.
        power: exponent of the activations, above 0.
        per_class: divide each class by its own maximum, see `mask_scores`.
        walk: radius, beta, exp_times, method, tolerance, backend, threads of `random_walk`.

    Returns:
        (H, W) uint8 mask of the labels of `keys`; the background is 0 unless `keys` names it.

    Raises:
        InputError: a shape, value or argument is not as above.
        BackendError: the requested backend cannot run here.

    Examples:
        >>> import numpy as np, amn_fast
        >>> activations, edge = np.zeros((1, 4, 4)), np.zeros((4, 4))
        >>> activations[0, :, :2] = 1; edge[:, 2] = 1
        >>> amn_fast.make_mask(activations, edge, [7], (16, 16))[0, ::5].tolist()
        [7, 7, 0, 0]
    """
    maps = _checked_activations(activations)
    labels = _checked_labels(keys, len(maps))
    number("threshold", threshold)
    scores = mask_scores(maps, edge, size, power=power, per_class=per_class, **walk)
    return mask_from_scores(scores, labels, threshold)


def mask_scores(
    activations: ArrayLike,
    edge: ArrayLike,
    size: tuple[int, int],
    *,
    power: float = 1.3,
    per_class: bool = False,
    **walk: Any,
) -> Scores:
    """Scores before thresholding: activations^power, random walk, bilinear upsampling, crop, division by the maximum.

    Args:
        activations, edge, size, power, walk: as for `make_mask`.
        per_class: divide each class by its own maximum instead of by the maximum of all classes. A weak class beside a
            strong one then does not fall below every threshold.

    Returns:
        (K, H, W) float32 in [0, 1]; a map without any activation stays 0.
    """
    raised = _raised(_checked_activations(activations), power)
    size, per_class = _checked_size(size, raised.shape[1:]), flag("per_class", per_class)
    return _normalised(_walk(raised, edge, walk), size, per_class)


def mask_from_scores(scores: ArrayLike, keys: ArrayLike, threshold: float = 0.25) -> NDArray[np.uint8]:
    """The best class where its score exceeds `threshold`, else background.

    Args:
        scores: (K, H, W); K may be 0.
        keys, threshold: as for `make_mask`.

    Returns:
        (H, W) uint8. The first of equal scores wins; a score equal to the threshold is background.
    """
    maps = as_array("scores", scores)
    if maps.ndim != 3:
        raise InputError(f"scores have shape {maps.shape}, expected (K, H, W)")
    labels = _checked_labels(keys, len(maps))
    mask = np.full(maps.shape[1:], labels[0])
    best = np.full(maps.shape[1:], number("threshold", threshold), np.float32)
    for score, label in zip(maps, labels[1:], strict=True):
        better = score > best
        mask[better] = label
        best[better] = score[better]
    return mask


def sweep_scores(
    activations: ArrayLike,
    edge: ArrayLike,
    size: tuple[int, int],
    *,
    betas: Sequence[float] = (10,),
    exp_times: Sequence[int] = (8,),
    powers: Sequence[float] = (1.3,),
    radius: int = 5,
    per_class: bool = False,
    method: str = "chebyshev",
    tolerance: float = TOLERANCE,
    backend: str = "auto",
    threads: int | None = None,
) -> Iterator[SweepPoint]:
    """The scores of `mask_scores` over a grid of settings, for one image.

    The affinities are built once for each beta, and one walk serves all powers and numbers of steps: the Chebyshev
    polynomials of the longest walk include those of the shorter ones.
    """
    maps, edge = _checked_activations(activations), as_array("edge", edge)
    size, per_class = _checked_size(size, maps.shape[1:]), flag("per_class", per_class)
    raised = np.concatenate([_raised(maps, power) for power in powers])
    for beta in betas:
        affinities = Affinities(edge, radius=radius, beta=beta, backend=backend)
        walks = affinities.walk(raised, list(exp_times), method=method, tolerance=tolerance, threads=threads)
        for times, walk in zip(exp_times, walks, strict=True):
            for power, propagated in zip(powers, np.split(walk, len(powers)), strict=True):
                yield SweepPoint(beta, times, power, _normalised(propagated, size, per_class))


def upsample(maps: NDArray[np.float32], size: tuple[int, int], factor: int = FACTOR) -> NDArray[np.float32]:
    """Bilinear upsampling by `factor` with pixel centres (align_corners=False), cropped to `size`.

    Args:
        maps: (K, h, w) float32.
        size: (H, W), at most factor times (h, w).
    """
    height, width = _checked_size(size, maps.shape[1:], factor)
    full = maps.shape[2] * factor, maps.shape[1] * factor  # OpenCV's order
    result = np.empty((len(maps), height, width), np.float32)
    for target, source in zip(result, maps, strict=True):
        target[:] = cv2.resize(source, full, interpolation=cv2.INTER_LINEAR)[:height, :width]
    return result


def _checked_activations(activations: ArrayLike) -> NDArray[Any]:
    maps = as_array("activations", activations)
    if maps.ndim != 3:
        raise InputError(f"activations have shape {maps.shape}, expected (K, h, w)")
    if maps.size and not (maps.min() >= 0 and maps.max() < np.inf):
        raise InputError("activations hold a negative value, NaN or infinity, expected finite numbers of at least 0")
    return maps


def _checked_size(size: tuple[int, int], maps: tuple[int, ...], factor: int = FACTOR) -> tuple[int, int]:
    height, width = image_size("size", size)
    if height > maps[0] * factor or width > maps[1] * factor:
        raise InputError(f"size is {(height, width)}, expected at most {factor} times the maps' {maps}")
    return height, width


def _checked_labels(keys: ArrayLike, count: int) -> NDArray[np.uint8]:
    """The labels of `keys` with that of the background first."""
    labels = np.asarray(as_array("keys", keys))
    if labels.size == 0:
        labels = labels.astype(np.uint8)
    if labels.shape not in ((count,), (count + 1,)):
        raise InputError(
            f"keys have shape {labels.shape}, expected ({count},), a label for each channel, "
            f"or ({count + 1},) with the background's label first"
        )
    if labels.dtype.kind not in "iu" or (labels.size and not 0 <= labels.min() <= labels.max() <= 255):
        raise InputError(f"keys are {shown(labels.tolist())}, expected integers in 0..255")
    if len(labels) == count:
        if (labels == 0).any():
            raise InputError(f"keys are {shown(labels.tolist())}, expected labels of at least 1 (0 is the background)")
        labels = np.concatenate([[0], labels])
    return labels.astype(np.uint8)


def _walk(raised: NDArray[np.float32], edge: ArrayLike, walk: dict[str, Any]) -> NDArray[np.float32]:
    if not on_gpu(edge):
        return random_walk(raised, as_array("edge", edge), **walk)
    import torch

    gpu_edge: Any = edge
    return random_walk(torch.from_numpy(raised).to(gpu_edge.device), gpu_edge, **walk).cpu().numpy()


def _raised(activations: NDArray[Any], power: float) -> NDArray[np.float32]:
    exponent = number("power", power, "(0, inf)")
    with np.errstate(over="ignore"):
        raised = np.power(activations.astype(np.float32, copy=False), exponent, dtype=np.float32)
    if not np.isfinite(raised).all():
        raise InputError(f"activations to the power {power} exceed the range of float32, expected smaller numbers")
    return raised


def _normalised(propagated: NDArray[np.float32], size: tuple[int, int], per_class: bool) -> Scores:
    scores = upsample(propagated, size)
    if scores.size == 0:
        return scores
    top = scores.max(axis=(1, 2) if per_class else (0, 1, 2), keepdims=True)
    return (scores / np.where(top > 0, top, 1)).astype(np.float32, copy=False)
