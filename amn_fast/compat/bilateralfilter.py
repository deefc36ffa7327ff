"""rloss's `bilateralfilter` module on amn_fast's permutohedral lattice: same calls, same answers (within 2e-6).

The original is a SWIG extension (Tang et al., ECCV 2018) that the training code of AFA, ToCo, SeCo and others imports.
Differences: wrong lengths and NaN raise `InputError` instead of reading out of bounds, images that are evidently
normalised give a warning, the GIL is released, and the process's OpenMP settings stay as they are.
"""

import sys
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amn_fast._native import native
from amn_fast.errors import InputError
from amn_fast.kernels.dense_crf import reference
from amn_fast.ops._arrays import integer, number, thread_count

__all__ = ["bilateralfilter", "bilateralfilter_batch", "install"]

Floats = NDArray[np.float32]
_warned = False


def bilateralfilter(
    image: ArrayLike, _in: ArrayLike, out: Floats, H: int, W: int, sigmargb: float, sigmaxy: float
) -> None:
    """Overwrite `out` with the filtered map `_in`: `bilateralfilter_batch` with one image and one channel.

    Args:
        image: 3 · H · W numbers in 0..255, planar.
        _in, out: H · W numbers; `out` float32 and contiguous.
        sigmargb, sigmaxy: standard deviations of colours and of distances, > 0.
    """
    bilateralfilter_batch(image, _in, out, 1, 1, H, W, sigmargb, sigmaxy)


def bilateralfilter_batch(
    images: ArrayLike,
    ins: ArrayLike,
    outs: Floats,
    N: int,
    K: int,
    H: int,
    W: int,
    sigmargb: float,
    sigmaxy: float,
) -> None:
    """Overwrite `outs` with the filtered maps `ins`; images run in parallel, one thread each.

    Args:
        images: N · 3 · H · W numbers in 0..255, planar.
        ins, outs: N · K · H · W numbers; `outs` float32 and contiguous, of any shape. They may share memory.
        N, K, H, W: images, channels, height, width.
        sigmargb, sigmaxy: standard deviations of colours and of distances, > 0.

    Raises:
        InputError: an array has another length, `outs` cannot be written in place, or a value is not finite.

    Examples:
        >>> import numpy as np
        >>> from amn_fast.compat.bilateralfilter import bilateralfilter_batch
        >>> images, ins = 255 * np.random.rand(1, 3, 8, 9), np.random.rand(1, 2, 8, 9)
        >>> outs = np.zeros(1 * 2 * 8 * 9, dtype=np.float32)
        >>> bilateralfilter_batch(images.flatten(), ins.flatten(), outs, 1, 2, 8, 9, 15, 50)
    """
    count, channels = integer("N", N, 0), integer("K", K, 1)
    height, width = integer("H", H, 1), integer("W", W, 1)
    sigma_rgb, sigma_xy = number("sigmargb", sigmargb, "(0, inf)"), number("sigmaxy", sigmaxy, "(0, inf)")
    pixels = _flat("images", images, (count, 3, height, width))
    values = _flat("ins", ins, (count, channels, height, width))
    if not isinstance(outs, np.ndarray) or outs.dtype != np.float32 or not outs.flags.c_contiguous:
        kind = f"{type(outs).__name__} {getattr(outs, 'dtype', '')}"
        raise InputError(f"outs is {kind}, expected a C-contiguous NumPy array of float32: it is overwritten in place")
    if not outs.flags.writeable:
        raise InputError("outs is read-only, expected an array that can be overwritten")
    if outs.size != values.size:
        raise InputError(f"outs holds {outs.size} numbers, expected N · K · H · W = {values.size}")
    if not count:
        return
    _warn_if_normalised(pixels)
    result = outs if native is not None and not np.shares_memory(outs, values) else np.empty(outs.size, np.float32)
    _filter(pixels, values, result, (count, channels, height, width), sigma_rgb, sigma_xy)
    if result is not outs:
        outs.reshape(-1)[:] = result


def _filter(
    pixels: Floats, values: Floats, out: Floats, shape: tuple[int, ...], sigma_rgb: float, sigma_xy: float
) -> None:
    count, channels, height, width = shape
    if native is None:
        if not (np.isfinite(pixels).all() and np.isfinite(values).all()):
            raise InputError("images or ins hold NaN or infinity, expected finite numbers")
        for image, maps, to in zip(
            pixels.reshape(count, 3, height, width),
            values.reshape(count, channels, -1),
            out.reshape(count, channels, -1),
            strict=True,
        ):
            colours = (sigma_rgb,) * 3
            features = reference.bilateral_features(image.transpose(1, 2, 0), sigma_xy, sigma_xy, colours)
            to[:] = reference.Lattice.build(features).filter(maps)
        return
    try:
        native.bilateral_filter(
            images=pixels.ctypes.data,
            values=values.ctypes.data,
            shape=shape,
            sigma_rgb=sigma_rgb,
            sigma_xy=sigma_xy,
            transpose=False,
            out=out.ctypes.data,
            threads=min(count, thread_count(None)),
        )
    except ValueError as error:
        raise InputError(str(error).replace("values", "ins")) from None


def _flat(name: str, values: ArrayLike, shape: tuple[int, ...]) -> Floats:
    array: NDArray[Any] = np.ascontiguousarray(values, np.float32).reshape(-1)
    expected = int(np.prod(shape))
    if array.size != expected:
        raise InputError(f"{name} holds {array.size} numbers, expected {' · '.join(map(str, shape))} = {expected}")
    return array


def _warn_if_normalised(pixels: Floats) -> None:
    """Warns once: the filter of a normalised image is many times larger, and nothing else shows it."""
    global _warned
    if _warned:
        return
    low, high = float(pixels.min()), float(pixels.max())
    if -4 <= low < high <= 4:
        _warned = True
        message = (
            f"bilateralfilter: images lie in [{low:.3g}, {high:.3g}], expected 0..255; they seem to be normalised: "
            "multiply by the standard deviation and add the mean first"
        )
        warnings.warn(message, stacklevel=4)


def install() -> None:
    """Make `import bilateralfilter` resolve to this module from now on, in this process.

    Call it before the code that imports it. `amn-fast shim SCRIPT` does it for a script and for the processes that the
    script starts.
    """
    sys.modules["bilateralfilter"] = sys.modules[__name__]
