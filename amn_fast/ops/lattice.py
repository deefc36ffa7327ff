"""The dense CRF's parts: permutohedral lattices over any features, pairwise terms, mean field, KL divergence.

`amn_fast.ops.dense_crf` is what images need; this is what it stands on, for features of other kinds.
"""

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amn_fast._native import missing, native
from amn_fast.errors import InputError
from amn_fast.kernels.dense_crf import reference
from amn_fast.ops import _cuda
from amn_fast.ops._backend import choose
from amn_fast.ops.unary import unary_from_labels

Array = np.ndarray[Any, np.dtype[Any]]
NORMALIZATIONS = ("symmetric", "before", "after", "none")
MAX_DIMENSION = 32


class Lattice:
    """The permutohedral lattice of n points: K · values for the Gaussian kernel exp(-|f_i - f_j|² / 2).

    Args:
        features: (d, n) float, each feature already divided by its standard deviation; d in 1..32 (on a GPU 1..6),
            n >= 1.
        backend: "auto", "cpu", "cuda" or "reference". A tensor on a GPU is for "cuda", which "auto" then takes.
        threads: for the building; None is one.

    Raises:
        InputError: wrong shape, a value that is not finite, or features too large for the lattice's coordinates
            (a deviation that is tiny against the range of its feature).
    """

    backend: str
    dimension: int
    points: int
    handle: Any  # the backend's own lattice

    def __init__(self, features: ArrayLike, *, backend: str = "auto", threads: int | None = None) -> None:
        self.backend = backend_of(backend, features)
        matrix: Any = features if on_gpu(features) else np.ascontiguousarray(features, np.float32)
        if matrix.ndim != 2 or not 1 <= matrix.shape[0] <= MAX_DIMENSION or matrix.shape[1] < 1:
            raise InputError(
                f"features have shape {tuple(matrix.shape)}, expected (d, n) with d in 1..{MAX_DIMENSION}, n >= 1"
            )
        self.dimension, self.points = matrix.shape
        if self.backend == "cuda":
            self.handle = gpu().matrix_handle(matrix)
            return
        if not np.isfinite(matrix).all():
            raise InputError("features hold NaN or infinity, expected finite numbers")
        if self.backend == "cpu":
            with input_errors():
                self.handle = _native().CrfLattice.of_matrix(matrix, check_threads(threads))
        else:
            self.handle = reference.Lattice.build(matrix)

    @classmethod
    def of_grid(
        cls,
        height: int,
        width: int,
        sx: float,
        sy: float,
        *,
        backend: str = "auto",
        threads: int | None = None,
        like: Any = None,
    ) -> "Lattice":
        """The lattice of the features x / sx, y / sy. It depends on nothing else, so the latest ones are kept.

        `like` says on which GPU: that of a tensor.
        """
        chosen = backend_of(backend, like)
        device = gpu().device_of(like) if chosen == "cuda" else None
        place = gpu().place_of(device) if chosen == "cuda" else ""
        key = (height, width, float(sx), float(sy), chosen, place)
        with _grids_lock:
            if key in _grids:
                _grids.move_to_end(key)
                return _grids[key]
        if chosen == "reference":
            lattice = cls(reference.gaussian_features(height, width, sx, sy), backend=chosen)
        else:
            with input_errors():
                if chosen == "cuda":
                    handle = gpu().grid_handle(height, width, sx, sy, device)
                else:
                    handle = _native().CrfLattice.of_grid(height, width, sx, sy, check_threads(threads))
            lattice = cls._of_handle(handle, 2, height * width, chosen)
        with _grids_lock:
            _grids[key] = lattice
            while sum(kept.points for kept in _grids.values()) > MAX_KEPT_POINTS and len(_grids) > 1:
                _grids.popitem(last=False)
        return lattice

    @classmethod
    def of_image(
        cls,
        image: Any,
        sx: float,
        sy: float,
        colours: Sequence[float],
        *,
        backend: str = "auto",
        threads: int | None = None,
    ) -> "Lattice":
        """The lattice of x / sx, y / sy and the channels of `image` (H, W, 3) uint8 divided by `colours`."""
        chosen = backend_of(backend, image)
        if chosen == "reference":
            return cls(reference.bilateral_features(image, sx, sy, colours), backend=chosen)
        with input_errors():
            if chosen == "cuda":
                handle = gpu().image_handle(image, sx, sy, list(colours), gpu().device_of(image))
            else:
                handle = _native().CrfLattice.of_image(image, sx, sy, list(colours), check_threads(threads))
        return cls._of_handle(handle, 5, image.shape[0] * image.shape[1], chosen)

    @classmethod
    def _of_handle(cls, handle: Any, dimension: int, points: int, backend: str) -> "Lattice":
        lattice = cls.__new__(cls)
        lattice.handle, lattice.dimension, lattice.points, lattice.backend = handle, dimension, points, backend
        return lattice

    def filter(self, values: ArrayLike, transpose: bool = False, *, threads: int | None = 1) -> Array:
        """K · values, or Kᵀ · values, without normalisation.

        K is nearly symmetric, not exactly: the lattice blurs one axis after the other. Its transpose, which gradients
        need, blurs them in reverse order.

        Args:
            values: (channels, n) numbers.

        Returns:
            (channels, n) float32. A tensor on the lattice's GPU gives a tensor.
        """
        tensor = self.backend == "cuda" and on_gpu(values)
        matrix: Any = values if tensor else np.ascontiguousarray(values, np.float32)
        if matrix.ndim != 2 or matrix.shape[1] != self.points:
            raise InputError(f"values have shape {tuple(matrix.shape)}, expected (channels, {self.points})")
        if self.backend == "cpu":
            result: Array = self.handle.filter(matrix, transpose, check_threads(threads))
        else:
            result = self.handle.filter(matrix, transpose)
        return result


MAX_KEPT_POINTS = 4_000_000  # of grids' lattices, 40 bytes a point or less
_grids: OrderedDict[tuple[int, int, float, float, str, str], Lattice] = OrderedDict()
_grids_lock = threading.Lock()


def on_gpu(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor) and value.device.type == "cuda"


def backend_of(backend: str, *values: object) -> str:
    """The backend for these arrays or tensors: tensors on a GPU stay there."""
    for value in values:
        if on_gpu(value):
            here = "the tensors are on a GPU: call .cpu() first"
            obstacle = _cuda.obstacle(value.device)  # type: ignore[attr-defined]
            return choose(backend, "dense_crf", {"cuda": obstacle, "cpu": here, "reference": here})
    obstacle = _cuda.obstacle() if backend == "cuda" else ""  # not looked into otherwise: it imports PyTorch
    return choose(backend, "dense_crf", {"cpu": missing, "reference": "", "cuda": obstacle})


def gpu() -> Any:
    """What runs the CRF on a GPU; it imports PyTorch."""
    from amn_fast.ops import _dense_crf_cuda

    return _dense_crf_cuda


def check_threads(threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}, expected at least 1, or None")
    return threads or 1


def _native() -> Any:
    assert native is not None, missing
    return native


@contextmanager
def input_errors() -> Iterator[None]:
    """The kernels' complaints about values become InputErrors."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from None


@dataclass(frozen=True)
class Pairwise:
    """One pairwise term of the energy.

    Attributes:
        compat: a scalar c (Potts: equal labels attract, the energy is -c), or a vector (L,) / matrix (L, L) of energies
            (a matrix is symmetrised); c equals the matrix -c · I.
        normalization: "symmetric", "before", "after" or "none".
    """

    lattice: Lattice
    compat: float | Array
    normalization: str = "symmetric"


def mean_field(
    unary: ArrayLike,
    pairwise: Sequence[Pairwise],
    iterations: int,
    *,
    start: ArrayLike | None = None,
    threads: int | None = None,
) -> Array:
    """Marginals (L, n) float32 after `iterations` parallel mean-field updates.

    Each update is Q = softmax(-unary - sum over the terms of compat · K Q); it starts from softmax(-unary), or from the
    marginals `start` (L, n): five single steps equal five iterations bit for bit.

    Args:
        unary: (L, n) energies; +inf forbids a label, NaN and -inf are errors.
        threads: one by default; the result does not depend on it.

    Raises:
        InputError: a shape or a value is not what it has to be.
    """
    first = start if start is None or on_gpu(start) else np.ascontiguousarray(start, np.float32)
    return solve([unary], pairwise, iterations, start=first, threads=threads)[0]


def solve(
    unaries: Sequence[ArrayLike],
    pairwise: Sequence[Pairwise],
    iterations: int,
    *,
    start: Any = None,
    best: bool = False,
    threads: int | None = None,
    backend: str | None = None,
) -> list[Array]:
    """`mean_field` for several unaries (L, n) of one shape at once; `best` asks for the labels (n,) int32 instead.

    The lattices' backend runs it, and `backend` where there are none. With lattices on a GPU, tensors are taken and
    given as well.
    """
    common = _common_backend(pairwise) if pairwise or backend is None else backend
    energies = [check_unary(unary, common) for unary in unaries]
    labels, n = energies[0].shape
    if any(one.shape != (labels, n) for one in energies):
        raise InputError(f"unaries have shapes {[tuple(one.shape) for one in energies]}, expected one shape")
    if start is not None and start.shape != (labels, n):
        raise InputError(f"start has shape {tuple(start.shape)}, expected the unary's {(labels, n)}")
    compats = [_check_term(term, labels, n) for term in pairwise]
    iterations = max(0, int(iterations))
    if common == "cuda":
        terms = [
            (term.lattice.handle, compat, term.normalization) for term, compat in zip(pairwise, compats, strict=True)
        ]
        solved: list[Array] = gpu().solve(energies, terms, iterations, start, best)
        return solved
    if common == "cpu":
        with input_errors():
            answers: list[Array] = _native().crf_mean_field(
                energies, native_terms(pairwise, compats), iterations, start, best, check_threads(threads)
            )
        return answers
    for one in energies:
        lowest = one.min(axis=0)
        if np.isnan(lowest).any() or np.isinf(lowest).any():
            raise InputError("unary holds NaN or -inf, or +inf for every label of a point, expected finite energies")
    kernels = _kernels(pairwise, compats)
    results = [reference.mean_field(one, kernels, iterations, start).astype(np.float32) for one in energies]
    return [q.argmax(axis=0).astype(np.int32) for q in results] if best else results


def solve_labels(
    maps: Sequence[Array],
    n_labels: int,
    gt_prob: float,
    pairwise: Sequence[Pairwise],
    iterations: int,
    *,
    best: bool = False,
    threads: int | None = None,
) -> list[Array]:
    """`solve` with `unary_from_labels(map, n_labels, gt_prob, zero_unsure=False)` for each label map (n,) uint8.

    The kernels take the maps as they are, a byte for each pixel instead of L floats.
    """
    if _common_backend(pairwise) != "cpu" or n_labels > 256:
        unaries = [unary_from_labels(one, n_labels, gt_prob, zero_unsure=False) for one in maps]
        return solve(unaries, pairwise, iterations, best=best, threads=threads)
    compats = [_check_term(term, n_labels, maps[0].size) for term in pairwise]
    right, wrong = -np.log(gt_prob), -np.log((1.0 - gt_prob) / (n_labels - 1))
    with input_errors():
        answers: list[Array] = _native().crf_mean_field_labels(
            list(maps),
            n_labels,
            right,
            wrong,
            native_terms(pairwise, compats),
            max(0, int(iterations)),
            best,
            check_threads(threads),
        )
    return answers


def native_terms(pairwise: Sequence[Pairwise], compats: Sequence[Array]) -> list[tuple[Any, Any, Array]]:
    kinds = _native().CrfNormalization
    return [
        (term.lattice.handle, getattr(kinds, term.normalization), compat)
        for term, compat in zip(pairwise, compats, strict=True)
    ]


def _common_backend(pairwise: Sequence[Pairwise]) -> str:
    backends = {term.lattice.backend for term in pairwise} or {"reference" if missing else "cpu"}
    if len(backends) > 1:
        raise InputError("the lattices come from different backends, expected one")
    return backends.pop()


def kl_divergence(marginals: ArrayLike, unary: ArrayLike, pairwise: Sequence[Pairwise]) -> float:
    """KL divergence of the marginals (L, n) from the CRF, without the constant log Z.

    It may be negative; only its decrease from step to step means something.
    """
    energies = check_unary(on_host(unary))
    q = np.ascontiguousarray(on_host(marginals), np.float32)
    if q.shape != energies.shape:
        raise InputError(f"marginals have shape {q.shape}, expected the unary's {energies.shape}")
    compats = [_check_term(term, *energies.shape) for term in pairwise]
    kernels = _kernels(pairwise, compats)
    return reference.kl_divergence(q, np.where(q > 0, energies, 0), kernels)


def on_host(value: Any) -> Any:
    return value.detach().cpu().numpy() if on_gpu(value) else value


def check_unary(unary: Any, backend: str = "cpu") -> Any:
    """(L, n) float32, C-contiguous; copied only where the layout or type asks for it. A GPU's tensor stays one."""
    if on_gpu(unary) and backend != "cuda":
        raise InputError(f"unary is a tensor on {unary.device}, expected one on the CPU as the lattices are")
    energies = unary if on_gpu(unary) else np.ascontiguousarray(unary, np.float32)
    if energies.ndim != 2 or 0 in energies.shape:
        raise InputError(
            f"unary has shape {tuple(energies.shape)}, expected (L, n) with at least one label and one point"
        )
    return energies


def _check_term(term: Pairwise, labels: int, n: int) -> Array:
    if term.lattice.points != n:
        raise InputError(f"a lattice has {term.lattice.points} points, expected the unary's {n}")
    check_normalization(term.normalization)
    return check_compat(term.compat, labels)


def check_normalization(normalization: str) -> None:
    if normalization not in NORMALIZATIONS:
        raise InputError(f"normalization is {normalization!r}, expected one of {', '.join(NORMALIZATIONS)}")


def check_compat(given: float | Array, labels: int) -> Array:
    """A number, (L,) or symmetric (L, L), float32."""
    compat = np.asarray(given, np.float32)
    if compat.shape not in ((), (labels,), (labels, labels)):
        raise InputError(f"compat has shape {compat.shape}, expected a number, ({labels},) or ({labels}, {labels})")
    if not np.isfinite(compat).all():
        raise InputError("compat holds NaN or infinity, expected finite numbers")
    if compat.ndim == 2:
        compat = np.float32(0.5) * (compat + compat.T)
    return np.asarray(compat, order="C")


class _Filter(reference.Lattice):
    """A reference lattice whose filter is another backend's."""

    def __init__(self, lattice: Lattice) -> None:
        self.offset = np.empty((lattice.points, 0))
        self.filter = lattice.filter
        self.norms: dict[str, tuple[Array, Array]] = {}


def _kernels(pairwise: Sequence[Pairwise], compats: Sequence[Array]) -> list[reference.Kernel]:
    return [
        reference.Kernel(
            term.lattice.handle if term.lattice.backend == "reference" else _Filter(term.lattice),
            compat,
            term.normalization,
        )
        for term, compat in zip(pairwise, compats, strict=True)
    ]
