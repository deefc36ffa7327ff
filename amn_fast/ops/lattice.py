"""The dense CRF's parts: permutohedral lattices over any features, pairwise terms, mean field, KL divergence.

`amn_fast.ops.dense_crf` is what images need; this is what it stands on, for features of other kinds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amn_fast._native import missing, native
from amn_fast.errors import InputError
from amn_fast.kernels.dense_crf import reference
from amn_fast.ops._backend import choose

Array = np.ndarray[Any, np.dtype[Any]]
NORMALIZATIONS = ("symmetric", "before", "after", "none")
MAX_DIMENSION = 32


class Lattice:
    """The permutohedral lattice of n points: K · values for the Gaussian kernel exp(-|f_i - f_j|² / 2).

    Args:
        features: (d, n) float, each feature already divided by its standard deviation; d in 1..32, n >= 1.
        backend: "auto", "cpu" or "reference".

    Raises:
        InputError: wrong shape, a value that is not finite, or features too large for the lattice's coordinates
            (a deviation that is tiny against the range of its feature).
    """

    def __init__(self, features: ArrayLike, *, backend: str = "auto") -> None:
        matrix = np.ascontiguousarray(features, np.float32)
        if matrix.ndim != 2 or not 1 <= matrix.shape[0] <= MAX_DIMENSION or matrix.shape[1] < 1:
            raise InputError(
                f"features have shape {matrix.shape}, expected (d, n) with d in 1..{MAX_DIMENSION}, n >= 1"
            )
        check_features(matrix)
        self.backend = choose(backend, "dense_crf", {"cpu": missing, "reference": ""})
        self.points = matrix.shape[1]
        self.dimension = matrix.shape[0]
        self.handle: Any
        if self.backend == "cpu" and native is not None:
            self.handle = native.CrfLattice(matrix)
        else:
            self.handle = reference.Lattice.build(matrix)

    def filter(self, values: ArrayLike) -> Array:
        """K · values, (channels, n) float32, without normalisation."""
        matrix = np.ascontiguousarray(values, np.float32)
        if matrix.ndim != 2 or matrix.shape[1] != self.points:
            raise InputError(f"values have shape {matrix.shape}, expected (channels, {self.points})")
        result: Array = self.handle.filter(matrix)
        return result


def check_features(features: Array) -> None:
    """Refuse what would leave the range of the lattice's coordinates."""
    d = len(features)
    scale = np.sqrt(2 / 3) * (d + 1) / np.sqrt(np.arange(1, d + 1) * np.arange(2.0, d + 2))
    largest = np.abs(features).max(axis=1).astype(np.float64)
    if not np.isfinite(largest).all():
        raise InputError("features hold NaN or infinity, expected finite numbers")
    reach = float((largest * scale * np.arange(1, d + 1)).max() + (largest * scale).sum())
    if reach > 2**21:
        raise InputError(
            f"features reach {largest.max():.3g} after division by their deviations, too far for single-precision "
            "lattice coordinates: expected larger deviations (sxy, srgb, ...)"
        )


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
    unary: ArrayLike, pairwise: Sequence[Pairwise], iterations: int, *, start: ArrayLike | None = None
) -> Array:
    """Marginals (L, n) float32 after `iterations` parallel mean-field updates.

    Each update is Q = softmax(-unary - sum over the terms of compat · K Q); it starts from softmax(-unary), or from the
    marginals `start` (L, n): five single steps equal five iterations bit for bit.

    Args:
        unary: (L, n) energies; +inf forbids a label, NaN and -inf are errors.

    Raises:
        InputError: a shape or a value is not what it has to be.
    """
    energies = check_unary(unary)
    labels, n = energies.shape
    compats = [_check_term(term, labels, n) for term in pairwise]
    first = None if start is None else np.ascontiguousarray(start, np.float32)
    if first is not None and first.shape != energies.shape:
        raise InputError(f"start has shape {first.shape}, expected the unary's {energies.shape}")
    iterations = max(0, int(iterations))
    backends = {term.lattice.backend for term in pairwise} or {"reference" if native is None else "cpu"}
    if len(backends) > 1:
        raise InputError("the lattices come from different backends, expected one")
    if backends == {"cpu"} and native is not None:
        result: Array = native.crf_mean_field(
            energies,
            [term.lattice.handle for term in pairwise],
            [getattr(native.CrfNormalization, term.normalization) for term in pairwise],
            compats,
            iterations,
            first,
        )
        return result
    return reference.mean_field(energies, _kernels(pairwise, compats), iterations, first).astype(np.float32)


def kl_divergence(marginals: ArrayLike, unary: ArrayLike, pairwise: Sequence[Pairwise]) -> float:
    """KL divergence of the marginals (L, n) from the CRF, without the constant log Z.

    It may be negative; only its decrease from step to step means something.
    """
    energies = check_unary(unary)
    q = np.ascontiguousarray(marginals, np.float32)
    if q.shape != energies.shape:
        raise InputError(f"marginals have shape {q.shape}, expected the unary's {energies.shape}")
    compats = [_check_term(term, *energies.shape) for term in pairwise]
    kernels = _kernels(pairwise, compats)
    return reference.kl_divergence(q, np.where(q > 0, energies, 0), kernels)


def check_unary(unary: ArrayLike) -> Array:
    """(L, n) float32, C-contiguous; copied only where the layout or type asks for it."""
    energies = np.ascontiguousarray(unary, np.float32)
    if energies.ndim != 2 or 0 in energies.shape:
        raise InputError(f"unary has shape {energies.shape}, expected (L, n) with at least one label and one point")
    lowest = energies.min(axis=0)
    if np.isnan(lowest).any() or np.isinf(lowest).any():
        raise InputError("unary holds NaN or -inf, or +inf for every label of a point; expected finite energies")
    return energies


def _check_term(term: Pairwise, labels: int, n: int) -> Array:
    if term.lattice.points != n:
        raise InputError(f"a lattice has {term.lattice.points} points, expected the unary's {n}")
    if term.normalization not in NORMALIZATIONS:
        raise InputError(f"normalization is {term.normalization!r}, expected one of {', '.join(NORMALIZATIONS)}")
    compat = np.asarray(term.compat, np.float32)
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
