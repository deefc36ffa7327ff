"""Dense CRF inference for images, as pydensecrf computes it, and the seed refinement that IRN and AMN run with it.

Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials" (2011). Needs NumPy
alone. Marginals agree with pydensecrf's within 1e-4; repeated calls give the same bits, whatever the thread count.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from amn_fast.errors import InputError
from amn_fast.ops.lattice import Lattice, Pairwise, check_threads, solve, solve_labels
from amn_fast.ops.unary import unary_from_labels, unary_from_softmax

__all__ = ["DenseCRF", "dense_crf", "refine_seed", "unary_from_labels", "unary_from_softmax"]

Array = np.ndarray[Any, np.dtype[Any]]
Sigma = float | Sequence[float]
Compat = float | ArrayLike
Gaussian = tuple[Sigma, Compat]
Bilateral = tuple[Sigma, Sigma, Compat]


class DenseCRF:
    """The CRF of one image: lattices are built once and serve any number of unaries.

    Args:
        image: (H, W, 3) uint8, channels in any order that is kept (the lattice depends on it). Any strides, read-only
            arrays and CPU tensors are accepted.
        gaussian: (sxy, compat) of the smoothness kernel, or None. sxy in pixels, a number or (sx, sy).
        bilateral: (sxy, srgb, compat) of the appearance kernel, or None. srgb in grey levels, a number or one for each
            channel. A compat is a number (Potts weight), or energies (L,) or (L, L): c equals -c · I.
        normalization: "symmetric", "before", "after" or "none".
        backend: "auto", "cpu" or "reference".

    Raises:
        InputError: an argument is not what it has to be.
    """

    def __init__(
        self,
        image: ArrayLike,
        *,
        gaussian: Gaussian | None = (3, 3),
        bilateral: Bilateral | None = (50, 5, 10),
        normalization: str = "symmetric",
        backend: str = "auto",
        threads: int | None = None,
    ) -> None:
        pixels = check_image(image)
        self.size: tuple[int, int] = pixels.shape[:2]
        self.threads = threads
        self.pairwise: list[Pairwise] = []
        if gaussian is not None:
            sxy, compat = gaussian
            lattice = Lattice.of_grid(*self.size, *_sigmas("sxy", sxy, 2), backend=backend, threads=threads)
            self.pairwise.append(Pairwise(lattice, _compat(compat), normalization))
        if bilateral is not None:
            sxy, srgb, compat = bilateral
            sx, sy = _sigmas("sxy", sxy, 2)
            colours = _sigmas("srgb", srgb, 3)
            lattice = Lattice.of_image(pixels, sx, sy, colours, backend=backend, threads=threads)
            self.pairwise.append(Pairwise(lattice, _compat(compat), normalization))

    @overload
    def marginals(
        self, unary: list[Any] | tuple[Any, ...], iterations: int = ..., prune: float = ...
    ) -> list[Array]: ...
    @overload
    def marginals(self, unary: ArrayLike, iterations: int = ..., prune: float = ...) -> Array: ...
    def marginals(self, unary: Any, iterations: int = 10, prune: float = 0.0) -> Any:
        """Marginals (L, H, W) float32 of a unary (L, H, W); a list of unaries gives a list.

        Args:
            unary: energies, that is -log probabilities; +inf forbids a label at a pixel. Array or CPU tensor; the
                answer is of the same kind.
            iterations: mean-field updates; 0 or less gives softmax(-unary).
            prune: in [0, 1). A label stays in if at some pixel its probability exp(-unary) is at least `prune` times
                the pixel's largest; the others are left out and get the marginal 0. 0 keeps all. Many labels of a
                network's softmax are far below 0.001 everywhere; leaving them out saves their share of the time, and
                changes the other marginals as little as theirs would have.
        """
        if isinstance(unary, list | tuple):
            return self._each(unary, iterations, prune, False)
        return self._each([unary], iterations, prune, False)[0]

    @overload
    def labels(self, unary: list[Any] | tuple[Any, ...], iterations: int = ..., prune: float = ...) -> list[Array]: ...
    @overload
    def labels(self, unary: ArrayLike, iterations: int = ..., prune: float = ...) -> Array: ...
    def labels(self, unary: Any, iterations: int = 10, prune: float = 0.0) -> Any:
        """The most probable label of each pixel, (H, W) int32: the argmax of `marginals`."""
        if isinstance(unary, list | tuple):
            return self._each(unary, iterations, prune, True)
        return self._each([unary], iterations, prune, True)[0]

    def _each(self, unaries: Sequence[Any], iterations: int, prune: float, best: bool) -> list[Any]:
        if not 0 <= prune < 1:
            raise InputError(f"prune is {prune}, expected a number in [0, 1)")
        energies = []
        for unary in unaries:
            array = _as_numpy("unary", unary)
            if array.ndim != 3 or array.shape[1:] != self.size or not len(array):
                height, width = self.size
                raise InputError(f"unary has shape {array.shape}, expected (L, {height}, {width}) as the image")
            energies.append(array.reshape(len(array), -1))
        if prune > 0:
            answers = [self._pruned(one, iterations, prune, best) for one in energies]
        else:
            answers = self._together(energies, iterations, best)
        return [
            _like(given, answer.reshape(*answer.shape[:-1], *self.size))
            for given, answer in zip(unaries, answers, strict=True)
        ]

    def _together(self, energies: Sequence[Array], iterations: int, best: bool) -> list[Array]:
        answers: dict[int, Array] = {}
        for count in {len(one) for one in energies}:  # those with as many labels share one pass
            places = [i for i, one in enumerate(energies) if len(one) == count]
            group = [energies[i] for i in places]
            solved = solve(group, self.pairwise, iterations, best=best, threads=self.threads)
            answers.update(zip(places, solved, strict=True))
        return [answers[i] for i in range(len(energies))]

    def _pruned(self, energies: Array, iterations: int, prune: float, best: bool) -> Array:
        if any(np.ndim(term.compat) for term in self.pairwise):
            raise InputError("prune needs scalar (Potts) compatibilities, expected prune=0 with vectors or matrices")
        lowest = energies.min(axis=0)
        reach = -np.log(prune)
        kept = np.array([bool(((plane - lowest) <= reach).any()) for plane in energies])
        if not kept.any() or np.isnan(lowest).any():  # NaN: the solver names it
            kept[:] = True
        (answer,) = self._together([energies[kept]], iterations, best)
        if best:
            return np.flatnonzero(kept).astype(np.int32)[answer]
        marginals = np.zeros(energies.shape, np.float32)
        marginals[kept] = answer
        return marginals


def dense_crf(
    image: Any,
    unary: Any,
    *,
    gaussian: Gaussian | None = (3, 3),
    bilateral: Bilateral | None = (50, 5, 10),
    iterations: int = 10,
    normalization: str = "symmetric",
    prune: float = 0.0,
    backend: str = "auto",
    threads: int | None = None,
) -> Any:
    """Marginals (L, H, W) float32 of a dense CRF over `image` (H, W, 3) uint8 with the energies `unary` (L, H, W).

    Lists of images and of unaries, of any sizes, give a list; the pictures are spread over `threads` (None: all cores),
    one picture a thread. See `DenseCRF` for the arguments and the errors, and `DenseCRF.marginals` for `prune`.
    """

    def one_picture(pixels: Any, energies: Any, threads: int | None = None) -> Any:
        crf = DenseCRF(
            pixels,
            gaussian=gaussian,
            bilateral=bilateral,
            normalization=normalization,
            backend=backend,
            threads=threads,
        )
        return crf.marginals(energies, iterations, prune=prune)

    if not isinstance(image, list | tuple):
        return one_picture(image, unary, threads)
    if not isinstance(unary, list | tuple) or len(image) != len(unary):
        raise InputError(f"unary is not a list of {len(image)} arrays, expected one for each image")
    workers = min(len(image), check_threads(threads) if threads is not None else os.cpu_count() or 1)
    if workers <= 1:
        return [one_picture(*pair) for pair in zip(image, unary, strict=True)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one_picture, image, unary))


def refine_seed(
    image: ArrayLike,
    activations: ArrayLike,
    keys: ArrayLike,
    *,
    fg: float,
    bg: float,
    gt_prob: float = 0.7,
    gaussian: Gaussian | None = (3, 3),
    bilateral: Bilateral | None = (50, 5, 10),
    iterations: int = 10,
    backend: str = "auto",
    threads: int | None = None,
) -> Array:
    """The refined seed of an image: confident foreground, confident background, and 255 between them.

    The CRF runs on the label maps argmax([t, activations]) with t = `fg`, then t = `bg`; an activation that only equals
    t is background. A pixel is foreground where the first run says so, 0 where both say background, else 255 (IRN,
    CVPR 2019; AMN, CVPR 2022). Both runs share the image's lattices.

    Args:
        image: (H, W, 3) uint8.
        activations: (K, H, W) float, the foreground classes alone, 0..1. K = 0 gives background everywhere.
        keys: (K,) the classes' labels, 1..254.
        fg, bg: thresholds: .30 and .05 for CAMs, .45 and .15 for AMN's activations.
        gt_prob: how far the label maps are trusted.

    Returns:
        (H, W) uint8 with the labels of `keys`, 0 and 255.

    Raises:
        InputError: an argument is not what it has to be.
    """
    pixels = check_image(image)
    scores = _as_numpy("activations", activations)
    names = np.atleast_1d(np.asarray(keys))
    if scores.ndim != 3 or scores.shape[1:] != pixels.shape[:2]:
        raise InputError(f"activations have shape {scores.shape}, expected (K, {pixels.shape[0]}, {pixels.shape[1]})")
    if names.shape != (len(scores),) or (len(names) and names.dtype.kind not in "iu"):
        raise InputError(f"keys are {names.dtype} of shape {names.shape}, expected {len(scores)} whole numbers")
    if len(names) and not 1 <= names.min() <= names.max() <= 254:
        raise InputError(f"keys run from {names.min()} to {names.max()}, expected labels in 1..254")
    if not np.isfinite(scores).all():
        raise InputError("activations hold NaN or infinity, expected finite numbers")
    if len(scores) == 0:
        return np.zeros(pixels.shape[:2], np.uint8)
    crf = DenseCRF(pixels, gaussian=gaussian, bilateral=bilateral, backend=backend, threads=threads)
    best, score = scores.argmax(axis=0) + 1, scores.max(axis=0)
    maps = [np.where(score > threshold, best, 0).astype(np.uint8).ravel() for threshold in (fg, bg)]
    sure, possible = solve_labels(maps, len(scores) + 1, gt_prob, crf.pairwise, iterations, best=True, threads=threads)
    named = np.concatenate([[0], names]).astype(np.uint8)
    seed = np.where(sure > 0, named[sure], np.where(possible > 0, 255, 0)).astype(np.uint8)
    return seed.reshape(pixels.shape[:2])


def check_image(image: ArrayLike) -> Array:
    """`image` as a (H, W, 3) uint8 array, or an InputError that names the remedy."""
    pixels = _as_numpy("image", image)
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1):
        raise InputError(
            f"image has shape {pixels.shape}, expected (H, W, 3): repeat a grey image's channel three times"
        )
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(
            f"image has shape {pixels.shape}, expected (H, W, 3): "
            "drop an alpha channel, move channels last, or build an ops.lattice.Lattice of your own features"
        )
    if pixels.dtype != np.uint8:
        raise InputError(f"image is {pixels.dtype}, expected uint8 (0..255): scale and convert it first")
    if 0 in pixels.shape:
        raise InputError(f"image has shape {pixels.shape}, expected at least one pixel")
    return pixels


def _compat(compat: Compat) -> float | Array:
    return compat if isinstance(compat, int | float) else np.asarray(compat, np.float32)


def _sigmas(name: str, sigma: Sigma, count: int) -> list[float]:
    values = np.atleast_1d(np.asarray(sigma, np.float64))
    if values.shape not in ((1,), (count,)):
        raise InputError(f"{name} is {sigma!r}, expected a number or {count} numbers")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError(f"{name} is {sigma!r}, expected deviations greater than 0")
    return [float(value) for value in np.broadcast_to(values, count)]


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _as_numpy(name: str, value: Any) -> Array:
    if _is_tensor(value):
        if value.device.type != "cpu":
            raise InputError(f"{name} is a tensor on {value.device}, expected one on the CPU: call .cpu() first")
        value = value.detach()
    return np.asarray(value)


def _like(given: object, result: Array) -> Any:
    """`result` as a tensor where a tensor was given."""
    return sys.modules["torch"].from_numpy(result) if _is_tensor(given) else result
