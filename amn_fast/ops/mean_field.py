"""Mean-field inference in a dense CRF over any features: pairwise terms, marginals, KL divergence.

`amn_fast.dense_crf` is what images need. Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs with
Gaussian Edge Potentials" (2011).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amn_fast._native import missing
from amn_fast.errors import InputError
from amn_fast.kernels.dense_crf import reference
from amn_fast.ops import _arrays
from amn_fast.ops.lattice import Lattice, compiled, float32, gpu, input_errors, not_differentiable
from amn_fast.ops.unary import unary_from_labels

Array = np.ndarray[Any, np.dtype[Any]]
NORMALIZATIONS = ("symmetric", "before", "after", "none")
MAX_COMPAT = 1e20


@dataclass(frozen=True)
class Pairwise:
    """One pairwise term of the energy.

    Attributes:
        lattice: of the points' features.
        compat: a number c (Potts: equal labels attract, the energy is -c), or a vector (L,) / matrix (L, L) of energies
            (a matrix is symmetrised). c equals the matrix -c · I. Magnitudes of at most 1e20.
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
) -> Any:
    """Marginals after `iterations` parallel mean-field updates.

    Each update is Q = softmax(-unary - sum over the terms of compat · K Q). It starts from softmax(-unary), or from the
    marginals `start`: five single steps equal five iterations bit for bit.

    Args:
        unary: (L, n) energies; +inf forbids a label, NaN and -inf are errors. NumPy array or tensor.
        pairwise: terms over lattices of n points and of one backend.
        iterations: an integer; 0 or less gives softmax(-unary), or `start`.
        start: (L, n) marginals.
        threads: None stands for all CPUs that this process may use. Results do not depend on it.

    Returns:
        (L, n) float32, of the kind of `unary`. Not differentiable: `backward` through it raises.

    Raises:
        InputError: a shape, type or value is not as above.

    Examples:
        >>> import numpy as np
        >>> from amn_fast.ops.lattice import Lattice
        >>> lattice = Lattice(np.random.default_rng(0).normal(size=(2, 100)))
        >>> mean_field(np.zeros((3, 100)), [Pairwise(lattice, 2.0)], 5).shape
        (3, 100)
    """
    result = solve([unary], pairwise, iterations, start=start, threads=threads)[0]
    return not_differentiable("mean_field", _arrays.like(unary, result), unary, start)


def solve(
    unaries: Sequence[Any],
    pairwise: Sequence[Pairwise],
    iterations: int,
    *,
    start: Any = None,
    best: bool = False,
    threads: int | None = None,
    backend: str | None = None,
) -> list[Any]:
    """`mean_field` for several unaries (L, n) of one shape at once; `best` asks for the labels (n,) int32 instead.

    The backend is that of the lattices, and `backend` where there are none. Tensors on a GPU give tensors, everything
    else arrays.
    """
    common = _common_backend(pairwise) if pairwise or backend is None else backend
    energies = [check_unary(unary, common) for unary in unaries]
    labels, n = energies[0].shape
    if any(one.shape != (labels, n) for one in energies):
        raise InputError(f"unaries have shapes {[tuple(one.shape) for one in energies]}, expected one shape")
    first = None if start is None else _check_start(start, labels, n)
    compats = [_check_term(term, labels, n) for term in pairwise]
    iterations = max(0, _arrays.integer("iterations", iterations))
    threads = _arrays.thread_count(threads)
    if common == "cuda":
        terms = [
            (term.lattice.handle, compat, term.normalization) for term, compat in zip(pairwise, compats, strict=True)
        ]
        solved: list[Any] = gpu().solve(energies, terms, iterations, first, best)
        return solved
    if common == "cpu":
        with input_errors():
            answers: list[Any] = compiled().crf_mean_field(
                energies, _native_terms(pairwise, compats), iterations, first, best, threads
            )
        return answers
    kernels = _reference_kernels(pairwise, compats)
    results = [_by_definition(one, kernels, iterations, first) for one in energies]
    return [q.argmax(axis=0).astype(np.int32) if best else q for q in results]


def _by_definition(energies: Array, kernels: Sequence[reference.Kernel], iterations: int, start: Array | None) -> Array:
    """Computed in double precision; marginals are rounded after each step, so that single steps equal inference."""
    lowest = energies.min(axis=0)
    if np.isnan(lowest).any() or np.isinf(lowest).any():
        raise InputError("unary holds NaN or -inf, or +inf for every label of a point, expected finite energies")
    q = reference.mean_field(energies, kernels, 0, start).astype(np.float32)
    for _ in range(iterations):
        q = reference.mean_field(energies, kernels, 1, q).astype(np.float32)
    return q


def solve_labels(
    maps: Sequence[Array],
    n_labels: int,
    gt_prob: float,
    pairwise: Sequence[Pairwise],
    iterations: int,
    *,
    backend: str,
    threads: int | None = None,
) -> list[Array]:
    """The most probable labels (n,) int32 for label maps (n,) that are right with probability `gt_prob`.

    As `solve` with `unary_from_labels(map, n_labels, gt_prob, zero_unsure=False)`. The C++ kernels take the maps as
    they are, a byte for each pixel instead of L floats.
    """
    common = _common_backend(pairwise) if pairwise else backend
    if common != "cpu" or n_labels > 256:
        unaries = [unary_from_labels(one, n_labels, gt_prob, zero_unsure=False) for one in maps]
        return solve(unaries, pairwise, iterations, best=True, threads=threads, backend=common)
    compats = [_check_term(term, n_labels, maps[0].size) for term in pairwise]
    right, wrong = -np.log(gt_prob), -np.log((1.0 - gt_prob) / (n_labels - 1))
    with input_errors():
        answers: list[Array] = compiled().crf_mean_field_labels(
            [one.astype(np.uint8) for one in maps],
            n_labels,
            right,
            wrong,
            _native_terms(pairwise, compats),
            max(0, _arrays.integer("iterations", iterations)),
            True,
            _arrays.thread_count(threads),
        )
    return answers


def kl_divergence(marginals: ArrayLike, unary: ArrayLike, pairwise: Sequence[Pairwise]) -> float:
    """KL divergence of marginals from the CRF, without the constant log Z.

    It may be negative: only its decrease from step to step has a meaning.

    Args:
        marginals: (L, n).
        unary: (L, n) energies.
        pairwise: the CRF's terms.

    Raises:
        InputError: a shape or value is not as above.
    """
    energies = check_unary(_on_host(unary))
    q = float32("marginals", _on_host(marginals))
    if q.shape != energies.shape:
        raise InputError(f"marginals have shape {q.shape}, expected the unary's {energies.shape}")
    compats = [_check_term(term, *energies.shape) for term in pairwise]
    kernels = _reference_kernels(pairwise, compats)
    return reference.kl_divergence(q, np.where(q > 0, energies, 0), kernels)


def check_compat(given: Any, labels: int) -> Array:
    """A number, (L,) or symmetric (L, L), float32."""
    compat = _arrays.as_array("compat", _on_host(given)).astype(np.float64)
    if compat.shape not in ((), (labels,), (labels, labels)):
        raise InputError(f"compat has shape {compat.shape}, expected a number, ({labels},) or ({labels}, {labels})")
    if not (np.abs(compat) <= MAX_COMPAT).all():
        raise InputError(f"compat holds NaN or magnitudes beyond {MAX_COMPAT:.0e}, expected finite numbers")
    compat = compat.astype(np.float32)
    if compat.ndim == 2:
        compat = np.float32(0.5) * (compat + compat.T)
    return np.asarray(compat, order="C")


def check_normalization(normalization: str) -> str:
    """One of `NORMALIZATIONS`."""
    return _arrays.choice("normalization", normalization, NORMALIZATIONS)


def check_unary(unary: Any, backend: str = "cpu") -> Any:
    """(L, n) float32, C-contiguous, copied only where layout or type ask for it; a tensor on a GPU as it is."""
    on_gpu = _arrays.on_gpu(unary)
    if on_gpu and backend != "cuda":
        raise InputError(f"unary is a tensor on {unary.device}, expected one on the CPU as the lattices are")
    energies = unary.detach() if on_gpu else float32("unary", unary)
    if energies.ndim != 2 or 0 in energies.shape:
        raise InputError(
            f"unary has shape {tuple(energies.shape)}, expected (L, n) with at least one label and one point"
        )
    return energies


def _check_start(start: Any, labels: int, n: int) -> Any:
    first: Any = start.detach() if _arrays.on_gpu(start) else float32("start", start)
    if tuple(first.shape) != (labels, n):
        raise InputError(f"start has shape {tuple(first.shape)}, expected the unary's {(labels, n)}")
    if not (first.isfinite() if _arrays.on_gpu(first) else np.isfinite(first)).all():
        raise InputError("start holds NaN or infinity, expected marginals")
    return first


def _check_term(term: Pairwise, labels: int, n: int) -> Array:
    if term.lattice.points != n:
        raise InputError(f"a lattice has {term.lattice.points} points, expected the unary's {n}")
    check_normalization(term.normalization)
    return check_compat(term.compat, labels)


def _common_backend(pairwise: Sequence[Pairwise]) -> str:
    backends = {term.lattice.backend for term in pairwise} or {"reference" if missing else "cpu"}
    if len(backends) > 1:
        raise InputError(f"the lattices come from the backends {', '.join(sorted(backends))}, expected one")
    return backends.pop()


def _on_host(value: Any) -> Any:
    return value.detach().cpu().numpy() if _arrays.on_gpu(value) else value


def _native_terms(pairwise: Sequence[Pairwise], compats: Sequence[Array]) -> list[tuple[Any, Any, Array]]:
    kinds = compiled().CrfNormalization
    return [
        (term.lattice.handle, getattr(kinds, term.normalization), compat)
        for term, compat in zip(pairwise, compats, strict=True)
    ]


class _Filter(reference.Lattice):
    """A reference lattice whose filter is another backend's."""

    def __init__(self, lattice: Lattice) -> None:
        self.offset = np.empty((lattice.points, 0))
        self.filter = lattice.filter
        self.norms: dict[str, tuple[Array, Array]] = {}


def _reference_kernels(pairwise: Sequence[Pairwise], compats: Sequence[Array]) -> list[reference.Kernel]:
    return [
        reference.Kernel(
            term.lattice.handle if term.lattice.backend == "reference" else _Filter(term.lattice),
            compat,
            term.normalization,
        )
        for term, compat in zip(pairwise, compats, strict=True)
    ]
