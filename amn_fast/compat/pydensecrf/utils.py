"""pydensecrf.utils: unary energies from labels or probabilities, and features for `addPairwiseEnergy`."""

from collections.abc import Sequence
from logging import warning
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amn_fast.errors import InputError
from amn_fast.ops import unary as energies

Array = np.ndarray[Any, np.dtype[Any]]
Sigmas = float | Sequence[float] | Array


def unary_from_labels(
    labels: ArrayLike, n_labels: int, gt_prob: float, zero_unsure: bool = True, ignore_label: int | None = None
) -> Array:
    """Energies (n_labels, N) float32 of a label map that is right with probability `gt_prob`.

    With `zero_unsure`, pydensecrf's default, 0 means "unknown" (uniform energies), label k goes to row k - 1, and
    `n_labels` does not count the 0. With zero_unsure=False label k goes to row k.

    Args:
        labels: integers of any type and shape; N is their number.
        n_labels: at least 2.
        gt_prob: between 0 and 1, both excluded.
        ignore_label: a value (255, say) that means "unknown" as well; not in pydensecrf.

    Raises:
        InputError: a label is out of range or not an integer, or `n_labels` or `gt_prob` is.
    """
    labels = np.asarray(labels)
    unary = energies.unary_from_labels(labels, n_labels, gt_prob, zero_unsure=zero_unsure, ignore_label=ignore_label)
    return unary.reshape(n_labels, -1)


def compute_unary(labels: ArrayLike, M: int, GT_PROB: float = 0.5) -> Array:
    """The old name of `unary_from_labels`, with 0 for "unknown"; logs a warning, as pydensecrf does."""
    warning("compute_unary is an old name: call unary_from_labels")
    return unary_from_labels(labels, M, GT_PROB)


def unary_from_softmax(sm: ArrayLike, scale: float | None = None, clip: float | None = 1e-5) -> Array:
    """Energies (L, N) float32, -log of the probabilities `sm` (L, ...).

    Args:
        sm: probabilities; values above 1 are clipped to 1 and not renormalised, values below `clip` become `clip`.
        scale: in (0, 1]; mixes with uniform probabilities: scale · sm + (1 - scale) / L.
        clip: None leaves the probabilities as they are: 0 becomes an energy of +inf.

    Raises:
        InputError: a probability is NaN, or negative without `clip`, or `scale` is out of range.
    """
    with np.errstate(invalid="ignore"):
        unary = energies.unary_from_softmax(np.asarray(sm), scale, clip)
    if np.isnan(unary).any():
        raise InputError("sm holds negative numbers, expected probabilities")
    return unary.reshape(len(unary), -1)


def softmax_to_unary(sm: ArrayLike, GT_PROB: float = 1) -> Array:
    """The old name of `unary_from_softmax`, without clipping; logs a warning, as pydensecrf does."""
    warning("softmax_to_unary is an old name: call unary_from_softmax")
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: Sigmas, shape: Sequence[int]) -> Array:
    """Features (d, N) float32 of a grid: each point's coordinates divided by `sdims`.

    The axes come in the order of `shape`, (y, x) for an image; `DenseCRF2D.addPairwiseGaussian` takes (x, y). The
    lattice depends on that order, so the two answer slightly differently.

    Args:
        sdims: a sigma for each axis, or a number for all.
        shape: of the grid, of any dimension.

    Raises:
        InputError: a sigma is not greater than 0, or there are more or fewer than axes.
    """
    scales = _scales("sdims", sdims, len(shape))
    if len(scales) != len(shape):
        raise InputError(f"sdims has {len(scales)} numbers, expected {len(shape)}, one for each axis of {tuple(shape)}")
    return _coordinates(scales, shape).reshape(len(shape), -1)


def create_pairwise_bilateral(sdims: Sigmas, schan: Sigmas, img: ArrayLike, chdim: int = -1) -> Array:
    """Features (d + C, N) float32 of an image: coordinates divided by `sdims`, then channels divided by `schan`.

    The axes come in the image's order, (y, x) for an image; `DenseCRF2D.addPairwiseBilateral` takes (x, y). The
    lattice depends on that order, so the two answer slightly differently.

    Args:
        sdims: a sigma for each axis, or a number for all; axes beyond the given ones stay unscaled.
        schan: a sigma for each channel, or a number for all; channels beyond the given ones stay unscaled.
        img: any number of axes and channels, any type.
        chdim: the axis of the channels; -1, as in pydensecrf, stands for an image without such an axis.

    Raises:
        InputError: a sigma is not greater than 0, or there are more than axes or channels.
    """
    image = np.asarray(img)
    if image.dtype.kind not in "biuf":
        raise InputError(f"img is {image.dtype}, expected real numbers")
    if chdim != -1 and not -image.ndim <= chdim < image.ndim:
        raise InputError(f"chdim is {chdim}, expected an axis of img, which has shape {image.shape}, or -1 for none")
    channels = np.array(image[None] if chdim == -1 else np.moveaxis(image, chdim, 0), np.float32)
    for channel, scale in zip(channels, _scales("schan", schan, len(channels)), strict=False):
        channel /= scale
    shape = channels.shape[1:]
    coordinates = _coordinates(_scales("sdims", sdims, len(shape)), shape)
    return np.concatenate([coordinates, channels]).reshape(len(shape) + len(channels), -1)


def _coordinates(scales: list[Any], shape: Sequence[int]) -> Array:
    coordinates = np.indices(tuple(shape), np.float32)
    for axis, scale in zip(coordinates, scales, strict=False):
        axis /= scale
    return coordinates


def _scales(name: str, given: Sigmas, most: int) -> list[Any]:
    """The sigmas, in the types they came in: those decide how the features are rounded."""
    scales: list[Any] = [given] * most if np.ndim(given) == 0 else list(given)  # type: ignore[arg-type]
    if len(scales) > most:
        raise InputError(f"{name} has {len(scales)} numbers, expected at most {most}")
    if not all(np.isfinite(scale) and scale > 0 for scale in scales):
        raise InputError(f"{name} is {given!r}, expected sigmas greater than 0")
    return scales
