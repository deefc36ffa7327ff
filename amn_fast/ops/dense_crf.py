"""Dense CRF inference for images, as pydensecrf computes it, and the seed refinement that IRN and AMN run with it.

Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials" (2011). Needs NumPy
alone, and for backend "cuda" PyTorch and cuda-core. Marginals agree with pydensecrf's within 1e-4; repeated calls give
the same bits, whatever the thread count and, on a GPU, whatever the batch.

Tensors on a GPU are worked on there (`backend="auto"` takes "cuda" for them); with `backend="cuda"` arrays and CPU
tensors are taken there, and answers brought back.
"""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike

from amn_fast.errors import InputError
from amn_fast.ops.lattice import (
    Lattice,
    Pairwise,
    backend_of,
    check_compat,
    check_normalization,
    check_threads,
    gpu,
    on_gpu,
    on_host,
    solve,
    solve_labels,
)
from amn_fast.ops.unary import unary_from_labels, unary_from_softmax

__all__ = ["DenseCRF", "dense_crf", "refine_seed", "unary_from_labels", "unary_from_softmax"]

Array = np.ndarray[Any, np.dtype[Any]]
Sigma = float | Sequence[float]
Compat = float | ArrayLike
Gaussian = tuple[Sigma, Compat]
Bilateral = tuple[Sigma, Sigma, Compat]


class _Kernels(NamedTuple):
    """Checked settings: (sx, sy, compat) and (sx, sy, colours, compat), or None."""

    gaussian: tuple[float, float, float | Array] | None
    bilateral: tuple[float, float, list[float], float | Array] | None
    normalization: str


def _kernels(gaussian: Gaussian | None, bilateral: Bilateral | None, normalization: str) -> _Kernels:
    smooth = appearance = None
    if gaussian is not None:
        sxy, compat = gaussian
        sx, sy = _sigmas("sxy", sxy, 2)
        smooth = sx, sy, _compat(compat)
    if bilateral is not None:
        sxy, srgb, compat = bilateral
        sx, sy = _sigmas("sxy", sxy, 2)
        appearance = sx, sy, _sigmas("srgb", srgb, 3), _compat(compat)
    return _Kernels(smooth, appearance, normalization)


class DenseCRF:
    """The CRF of one image: lattices are built once and serve any number of unaries.

    Args:
        image: (H, W, 3) uint8, channels in any order that is kept (the lattice depends on it). Any strides, read-only
            arrays and tensors are accepted; the lattices of one on a GPU are built and stay there.
        gaussian: (sxy, compat) of the smoothness kernel, or None. sxy in pixels, a number or (sx, sy).
        bilateral: (sxy, srgb, compat) of the appearance kernel, or None. srgb in grey levels, a number or one for each
            channel. A compat is a number (Potts weight), or energies (L,) or (L, L): c equals -c · I.
        normalization: "symmetric", "before", "after" or "none".
        backend: "auto", "cpu", "cuda" or "reference".

    Raises:
        InputError: an argument is not what it has to be.
        BackendError: the backend asked for cannot run here.
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
        self.size: tuple[int, int] = tuple(pixels.shape[:2])
        self.threads = threads
        self.backend = backend_of(backend, pixels)
        self.pairwise: list[Pairwise] = []
        kernels = _kernels(gaussian, bilateral, normalization)
        if kernels.gaussian is not None:
            sx, sy, weight = kernels.gaussian
            lattice = Lattice.of_grid(*self.size, sx, sy, backend=self.backend, threads=threads, like=pixels)
            self.pairwise.append(Pairwise(lattice, weight, normalization))
        if kernels.bilateral is not None:
            sx, sy, colours, weight = kernels.bilateral
            lattice = Lattice.of_image(pixels, sx, sy, colours, backend=self.backend, threads=threads)
            self.pairwise.append(Pairwise(lattice, weight, normalization))

    @overload
    def marginals(
        self, unary: list[Any] | tuple[Any, ...], iterations: int = ..., prune: float = ...
    ) -> list[Array]: ...
    @overload
    def marginals(self, unary: ArrayLike, iterations: int = ..., prune: float = ...) -> Array: ...
    def marginals(self, unary: Any, iterations: int = 10, prune: float = 0.0) -> Any:
        """Marginals (L, H, W) float32 of a unary (L, H, W); a list of unaries gives a list.

        Args:
            unary: energies, that is -log probabilities; +inf forbids a label at a pixel. Array or tensor; the answer is
                of the same kind.
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
        _check_prune_value(prune)
        energies = []
        for unary in unaries:
            array = _check_unary(unary, self.size)
            if on_gpu(array) and self.backend != "cuda":
                raise InputError(f"unary is a tensor on {array.device}, expected one on the CPU as the image is")
            energies.append(array.reshape(len(array), -1))
        if prune > 0:
            answers = [self._pruned(one, iterations, prune, best) for one in energies]
        else:
            answers = self._together(energies, iterations, best)
        return [
            _like(given, answer.reshape(*answer.shape[:-1], *self.size))
            for given, answer in zip(unaries, answers, strict=True)
        ]

    def _together(self, energies: Sequence[Any], iterations: int, best: bool) -> list[Any]:
        answers: dict[int, Any] = {}
        for count in {len(one) for one in energies}:  # those with as many labels share one pass
            places = [i for i, one in enumerate(energies) if len(one) == count]
            group = [energies[i] for i in places]
            solved = solve(group, self.pairwise, iterations, best=best, threads=self.threads, backend=self.backend)
            answers.update(zip(places, solved, strict=True))
        return [answers[i] for i in range(len(energies))]

    def _pruned(self, energies: Any, iterations: int, prune: float, best: bool) -> Any:
        _check_prune([term.compat for term in self.pairwise])
        if on_gpu(energies):
            kept = gpu().kept_labels(energies, prune)
            (answer,) = self._together([energies[kept]], iterations, best)
            return gpu().with_all_labels(answer, kept, best)
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

    Lists of images and of unaries, of any sizes, give a list. On the CPU the pictures are spread over `threads` (None:
    all cores), one picture a thread; on a GPU they run together, in as few batches as its memory allows. See
    `DenseCRF` for the arguments and the errors, and `DenseCRF.marginals` for `prune`.
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

    several = isinstance(image, list | tuple)
    if several and (not isinstance(unary, list | tuple) or len(image) != len(unary)):
        raise InputError(f"unary is not a list of {len(image)} arrays, expected one for each image")
    images, unaries = (image, unary) if several else ([image], [unary])
    if backend_of(backend, *images, *unaries) == "cuda":
        kernels = _kernels(gaussian, bilateral, normalization)
        answers = _on_gpu(images, unaries, kernels, iterations, _check_prune_value(prune))
        return answers if several else answers[0]
    if not several:
        return one_picture(image, unary, threads)
    return _each_picture(one_picture, threads, image, unary)


def _each_picture(run: Callable[..., Any], threads: int | None, *arguments: Sequence[Any]) -> list[Any]:
    """Pictures spread over threads, one picture a thread."""
    workers = min(len(arguments[0]), check_threads(threads) if threads is not None else os.cpu_count() or 1)
    if workers <= 1:
        return [run(*one) for one in zip(*arguments, strict=True)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, *arguments))


def _on_gpu(
    images: Sequence[Any], unaries: Sequence[Any], kernels: _Kernels, iterations: int, prune: float
) -> list[Any]:
    """`dense_crf` for a batch on a GPU."""
    device = gpu().device_of(*images, *unaries)
    check_normalization(kernels.normalization)
    if prune > 0:
        _check_prune([kernel[-1] for kernel in (kernels.gaussian, kernels.bilateral) if kernel is not None])
    problems, kept = [], []
    for image, unary in zip(images, unaries, strict=True):
        pixels = check_image(image)
        energies = gpu().on_device(_check_unary(unary, tuple(pixels.shape[:2])), device)
        energies = energies.reshape(len(energies), -1)
        kept.append(gpu().kept_labels(energies, prune) if prune > 0 else None)
        problems.append(gpu().problem(pixels, [energies if kept[-1] is None else energies[kept[-1]]], device))
    answers = gpu().infer(problems, gpu().Call(kernels, check_compat, max(0, int(iterations))))
    whole = [
        answer if labels is None else gpu().with_all_labels(answer, labels, False)
        for (answer,), labels in zip(answers, kept, strict=True)
    ]
    return [
        gpu().like(unary, marginals.view(-1, *pixels.shape[:2]))
        for unary, marginals, (pixels, _) in zip(unaries, whole, problems, strict=True)
    ]


def refine_seed(
    image: Any,
    activations: Any,
    keys: Any,
    *,
    fg: float,
    bg: float,
    gt_prob: float = 0.7,
    gaussian: Gaussian | None = (3, 3),
    bilateral: Bilateral | None = (50, 5, 10),
    iterations: int = 10,
    backend: str = "auto",
    threads: int | None = None,
) -> Any:
    """The refined seed of an image: confident foreground, confident background, and 255 between them.

    The CRF runs on the label maps argmax([t, activations]) with t = `fg`, then t = `bg`; an activation that only equals
    t is background. A pixel is foreground where the first run says so, 0 where both say background, else 255 (IRN,
    CVPR 2019; AMN, CVPR 2022). Both runs share the image's lattices.

    Lists of images, activations and keys give a list of seeds, as with `dense_crf`.

    Args:
        image: (H, W, 3) uint8.
        activations: (K, H, W) float, the foreground classes alone, 0..1. K = 0 gives background everywhere.
        keys: (K,) the classes' labels, 1..254.
        fg, bg: thresholds: .30 and .05 for CAMs, .45 and .15 for AMN's activations.
        gt_prob: how far the label maps are trusted.

    Returns:
        (H, W) uint8 with the labels of `keys`, 0 and 255; a tensor where the activations are on a GPU.

    Raises:
        InputError: an argument is not what it has to be.
        BackendError: the backend asked for cannot run here.
    """
    several = isinstance(image, list | tuple)
    if several:
        for name, values in (("activations", activations), ("keys", keys)):
            if not isinstance(values, list | tuple) or len(values) != len(image):
                raise InputError(f"{name} are not a list of {len(image)}, expected one for each image")
    pictures = list(zip(image, activations, keys, strict=True)) if several else [(image, activations, keys)]
    kernels = _kernels(gaussian, bilateral, "symmetric")
    if backend_of(backend, *(value for picture in pictures for value in picture[:2])) == "cuda":
        refined = _seeds_on_gpu(pictures, (fg, bg), gt_prob, kernels, iterations)
        return refined if several else refined[0]

    def one_picture(image: Any, activations: Any, keys: Any, threads: int | None = None) -> Array:
        pixels, scores, names = _check_seed(image, activations, keys)
        if len(scores) == 0:
            return np.zeros(pixels.shape[:2], np.uint8)
        crf = DenseCRF(pixels, gaussian=gaussian, bilateral=bilateral, backend=backend, threads=threads)
        best, score = scores.argmax(axis=0) + 1, scores.max(axis=0)
        maps = [np.where(score > threshold, best, 0).astype(np.uint8).ravel() for threshold in (fg, bg)]
        sure, possible = solve_labels(
            maps, len(scores) + 1, gt_prob, crf.pairwise, iterations, best=True, threads=threads
        )
        named = np.concatenate([[0], names]).astype(np.uint8)
        seed = np.where(sure > 0, named[sure], np.where(possible > 0, 255, 0)).astype(np.uint8)
        return seed.reshape(pixels.shape[:2])

    if several:
        return _each_picture(one_picture, threads, image, activations, keys)
    return one_picture(image, activations, keys, threads)


def _seeds_on_gpu(
    pictures: Sequence[tuple[Any, Any, Any]],
    thresholds: tuple[float, float],
    gt_prob: float,
    kernels: _Kernels,
    iterations: int,
) -> list[Any]:
    """`refine_seed` for a batch on a GPU; both label maps of a picture run together."""
    device = gpu().device_of(*(value for picture in pictures for value in picture[:2]))
    checked = [_check_seed(*picture) for picture in pictures]
    problems = []
    for pixels, scores, _ in checked:
        flat = gpu().on_device(scores, device, None).flatten(1)
        if len(scores):
            problems.append(gpu().problem(pixels, gpu().label_unaries(flat, thresholds, gt_prob), device))
    maps = iter(gpu().infer(problems, gpu().Call(kernels, check_compat, max(0, int(iterations)), best=True)))
    return [
        gpu().like(given, gpu().seeds(next(maps) if len(scores) else None, names, tuple(pixels.shape[:2]), device))
        for (_, given, _), (pixels, scores, names) in zip(pictures, checked, strict=True)
    ]


def _check_seed(image: Any, activations: Any, keys: Any) -> tuple[Any, Any, Array]:
    pixels = check_image(image)
    scores = _plain("activations", activations)
    names = np.atleast_1d(np.asarray(on_host(keys)))
    if scores.ndim != 3 or scores.shape[1:] != pixels.shape[:2]:
        raise InputError(
            f"activations have shape {tuple(scores.shape)}, expected (K, {pixels.shape[0]}, {pixels.shape[1]})"
        )
    if names.shape != (len(scores),) or (len(names) and names.dtype.kind not in "iu"):
        raise InputError(f"keys are {names.dtype} of shape {names.shape}, expected {len(scores)} whole numbers")
    if len(names) and not 1 <= names.min() <= names.max() <= 254:
        raise InputError(f"keys run from {names.min()} to {names.max()}, expected labels in 1..254")
    if not (scores.isfinite() if on_gpu(scores) else np.isfinite(scores)).all():
        raise InputError("activations hold NaN or infinity, expected finite numbers")
    return pixels, scores, names


def check_image(image: Any) -> Any:
    """`image` as a (H, W, 3) uint8 array, or tensor where it is on a GPU; or an InputError that names the remedy."""
    pixels = _plain("image", image)
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1):
        raise InputError(
            f"image has shape {tuple(pixels.shape)}, expected (H, W, 3): repeat a grey image's channel three times"
        )
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(
            f"image has shape {tuple(pixels.shape)}, expected (H, W, 3): "
            "drop an alpha channel, move channels last, or build an ops.lattice.Lattice of your own features"
        )
    if str(pixels.dtype) not in ("uint8", "torch.uint8"):
        raise InputError(f"image is {pixels.dtype}, expected uint8 (0..255): scale and convert it first")
    if 0 in pixels.shape:
        raise InputError(f"image has shape {tuple(pixels.shape)}, expected at least one pixel")
    return pixels


def _check_unary(unary: Any, size: tuple[int, int]) -> Any:
    energies = _plain("unary", unary)
    if energies.ndim != 3 or energies.shape[1:] != size or not len(energies):
        raise InputError(f"unary has shape {tuple(energies.shape)}, expected (L, {size[0]}, {size[1]}) as the image")
    return energies


def _check_prune_value(prune: float) -> float:
    if not 0 <= prune < 1:
        raise InputError(f"prune is {prune}, expected a number in [0, 1)")
    return prune


def _check_prune(compats: Sequence[Any]) -> None:
    if any(np.ndim(compat) for compat in compats):
        raise InputError("prune needs scalar (Potts) compatibilities, expected prune=0 with vectors or matrices")


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


def _plain(name: str, value: Any) -> Any:
    """`value` as an array; a tensor on a GPU as it is."""
    if not _is_tensor(value):
        return np.asarray(value)
    if on_gpu(value):
        return value.detach()
    if value.device.type != "cpu":
        raise InputError(
            f"{name} is a tensor on {value.device}, expected one on a CUDA GPU or the CPU: call .cpu() first"
        )
    return np.asarray(value.detach())


def _like(given: object, result: Any) -> Any:
    """`result` as a tensor where a tensor was given."""
    if not _is_tensor(given):
        return result
    return result if _is_tensor(result) else sys.modules["torch"].from_numpy(result)
