"""Permutohedral lattices: fast filtering with a Gaussian kernel over any features.

`amn_fast.dense_crf` is what images need. This module serves features of other kinds; `amn_fast.ops.mean_field` runs a
CRF over them.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amn_fast._native import missing, native
from amn_fast.errors import InputError
from amn_fast.kernels.common import cuda
from amn_fast.kernels.dense_crf import reference
from amn_fast.ops import _arrays

Array = np.ndarray[Any, np.dtype[Any]]
MAX_DIMENSION = 32
MAX_SIDE = 2**31 - 1


class Lattice:
    """The permutohedral lattice of n points: K · values for the Gaussian kernel exp(-|f_i - f_j|² / 2).

    Args:
        features: (d, n) numbers, each feature already divided by its sigma; d in 1..32 (on a GPU 1..6), n >= 1. NumPy
            array or tensor.
        backend: "auto", "cpu", "cuda" or "reference". "auto" takes "cuda" for a tensor on a GPU.
        threads: None stands for all CPUs that this process may use. Results do not depend on it.

    Raises:
        InputError: wrong shape or type, a value that is not finite, or features whose range is too wide for the
            lattice's coordinates (a sigma that is tiny compared with the range of its feature).
        BackendError: the backend asked for cannot run here.

    Examples:
        >>> import numpy as np
        >>> lattice = Lattice(np.random.default_rng(0).normal(size=(2, 100)))
        >>> lattice.filter(np.ones((1, 100))).shape
        (1, 100)

    Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (2010).
    """

    backend: str
    dimension: int
    points: int
    handle: Any  # the backend's own lattice

    def __init__(self, features: ArrayLike, *, backend: str = "auto", threads: int | None = None) -> None:
        self.backend = crf_backend(backend, features)
        threads = _arrays.thread_count(threads)
        matrix: Any = features if _arrays.on_gpu(features) else _arrays.as_array("features", features)
        if matrix.ndim != 2 or not 1 <= matrix.shape[0] <= MAX_DIMENSION or matrix.shape[1] < 1:
            raise InputError(
                f"features have shape {tuple(matrix.shape)}, expected (d, n) with d in 1..{MAX_DIMENSION}, n >= 1"
            )
        self.dimension, self.points = matrix.shape
        if self.backend == "cuda":
            self.handle = gpu().matrix_handle(matrix)
            return
        with np.errstate(over="ignore"):
            matrix = np.ascontiguousarray(matrix, np.float32)
        if not np.isfinite(matrix).all():
            raise InputError("features hold NaN, infinity or values beyond single precision, expected finite numbers")
        with input_errors():
            if self.backend == "cpu":
                self.handle = compiled().CrfLattice.of_matrix(matrix, threads)
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
        """The lattice of the features x / sx, y / sy of a grid of pixels. The latest ones are kept and shared.

        Args:
            height, width: of the grid, at least 1.
            sx, sy: sigmas in pixels, greater than 0.
            like: a tensor on the GPU to build it on.
        """
        height, width = (_arrays.integer(*given, 1, MAX_SIDE) for given in (("height", height), ("width", width)))
        sx, sy = sigma("sx", sx), sigma("sy", sy)
        threads = _arrays.thread_count(threads)
        chosen = crf_backend(backend, like)
        device = gpu().device_of(like) if chosen == "cuda" else None
        place = gpu().place_of(device) if chosen == "cuda" else ""

        def build() -> Lattice:
            if chosen == "reference":
                return cls(reference.gaussian_features(height, width, sx, sy), backend=chosen)
            with input_errors():
                if chosen == "cuda":
                    handle = gpu().grid_handle(height, width, sx, sy, device)
                else:
                    handle = compiled().CrfLattice.of_grid(height, width, sx, sy, threads)
            return cls._of_handle(handle, 2, height * width, chosen)

        return grids.get((height, width, sx, sy, chosen, place), build)

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
        """The lattice of the features x / sx, y / sy and the channels of an image divided by `colours`.

        Args:
            image: (H, W, 3) uint8, NumPy array or tensor, of any strides.
            sx, sy: sigmas in pixels, greater than 0.
            colours: three sigmas in grey levels, greater than 0.
        """
        sx, sy = sigma("sx", sx), sigma("sy", sy)
        if len(colours) != 3:
            raise InputError(f"colours has {len(colours)} entries, expected one sigma for each of 3 channels")
        levels = [sigma(f"colours[{i}]", one) for i, one in enumerate(colours)]
        threads = _arrays.thread_count(threads)
        chosen = crf_backend(backend, image)
        pixels = check_image(image)
        if chosen == "reference":
            reference.coordinate_ranges([0.0] * 5, reference.highest_features(*pixels.shape[:2], sx, sy, levels))
            return cls(reference.bilateral_features(pixels, sx, sy, levels), backend=chosen)
        with input_errors():
            if chosen == "cuda":
                handle = gpu().image_handle(pixels, sx, sy, levels, gpu().device_of(pixels))
            else:
                handle = compiled().CrfLattice.of_image(pixels, sx, sy, levels, threads)
        return cls._of_handle(handle, 5, pixels.shape[0] * pixels.shape[1], chosen)

    @classmethod
    def _of_handle(cls, handle: Any, dimension: int, points: int, backend: str) -> "Lattice":
        lattice = cls.__new__(cls)
        lattice.handle, lattice.dimension, lattice.points, lattice.backend = handle, dimension, points, backend
        return lattice

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return int(self.handle.nbytes)

    def filter(self, values: ArrayLike, transpose: bool = False, *, threads: int | None = None) -> Any:
        """K · values, or Kᵀ · values, without normalisation.

        K is nearly symmetric, not exactly: the lattice blurs one axis after the other. Its transpose, which gradients
        need, blurs them in reverse order.

        Args:
            values: (channels, n) numbers, NumPy array or tensor.
            transpose: whether to apply Kᵀ.
            threads: None stands for all CPUs that this process may use. Results do not depend on it.

        Returns:
            (channels, n) float32, of the kind of `values`. Not differentiable: `backward` through it raises.

        Raises:
            InputError: the shape or type is another.
        """
        _arrays.flag("transpose", transpose)
        threads = _arrays.thread_count(threads)
        on_gpu = self.backend == "cuda" and _arrays.on_gpu(values)
        matrix: Any = values.detach() if on_gpu else float32("values", values)  # type: ignore[union-attr]
        if matrix.ndim != 2 or matrix.shape[1] != self.points:
            raise InputError(f"values have shape {tuple(matrix.shape)}, expected (channels, {self.points})")
        if self.backend == "cpu":
            result = self.handle.filter(matrix, transpose, threads)
        else:
            result = self.handle.filter(matrix, transpose)
        return not_differentiable("Lattice.filter", _arrays.like(values, result), values)


class GridCache:
    """The latest grid lattices, bounded in number and in bytes.

    A fork waits for the lock, so that a child never inherits it taken.
    """

    most = 64
    most_bytes = 256 << 20

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: OrderedDict[Any, tuple[Lattice, int]] = OrderedDict()
        self.nbytes = 0
        if hasattr(os, "register_at_fork"):
            release = self.lock.release
            os.register_at_fork(before=self.lock.acquire, after_in_parent=release, after_in_child=release)

    def get(self, key: Any, build: Callable[[], Lattice]) -> Lattice:
        """The lattice of `key`, built without the lock where it is not there."""
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key][0]
        lattice = build()
        size = lattice.nbytes
        with self.lock:
            if key not in self.kept and size <= self.most_bytes:
                self.kept[key] = lattice, size
                self.nbytes += size
            while len(self.kept) > self.most or self.nbytes > self.most_bytes:
                self.nbytes -= self.kept.popitem(last=False)[1][1]
        return lattice

    def clear(self) -> None:
        """Forget all lattices."""
        with self.lock:
            self.kept.clear()
            self.nbytes = 0


grids = GridCache()


def crf_backend(backend: str, *values: object) -> str:
    """The CRF's backend for these arrays or tensors: tensors on a GPU stay there."""
    for value in values:
        if _arrays.on_gpu(value):
            here = "the tensors are on a GPU: call .cpu() first"
            obstacle = cuda.obstacle(value.device)  # type: ignore[attr-defined]
            if not obstacle and _arrays.is_automatic(backend):
                obstacle = _arrays.gpu_verdict("dense_crf", "cuda")
            obstacles = {"cuda": obstacle, "cpu": here, "reference": here}
            return _arrays.choose_backend(backend, "dense_crf", obstacles)
    # Not looked into unless it is asked for: it imports PyTorch.
    obstacle = cuda.obstacle() if "cuda" in (backend, os.environ.get(_arrays.SWITCH)) else "the arrays are on the CPU"
    return _arrays.choose_backend(backend, "dense_crf", {"cpu": missing, "reference": "", "cuda": obstacle})


def check_image(image: Any) -> Any:
    """`image` as a (H, W, 3) uint8 array, or as the tensor that it is on a GPU.

    Raises:
        InputError: it is not such an image; the message names the remedy.
    """
    pixels = image.detach() if _arrays.on_gpu(image) else _arrays.as_array("image", image)
    shape = tuple(pixels.shape)
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1):
        raise InputError(f"image has shape {shape}, expected (H, W, 3): repeat the channel of a grey image three times")
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(
            f"image has shape {shape}, expected (H, W, 3): drop an alpha channel, move channels last, "
            "or build an ops.lattice.Lattice of your own features"
        )
    if str(pixels.dtype) not in ("uint8", "torch.uint8"):
        raise InputError(f"image is {pixels.dtype}, expected uint8 (0..255): scale and convert it first")
    if 0 in shape:
        raise InputError(f"image has shape {shape}, expected at least one pixel")
    if max(shape) > MAX_SIDE:
        raise InputError(f"image has shape {shape}, expected sides of at most {MAX_SIDE}")
    return pixels


def sigma(name: str, value: Any) -> float:
    """A sigma: a number that is greater than 0 and finite in single precision."""
    return _arrays.number(name, value, "[1.2e-38, 3.4e38]")


def float32(name: str, value: Any) -> Array:
    """An array or CPU tensor as float32, C-contiguous; finite numbers beyond single precision become its largest."""
    array = _arrays.as_array(name, value)
    if array.dtype.itemsize > 4 and array.dtype.kind == "f":
        largest = np.finfo(np.float32).max
        array = np.where(np.isfinite(array), np.clip(array, -largest, largest), array)
    return np.ascontiguousarray(array, np.float32)


def not_differentiable(operation: str, result: Any, *sources: Any) -> Any:
    """`result`, through which `backward` raises where a source requires a gradient: none is cut silently.

    Raises:
        InputError: a source carries a forward-mode derivative.
    """
    tensors = [source for source in sources if _arrays.is_tensor(source)]
    if not tensors or not _arrays.is_tensor(result):
        return result
    from amn_fast.ops import _dense_crf_torch

    return _dense_crf_torch.not_differentiable(operation, result, tensors)


def gpu() -> Any:
    """What runs the CRF on a GPU; it imports PyTorch."""
    from amn_fast.kernels.dense_crf.cuda import host

    return host


def compiled() -> Any:
    """The extension with the C++ kernels."""
    assert native is not None, missing
    return native


@contextmanager
def input_errors() -> Iterator[None]:
    """Turns the kernels' complaints about values into InputErrors."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from None


def __getattr__(name: str) -> Any:
    if name in ("Pairwise", "kl_divergence", "mean_field"):  # where they were before they had a module of their own
        from amn_fast.ops import mean_field

        return getattr(mean_field, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
