"""The affinity random walk: spreads activations along the image, but not across its edges.

Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (CVPR 2019), section 5.
IRN's code squares a dense (h·w)² matrix. This one multiplies by sparse neighbour affinities, in memory linear in the
pixels, and by default only as often as a Chebyshev expansion of the matrix power needs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amn_fast import _native
from amn_fast._pool import thread_pool
from amn_fast.errors import InputError
from amn_fast.kernels.random_walk import reference
from amn_fast.ops._arrays import as_array, choice, choose_backend, integer, is_tensor, number, thread_count

METHODS = ("chebyshev", "steps")
TOLERANCE = 1e-6
MAX_RADIUS = 64  # 6,400 pairs of neighbours
MAX_EXP_TIMES = {"chebyshev": 30, "steps": 20}  # 160,000 and a million products
FLOAT32_MAX = float(np.finfo(np.float32).max)
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
    """The random walk of the maps: x (1 - edge) times T^(2^exp_times), T the transition matrix of the affinities.

    The affinity of two pixels closer than `radius` is 1 - the maximal edge on the straight path between them. T holds
    the affinities to the power `beta`, each column divided by its sum. Equivalent to IRN's `propagate_to_edge` up to
    rounding.

    Args:
        x: (K, h, w) activations, finite and within the range of float32; an array or tensor of real numbers, of any
            dtype and memory layout. Or a list of them, of different sizes: the images are spread over the threads.
        edge: (h, w) or (1, h, w) edge map in [0, 1], read in single precision; a list when x is one.
        radius: in pixels of the map, 1..64.
        beta: exponent of the affinities, above 0.
        exp_times: the walk takes 2^exp_times steps; 0..30, for method "steps" 0..20.
        method: "chebyshev" evaluates the power of T by its Chebyshev expansion; "steps" takes all steps one by one.
        tolerance: for "chebyshev", in (0, 1): bound on the sum of the omitted coefficients, an upper estimate of the
            error relative to the largest value. 1e-6 takes 79 products for 256 steps.
        backend: "auto", "cpu" (C++), "triton" (CUDA tensors; waits once for the device, to check the values) or
            "reference" (double precision).
        threads: number of CPU threads; None: all CPUs that this process may use. The result is bit-identical for any
            number, and alone or in a list.

    Returns:
        (K, h, w) maps of the kind and dtype of x (float32 for integers and bool), or a list of them. Tensors have no
        gradient: the backward pass raises RuntimeError.

    Raises:
        InputError: a shape, value or argument is not as above; the message names it.
        BackendError: the requested backend cannot run here.

    Examples:
        >>> import numpy as np, amn_fast
        >>> x, edge = np.zeros((1, 8, 8)), np.zeros((8, 8)); x[0, 2, 2] = 1; edge[:, 4] = 1
        >>> amn_fast.random_walk(x, edge)[0, 3, [3, 5]].round(4).tolist()  # nothing crosses the edge
        [0.0343, 0.0]
    """
    settings = checked_settings(radius, beta, exp_times, method, tolerance, backend, threads)
    several = isinstance(x, list | tuple)
    if several and (not isinstance(edge, list | tuple) or len(edge) != len(x)):
        found = f"a list of {len(edge)}" if isinstance(edge, list | tuple) else type(edge).__name__
        raise InputError(f"edge is {found}, expected a list of {len(x)} edge maps, one for each entry of x")
    maps, edges = (list(x), list(edge)) if several else ([x], [edge])
    results: list[Any]
    if any(is_tensor(part) for part in maps):
        from amn_fast.ops._walk_tensors import walk_tensors

        results = walk_tensors(maps, edges, settings)
    else:
        results = walk_arrays(maps, edges, settings)
    return results if several else results[0]


class WalkSettings(NamedTuple):
    """The arguments of `random_walk` except the maps, checked."""

    radius: int
    beta: float
    exp_times: int
    method: str
    tolerance: float
    backend: str
    threads: int


def checked_settings(
    radius: int, beta: float, exp_times: int, method: str, tolerance: float, backend: str, threads: int | None
) -> WalkSettings:
    """The settings of `random_walk`, or an InputError."""
    choice("method", method, METHODS)
    return WalkSettings(
        integer("radius", radius, 1, MAX_RADIUS),
        number("beta", beta, "(0, inf)"),
        integer("exp_times", exp_times, 0, MAX_EXP_TIMES[method]),
        method,
        number("tolerance", tolerance, "(0, 1)"),
        backend,
        thread_count(threads),
    )


class Affinities:
    """The affinities of one edge map, built once for any number of walks (a sweep over steps, powers, classes).

    Args:
        edge: (h, w) or (1, h, w) array in [0, 1].
        radius, beta, backend: as for `random_walk`; CPU backends only.
        name: of the edge map in messages.

    Raises:
        InputError, BackendError: as `random_walk`.
    """

    def __init__(
        self, edge: ArrayLike, *, radius: int = 5, beta: float = 10, backend: str = "auto", name: str = "edge"
    ) -> None:
        self.radius, self.beta = integer("radius", radius, 1, MAX_RADIUS), number("beta", beta, "(0, inf)")
        self.edge = _checked_edge(name, edge)
        self.backend = _array_backend(backend)
        self.stop: Any = None  # a `WalkStop` ends the walk early
        if self.backend == "cpu":
            self._native = _native.native.WalkAffinities(  # type: ignore[union-attr]
                np.ascontiguousarray(self.edge, np.float32), self.radius, self.beta
            )

    def walk(
        self,
        x: ArrayLike,
        exp_times: int | Sequence[int] = 8,
        *,
        method: str = "chebyshev",
        tolerance: float = TOLERANCE,
        threads: int | None = None,
        name: str = "x",
    ) -> Array:
        """The walk of maps x (K, h, w); with a list of `exp_times` one walk serves them all: (len(list), K, h, w)."""
        maps = _checked_maps(name, x, self.edge.shape)
        several = list(exp_times) if isinstance(exp_times, Sequence) else [exp_times]
        coefficients = polynomials(several, method, tolerance)
        threads = thread_count(threads)
        if self.backend == "reference" or maps.shape[0] == 0:
            result = np.stack([self._by_definition(maps, times) for times in several])
        else:
            result = self._native.walk(
                np.ascontiguousarray(maps, np.float32), coefficients, method == "chebyshev", threads, stop=self.stop
            )
        result = result.astype(_result_dtype(maps), copy=False)
        return result if isinstance(exp_times, Sequence) else result[0]

    def _by_definition(self, x: Array, exp_times: int) -> Array:
        return reference.walk(x, self.edge, radius=self.radius, beta=self.beta, exp_times=exp_times)


def walk_arrays(xs: Sequence[Any], edges: Sequence[Any], settings: WalkSettings) -> list[Array]:
    """The walk of arrays, the images spread over the threads. An exception in one image stops the others."""
    workers = max(min(settings.threads, len(xs)), 1)
    stop = _native.native.WalkStop() if _native.native is not None else None

    def walk_one(x_name: str, x: Any, edge_name: str, edge: Any) -> Array:
        affinities = Affinities(
            edge, radius=settings.radius, beta=settings.beta, backend=settings.backend, name=edge_name
        )
        affinities.stop = stop
        return affinities.walk(
            x,
            settings.exp_times,
            method=settings.method,
            tolerance=settings.tolerance,
            threads=max(settings.threads // workers, 1),
            name=x_name,
        )

    tasks = list(zip(names("x", xs), xs, names("edge", edges), edges, strict=True))
    if workers == 1:
        return [walk_one(*task) for task in tasks]
    with thread_pool(workers, stop.set if stop is not None else lambda: None) as pool:
        return [future.result() for future in [pool.submit(walk_one, *task) for task in tasks]]


def names(name: str, parts: Sequence[Any]) -> list[str]:
    """What messages call each of the parts."""
    return [name] if len(parts) == 1 else [f"{name}[{i}]" for i in range(len(parts))]


def _array_backend(backend: str) -> str:
    obstacles = {"cpu": _native.missing, "reference": "", "triton": "it takes CUDA tensors, not arrays on the CPU"}
    return choose_backend(backend, "random_walk", obstacles)


def polynomials(exp_times: list[int], method: str, tolerance: float) -> NDArray[np.float64]:
    """(len(exp_times), degree + 1) coefficients in Chebyshev polynomials, or in powers, of the transition matrix."""
    choice("method", method, METHODS)
    number("tolerance", tolerance, "(0, 1)")
    if not exp_times:
        raise InputError("exp_times is empty, expected at least one integer")
    powers = [integer("exp_times", times, 0, MAX_EXP_TIMES[method]) for times in exp_times]
    if method == "chebyshev":
        rows = [reference.chebyshev_coefficients(times, tolerance) for times in powers]
    else:
        rows = [np.eye(1, 2**times + 1, 2**times)[0] for times in powers]
    result = np.zeros((len(rows), max(map(len, rows))))
    for row, values in zip(result, rows, strict=True):
        row[: len(values)] = values
    return result


def _checked_edge(name: str, edge: Any) -> Array:
    array = as_array(name, edge)
    check_edge_shape(name, array.shape)
    array = array.reshape(array.shape[-2:])
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise InputError(f"{name} has values in {low}..{high}, expected finite numbers in [0, 1]")
    return array


def check_edge_shape(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[0] != 1):
        raise InputError(f"{name} has shape {tuple(shape)}, expected (h, w) or (1, h, w) with at least one pixel")


def _checked_maps(name: str, x: Any, size: tuple[int, ...]) -> Array:
    maps = as_array(name, x)
    check_maps_shape(name, maps.shape, size)
    if maps.size and not (float(maps.min()) >= -FLOAT32_MAX and float(maps.max()) <= FLOAT32_MAX):
        raise InputError(f"{name} has NaN, infinite or too large values, expected finite numbers of float32")
    return maps


def check_maps_shape(name: str, shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    if len(shape) != 3 or tuple(shape[1:]) != tuple(size):
        raise InputError(f"{name} has shape {tuple(shape)}, expected (K, {size[0]}, {size[1]}) like the edge map")


def _result_dtype(x: Array) -> np.dtype[Any]:
    return x.dtype if x.dtype.kind == "f" else np.dtype(np.float32)
