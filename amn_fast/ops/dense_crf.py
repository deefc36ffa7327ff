"""Dense CRF inference for images, with pydensecrf's energies and arguments.

Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials" (2011). Needs NumPy
alone; backend "cuda" needs PyTorch and cuda-core. Repeated calls are bit-identical, for any thread count and, on a GPU,
for any batch.

Tensors on a GPU are processed there: `backend="auto"` takes "cuda" for them. With `backend="cuda"` arrays and CPU
tensors are copied to the GPU, and answers back.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike

from amn_fast._pool import thread_pool
from amn_fast.errors import InputError
from amn_fast.ops import _arrays, _detour
from amn_fast.ops.lattice import Lattice, check_image, crf_backend, float32, gpu, not_differentiable, sigma
from amn_fast.ops.mean_field import Pairwise, check_compat, check_normalization, solve
from amn_fast.ops.unary import unary_from_labels, unary_from_softmax

__all__ = ["DenseCRF", "dense_crf", "unary_from_labels", "unary_from_softmax"]

Array = np.ndarray[Any, np.dtype[Any]]
Sigma = float | Sequence[float]
Compat = float | ArrayLike
Gaussian = tuple[Sigma, Compat]
Bilateral = tuple[Sigma, Sigma, Compat]


class Settings(NamedTuple):
    """Checked kernels: (sx, sy, compat) and (sx, sy, colours, compat), or None."""

    gaussian: tuple[float, float, Any] | None
    bilateral: tuple[float, float, list[float], Any] | None
    normalization: str


def settings_of(gaussian: Gaussian | None, bilateral: Bilateral | None, normalization: str) -> Settings:
    """Check the kernels' arguments; a compat's shape waits for the number of labels."""
    smooth = appearance = None
    if gaussian is not None:
        sxy, compat = _parts("gaussian", gaussian, "(sxy, compat)", 2)
        sx, sy = sigmas("sxy", sxy, 2)
        smooth = sx, sy, compat
    if bilateral is not None:
        sxy, srgb, compat = _parts("bilateral", bilateral, "(sxy, srgb, compat)", 3)
        sx, sy = sigmas("sxy", sxy, 2)
        appearance = sx, sy, sigmas("srgb", srgb, 3), compat
    return Settings(smooth, appearance, check_normalization(normalization))


class DenseCRF:
    """The CRF of one image: lattices are built once and serve any number of unaries.

    Args:
        image: (H, W, 3) uint8, NumPy array or tensor of any strides; channels in any order that is kept (the lattice
            depends on it). The lattices of a tensor on a GPU are built there and stay there.
        gaussian: (sxy, compat) of the smoothness kernel, or None. sxy in pixels, a number or (sx, sy).
        bilateral: (sxy, srgb, compat) of the appearance kernel, or None. srgb in grey levels, a number or one for each
            channel. A compat is a number (Potts weight), or energies (L,) or (L, L): c equals -c · I. Sigmas are
            greater than 0, magnitudes of a compat at most 1e20.
        normalization: "symmetric", "before", "after" or "none".
        backend: "auto", "cpu", "cuda" or "reference".
        threads: None stands for all CPUs that this process may use. Results do not depend on it.

    Raises:
        InputError: an argument is not as above.
        BackendError: the backend asked for cannot run here.

    Examples:
        >>> import numpy as np
        >>> crf = DenseCRF(np.zeros((20, 30, 3), np.uint8))
        >>> crf.labels(np.zeros((3, 20, 30))).shape
        (20, 30)
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
        self.threads = _arrays.thread_count(threads)
        self.backend = crf_backend(backend, pixels)
        self.pairwise: list[Pairwise] = []
        kernels = settings_of(gaussian, bilateral, normalization)
        options: dict[str, Any] = {"backend": self.backend, "threads": self.threads}
        if kernels.gaussian is not None:
            sx, sy, compat = kernels.gaussian
            lattice = Lattice.of_grid(*self.size, sx, sy, like=pixels, **options)
            self.pairwise.append(Pairwise(lattice, compat, normalization))
        if kernels.bilateral is not None:
            sx, sy, colours, compat = kernels.bilateral
            self.pairwise.append(Pairwise(Lattice.of_image(pixels, sx, sy, colours, **options), compat, normalization))

    @overload
    def marginals(self, unary: list[Any] | tuple[Any, ...], iterations: int = ..., prune: float = ...) -> list[Any]: ...
    @overload
    def marginals(self, unary: ArrayLike, iterations: int = ..., prune: float = ...) -> Any: ...
    def marginals(self, unary: Any, iterations: int = 10, prune: float = 0.0) -> Any:
        """Marginals of a unary; a list of unaries gives a list.

        Args:
            unary: (L, H, W) energies, that is -log probabilities; +inf forbids a label at a pixel. NumPy array or
                tensor.
            iterations: mean-field updates, an integer; 0 or less gives softmax(-unary).
            prune: in [0, 1). A label stays in if at some pixel its probability exp(-unary) is at least `prune` times
                the pixel's largest; the others are left out and get the marginal 0. 0 keeps all. Many labels of a
                network's softmax are far below 0.001 everywhere: leaving them out saves their share of the time and
                changes the other marginals as little as theirs would have.

        Returns:
            (L, H, W) float32, of the kind of `unary`. Not differentiable: `backward` through it raises.

        Raises:
            InputError: an argument is not as above.
        """
        if isinstance(unary, list | tuple):
            return self._each(unary, iterations, prune, False)
        return self._each([unary], iterations, prune, False)[0]

    @overload
    def labels(self, unary: list[Any] | tuple[Any, ...], iterations: int = ..., prune: float = ...) -> list[Any]: ...
    @overload
    def labels(self, unary: ArrayLike, iterations: int = ..., prune: float = ...) -> Any: ...
    def labels(self, unary: Any, iterations: int = 10, prune: float = 0.0) -> Any:
        """The most probable label of each pixel, (H, W) int32: the argmax of `marginals`."""
        if isinstance(unary, list | tuple):
            return self._each(unary, iterations, prune, True)
        return self._each([unary], iterations, prune, True)[0]

    def _each(self, unaries: Sequence[Any], iterations: int, prune: float, best: bool) -> list[Any]:
        prune = check_prune(prune, [term.compat for term in self.pairwise])
        energies = []
        for unary in unaries:
            array = _check_unary(unary, self.size)
            if _arrays.on_gpu(array) and self.backend != "cuda":
                raise InputError(f"unary is a tensor on {array.device}, expected one on the CPU as the image is")
            energies.append(array.reshape(len(array), -1))
        if prune > 0:
            answers = [self._pruned(one, iterations, prune, best) for one in energies]
        else:
            answers = self._together(energies, iterations, best)
        shaped = [answer.reshape(*answer.shape[:-1], *self.size) for answer in answers]
        return [
            not_differentiable("DenseCRF", _arrays.like(given, answer), given)
            for given, answer in zip(unaries, shaped, strict=True)
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
        if _arrays.on_gpu(energies):
            kept = gpu().kept_labels(energies, prune)
            (answer,) = self._together([energies[kept]], iterations, best)
            return gpu().with_all_labels(answer, kept, best)
        lowest = energies.min(axis=0)
        with np.errstate(invalid="ignore"):
            kept = np.array([bool(((plane - lowest) <= -np.log(prune)).any()) for plane in energies])
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
    """Marginals of a dense CRF over an image.

    Lists of images and of unaries, of any sizes, give a list. On the CPU the images are spread over the threads; on a
    GPU they run together, in as few batches as its memory allows. Two tensors run as `torch.ops.amn_fast.dense_crf`,
    which `torch.compile` takes into a graph.

    Args:
        image: (H, W, 3) uint8.
        unary: (L, H, W) energies.
        gaussian, bilateral, normalization, backend, threads: see `DenseCRF`.
        iterations, prune: see `DenseCRF.marginals`.

    Returns:
        (L, H, W) float32, of the kind of `unary`. Not differentiable: `backward` through it raises.

    Raises:
        InputError: an argument is not what it has to be.
        BackendError: the backend asked for cannot run here.

    Examples:
        >>> import numpy as np
        >>> image, probabilities = np.zeros((20, 30, 3), np.uint8), np.full((2, 20, 30), 0.5)
        >>> dense_crf(image, unary_from_softmax(probabilities)).shape
        (2, 20, 30)
    """
    if _detour.needed("dense_crf", backend, image, unary):
        on_host = dense_crf(
            _detour.to_host(image),
            _detour.to_host(unary),
            gaussian=gaussian,
            bilateral=bilateral,
            iterations=iterations,
            normalization=normalization,
            prune=prune,
            threads=threads,
        )
        return _detour.to_origin(on_host, unary)
    if _arrays.is_tensor(image) and _arrays.is_tensor(unary):
        from amn_fast.ops import _dense_crf_torch

        return _dense_crf_torch.dense_crf(
            image, unary, gaussian, bilateral, iterations, normalization, prune, backend, threads
        )
    several = isinstance(image, list | tuple)
    if several and (not isinstance(unary, list | tuple) or len(image) != len(unary)):
        raise InputError(f"unary is not a list of {len(image)} arrays, expected one for each image")
    images, unaries = (image, unary) if several else ([image], [unary])
    settings = settings_of(gaussian, bilateral, normalization)
    threads = _arrays.thread_count(threads)
    if crf_backend(backend, *images, *unaries) == "cuda":
        answers = _on_gpu(images, unaries, settings, iterations, prune)
        return answers if several else answers[0]

    def one_image(pixels: Any, energies: Any, threads: int) -> Any:
        crf = DenseCRF(
            pixels,
            gaussian=gaussian,
            bilateral=bilateral,
            normalization=normalization,
            backend=backend,
            threads=threads,
        )
        return crf.marginals(energies, iterations, prune=prune)

    answers = each_image(one_image, threads, images, unaries)
    return answers if several else answers[0]


def each_image(run: Callable[..., Any], threads: int | None, *arguments: Sequence[Any]) -> list[Any]:
    """run(*arguments of an image, threads) for each image: images first, then threads within an image."""
    available = _arrays.thread_count(threads)
    count = len(arguments[0])
    workers = min(count, available)
    calls = zip(*arguments, [max(1, available // max(1, count))] * count, strict=True)
    if workers <= 1:
        return [run(*one) for one in calls]
    with thread_pool(workers) as pool:
        return list(pool.map(lambda one: run(*one), calls))


def _on_gpu(
    images: Sequence[Any], unaries: Sequence[Any], settings: Settings, iterations: int, prune: float
) -> list[Any]:
    """`dense_crf` for a batch on a GPU."""
    device = gpu().device_of(*images, *unaries)
    compats = [kernel[-1] for kernel in (settings.gaussian, settings.bilateral) if kernel is not None]
    prune = check_prune(prune, compats)
    call = gpu().Call(settings, check_compat, max(0, _arrays.integer("iterations", iterations)))
    problems, kept = [], []
    for image, unary in zip(images, unaries, strict=True):
        pixels = check_image(image)
        energies = gpu().on_device(_check_unary(unary, tuple(pixels.shape[:2])), device)
        energies = energies.reshape(len(energies), -1)
        kept.append(gpu().kept_labels(energies, prune) if prune > 0 else None)
        problems.append(gpu().problem(pixels, [energies if kept[-1] is None else energies[kept[-1]]], device))
    answers = gpu().infer(problems, call)
    whole = [
        answer if labels is None else gpu().with_all_labels(answer, labels, False)
        for (answer,), labels in zip(answers, kept, strict=True)
    ]
    return [
        not_differentiable("dense_crf", gpu().like(unary, marginals.view(-1, *pixels.shape[:2])), unary)
        for unary, marginals, (pixels, _) in zip(unaries, whole, problems, strict=True)
    ]


def check_prune(prune: float, compats: Sequence[Any]) -> float:
    """`prune`, checked against the kernels' compatibilities."""
    prune = _arrays.number("prune", prune, "[0, 1)")
    if prune > 0 and any(np.ndim(compat) for compat in compats):
        raise InputError("prune needs scalar (Potts) compatibilities, expected prune=0 with vectors or matrices")
    return prune


def sigmas(name: str, given: Any, count: int) -> list[float]:
    """`count` sigmas from a number or `count` numbers."""
    if isinstance(given, np.ndarray) or _arrays.is_tensor(given):
        given = given.tolist()
    if not isinstance(given, list | tuple):
        return [sigma(name, given)] * count
    values = [sigma(f"{name}[{i}]", one) for i, one in enumerate(given)]
    if len(values) not in (1, count):
        raise InputError(f"{name} has {len(values)} entries, expected a number or {count} numbers")
    return values * count if len(values) == 1 else values


def _parts(name: str, given: Any, expected: str, count: int) -> Any:
    if not isinstance(given, list | tuple) or len(given) != count:
        raise InputError(f"{name} is {_arrays.shown(given)}, expected {expected} or None")
    return given


def _check_unary(unary: Any, size: tuple[int, int]) -> Any:
    energies = unary.detach() if _arrays.on_gpu(unary) else float32("unary", unary)
    if energies.ndim != 3 or tuple(energies.shape[1:]) != size or not len(energies):
        raise InputError(f"unary has shape {tuple(energies.shape)}, expected (L, {size[0]}, {size[1]}) as the image")
    return energies


def __getattr__(name: str) -> Any:
    if name == "refine_seed":  # where it was before it had a module of its own
        from amn_fast.ops.refine_seed import refine_seed

        return refine_seed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
