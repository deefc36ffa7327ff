"""The affinity random walk: spreads activations along the image, not across its edges.

Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (CVPR 2019), section 5.
The published walk squares a dense (h·w)² matrix; this one takes steps over the neighbours, in memory linear in pixels,
and by default only as many as a Chebyshev expansion of the matrix power needs.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn_fast import _native
from amn_fast.errors import InputError
from amn_fast.kernels.random_walk import reference
from amn_fast.ops._arrays import choose_backend, is_tensor, thread_count

METHODS = ("chebyshev", "steps")
TOLERANCE = 1e-6
MAX_RADIUS = 64  # 6,400 neighbours
MAX_EXP_TIMES = {"chebyshev": 30, "steps": 20}  # 160,000 and a million products
Array = NDArray[Any]


def random_walk(
    x: Any,
    edge: Any,
    *,
    radius: int = 5,
    beta: float = 10,
    exp_times: int = 8,
    method: str = "chebyshev",
    tolerance: float = TOLERANCE,
    backend: str = "auto",
    threads: int | None = None,
) -> Any:
    """Let the maps walk: x (1 - edge) times T^(2^exp_times), T the transition matrix of the affinities.

    The affinity of two pixels closer than `radius` is 1 - the maximal edge on the straight path between them; T holds
    the affinities to the power `beta`, each column divided by its sum.

    Equivalent to the published `propagate_to_edge` up to rounding, without its (h·w)² matrix.

    Args:
        x: (K, h, w) activations, any finite values; a NumPy array or a PyTorch tensor of any floating dtype and layout.
            Or a list of them, of different sizes: the pictures are spread over the threads.
        edge: (h, w) or (1, h, w) edge map in [0, 1]; a list when x is one.
        radius: in pixels of the map, 1..64.
        beta: exponent of the affinities, above 0.
        exp_times: the walk takes 2^exp_times steps.
        method: "chebyshev" evaluates T's power by its Chebyshev expansion; "steps" takes all steps one by one.
        tolerance: for "chebyshev": bound on the sum of the expansion's coefficients that are left out; an estimate from
            above of the error relative to the largest value. 1e-6 takes 79 products for 256 steps.
        backend: "auto", "cpu", "triton" (CUDA tensors; waits once for the GPU, to check the values, before the walk) or
            "reference" (double precision).
        threads: for the CPU; by default all. The result has the same bits for any number, and alone or in a list.

    Returns:
        (K, h, w) maps in x's dtype and kind, or a list of them. Not differentiable.

    Raises:
        InputError: a shape, value or argument is not as above; the message names it.
        BackendError: the backend asked for cannot run here.
    """
    several = isinstance(x, list | tuple)
    if several and (not isinstance(edge, list | tuple) or len(edge) != len(x)):
        found = f"a list of {len(edge)}" if isinstance(edge, list | tuple) else type(edge).__name__
        raise InputError(f"edge is {found}, expected a list of {len(x)} edge maps, one for each entry of x")
    maps, edges = (list(x), list(edge)) if several else ([x], [edge])
    settings = WalkSettings(radius, beta, exp_times, method, tolerance, backend, thread_count(threads))
    results: list[Any]
    if any(is_tensor(part) for part in maps):
        from amn_fast.ops._walk_tensors import walk_tensors

        results = walk_tensors(maps, edges, settings)
    else:
        results = walk_arrays([np.asarray(part) for part in maps], [np.asarray(part) for part in edges], settings)
    return results if several else results[0]


class Affinities:
    """The affinities of one edge map, built once for any number of walks (a sweep over steps, powers, classes).

    Args:
        edge: (h, w) or (1, h, w) array in [0, 1].
        radius, beta, backend: as for `random_walk`; CPU backends only.

    Raises:
        InputError, BackendError: as `random_walk`.
    """

    def __init__(self, edge: Array, *, radius: int = 5, beta: float = 10, backend: str = "auto") -> None:
        self.radius, self.beta = checked_radius(radius), checked_beta(beta)
        self.edge = _checked_edge(np.asarray(edge))
        self.backend = choose_backend(backend, "random_walk", _array_backends())
        if self.backend == "cpu":
            self._native = _native.native.WalkAffinities(  # type: ignore[union-attr]
                np.ascontiguousarray(self.edge, np.float32), self.radius, self.beta
            )

    def walk(
        self,
        x: Array,
        exp_times: int | Sequence[int] = 8,
        *,
        method: str = "chebyshev",
        tolerance: float = TOLERANCE,
        threads: int | None = None,
    ) -> Array:
        """The walk of maps x (K, h, w); with a list of `exp_times` one walk serves them all: (len(list), K, h, w)."""
        x = _checked_maps(np.asarray(x), self.edge.shape)
        several = list(exp_times) if isinstance(exp_times, Sequence) else [exp_times]
        coefficients = polynomials(several, method, tolerance)
        if self.backend == "reference" or x.shape[0] == 0:
            result = np.stack([self._by_definition(x, times) for times in several])
        else:
            maps = np.ascontiguousarray(x, np.float32)
            result = self._native.walk(maps, coefficients, method == "chebyshev", thread_count(threads))
        result = result.astype(_result_dtype(x), copy=False)
        return result if isinstance(exp_times, Sequence) else result[0]

    def _by_definition(self, x: Array, exp_times: int) -> Array:
        return reference.walk(x, self.edge, radius=self.radius, beta=self.beta, exp_times=exp_times)


class WalkSettings(NamedTuple):
    """`random_walk`'s arguments but the maps."""

    radius: int
    beta: float
    exp_times: int
    method: str
    tolerance: float
    backend: str
    threads: int


def walk_arrays(xs: Sequence[Array], edges: Sequence[Array], settings: WalkSettings) -> list[Array]:
    """The walk of NumPy arrays, the pictures spread over the threads."""
    workers = max(min(settings.threads, len(xs)), 1)

    def walk_one(x: Array, edge: Array) -> Array:
        affinities = Affinities(edge, radius=settings.radius, beta=settings.beta, backend=settings.backend)
        return affinities.walk(
            x,
            settings.exp_times,
            method=settings.method,
            tolerance=settings.tolerance,
            threads=max(settings.threads // workers, 1),
        )

    if workers == 1:
        return list(map(walk_one, xs, edges))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(walk_one, xs, edges))


def _array_backends() -> dict[str, str]:
    return {"cpu": _native.missing, "reference": "", "triton": "it takes CUDA tensors, not arrays on the CPU"}


def polynomials(exp_times: list[int], method: str, tolerance: float) -> NDArray[np.float64]:
    """(len(exp_times), degree + 1) coefficients in Chebyshev polynomials, or in powers, of the transition matrix."""
    if method not in METHODS:
        raise InputError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance!r}, expected a number above 0 and below 1")
    highest = MAX_EXP_TIMES[method]
    for times in exp_times:
        if not isinstance(times, int | np.integer) or isinstance(times, bool) or not 0 <= times <= highest:
            raise InputError(f"exp_times is {times!r}, expected a whole number in 0..{highest} for method '{method}'")
    if not exp_times:
        raise InputError("exp_times is empty, expected at least one whole number")
    if method == "chebyshev":
        rows = [reference.chebyshev_coefficients(int(times), tolerance) for times in exp_times]
    else:
        rows = [np.eye(1, 2 ** int(times) + 1, 2 ** int(times))[0] for times in exp_times]
    result = np.zeros((len(rows), max(map(len, rows))))
    for row, values in zip(result, rows, strict=True):
        row[: len(values)] = values
    return result


def checked_radius(radius: int) -> int:
    if not isinstance(radius, int | np.integer) or isinstance(radius, bool) or not 1 <= radius <= MAX_RADIUS:
        raise InputError(f"radius is {radius!r}, expected a whole number in 1..{MAX_RADIUS}")
    return int(radius)


def checked_beta(beta: float) -> float:
    try:
        value = float(beta) if not isinstance(beta, str) else np.nan
    except (TypeError, ValueError):
        value = np.nan
    if not 0 < value < np.inf:
        raise InputError(f"beta is {beta!r}, expected a finite number above 0")
    return value


def _checked_edge(edge: Array) -> Array:
    shape = edge.shape
    if edge.ndim == 3 and shape[0] == 1:
        edge = edge[0]
    if edge.ndim != 2 or edge.size == 0:
        raise InputError(f"edge has shape {shape}, expected (h, w) or (1, h, w) with at least one pixel")
    if edge.dtype.kind not in "fiub":
        raise InputError(f"edge has dtype {edge.dtype}, expected numbers in [0, 1]")
    low, high = edge.min(), edge.max()
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise InputError(f"edge has values in {low}..{high}, expected finite numbers in [0, 1]")
    return edge


def _checked_maps(x: Array, size: tuple[int, ...]) -> Array:
    if x.ndim != 3 or x.shape[1:] != size:
        raise InputError(f"x has shape {x.shape}, expected (K, {size[0]}, {size[1]}) like the edge map")
    if x.dtype.kind not in "fiub":
        raise InputError(f"x has dtype {x.dtype}, expected numbers")
    if x.size and not np.isfinite(x).all():
        raise InputError("x has NaN or infinite values, expected finite numbers")
    return x


def _result_dtype(x: Array) -> np.dtype[Any]:
    return x.dtype if x.dtype.kind == "f" else np.dtype(np.float32)
