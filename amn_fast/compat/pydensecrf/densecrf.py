"""pydensecrf.densecrf: DenseCRF, DenseCRF2D and what goes into them, on `amn_fast.ops.lattice`.

Marginals are NumPy arrays (n_labels, N) float32: `np.array(Q)`, `np.argmax(Q, 0)` and `np.asarray(Q)` work as they do
on pydensecrf's matrices, and so do `Q.shape` and indexing. Inputs may have any real type and memory layout.
"""

import os
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amn_fast.errors import InputError
from amn_fast.ops._arrays import as_array
from amn_fast.ops.dense_crf import sigmas
from amn_fast.ops.lattice import Lattice, float32
from amn_fast.ops.mean_field import Pairwise, check_compat, kl_divergence, mean_field

Array = np.ndarray[Any, np.dtype[Any]]


class KernelType(IntEnum):
    """How a kernel's parameters are learnt. Nothing is learnt here, so all three compute the same, as in pydensecrf."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(IntEnum):
    """Where a kernel is divided by its mass K·1: nowhere, before or after filtering, or by its root on both sides."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType

_NORMALIZATIONS: dict[IntEnum, str] = {
    NO_NORMALIZATION: "none",
    NORMALIZE_BEFORE: "before",
    NORMALIZE_AFTER: "after",
    NORMALIZE_SYMMETRIC: "symmetric",
}


class Unary:
    """Unary energies for `DenseCRF.setUnary`; one object serves any number of CRFs."""

    energies: Array | None = None


class ConstUnary(Unary):
    """Given energies: u (n_labels, N)."""

    def __init__(self, u: ArrayLike) -> None:
        self.energies = _copied("u", u, "(n_labels, N)")


class LogisticUnary(Unary):
    """Energies that are linear in features: L (n_labels, k) times f (k, N)."""

    def __init__(self, L: ArrayLike, f: ArrayLike) -> None:
        weights, features = _copied("L", L, "(n_labels, k)"), _copied("f", f, "(k, N)")
        if weights.shape[1] != len(features):
            raise InputError(f"L has shape {weights.shape} and f {features.shape}, expected (n_labels, k) and (k, N)")
        self.energies = weights @ features


class DenseCRF:
    """A fully connected CRF over `nvar` points, whose pairwise terms come from features.

    Attributes:
        threads: of lattices and inference. Scripts that use pydensecrf bring their own processes, so it is 1 unless
            set; None stands for all CPUs that this process may use. Results do not depend on it. Not in pydensecrf.

    Raises:
        InputError: a size is not at least 1.
    """

    threads: int | None = 1

    def __init__(self, nvar: int, nlabels: int) -> None:
        self._points = _size("nvar", nvar)
        self._labels = _size("nlabels", nlabels)
        self._unary: Array | None = None
        self._pairwise: list[Pairwise] = []

    def setUnary(self, u: Unary) -> None:
        """Take the energies of a `ConstUnary` or `LogisticUnary`, of shape (n_labels, N).

        Raises:
            InputError: it is no such object, or of another shape.
        """
        if not isinstance(u, Unary):
            raise InputError(f"u is a {type(u).__name__}, expected a ConstUnary or LogisticUnary")
        if u.energies is not None:
            self._check_unary(u.energies)
        self._unary = u.energies

    def setUnaryEnergy(self, u: ArrayLike, f: ArrayLike | None = None) -> None:
        """Take energies (-log probabilities), (n_labels, N) or (n_labels, H, W).

        They are copied. With `f` (k, N), `u` is (n_labels, k) and the energies are their product, as in
        `LogisticUnary`. +inf forbids a label at a point; NaN, -inf and a point without any label are errors that show
        in `inference`.

        Raises:
            InputError: another shape or type.
        """
        if f is not None:
            energies = LogisticUnary(u, f).energies
            assert energies is not None
        else:
            array = _as_array("u", u)
            if array.ndim == 3:
                self._check_grid(array)
                array = array.reshape(len(array), -1)
            energies = _copied("u", array, f"({self._labels}, {self._points})")
        self._check_unary(energies)
        self._unary = energies

    def addPairwiseEnergy(
        self,
        features: ArrayLike,
        compat: ArrayLike,
        kernel: KernelType | int = DIAG_KERNEL,
        normalization: NormalizationType | int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add the kernel exp(-|f_i - f_j|² / 2) of `features` (d, N), each already divided by its sigma.

        Args:
            compat: a number c is a Potts weight: equal labels attract. A vector (n_labels,) or a matrix
                (n_labels, n_labels) holds energies, of the other sign: c equals -c · I. A matrix is symmetrised.

        Raises:
            InputError: another shape, values that are not finite or too far apart for the lattice, or an unknown
                kernel or normalization.
        """
        matrix = _as_array("features", features)
        if matrix.ndim != 2 or matrix.shape[1] != self._points:
            raise InputError(f"features have shape {matrix.shape}, expected (d, {self._points})")
        self._require_lattice_memory(len(matrix))
        self._add(Lattice(matrix, threads=self.threads), compat, kernel, normalization)

    def inference(self, niter: int) -> Array:
        """Marginals Q (n_labels, N) float32 after `niter` mean-field steps; 0 or fewer give softmax(-unary).

        Raises:
            InputError: the unary holds NaN or -inf, or forbids every label of a point.
            MemoryError: the machine has too little.
        """
        try:
            steps = int(niter)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"niter is {niter!r}, expected an integer") from None
        marginals: Array = mean_field(self._energies(), self._pairwise, steps, threads=self.threads)
        return marginals

    def startInference(self) -> tuple[Array, Array, Array]:
        """Q = softmax(-unary) for `stepInference`, and two empty arrays in place of pydensecrf's work buffers."""
        return self.inference(0), np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def stepInference(self, Q: Array, tmp1: object, tmp2: object) -> None:
        """One mean-field step, in place; n of them equal `inference(n)` bit for bit. `tmp1`, `tmp2` are not used.

        Raises:
            InputError: Q is not an array (n_labels, N) of finite numbers that can be written to.
        """
        if not isinstance(Q, np.ndarray) or not Q.flags.writeable:
            raise InputError(f"Q is a {type(Q).__name__}, expected the writable array that startInference gave")
        self._check_marginals(Q)
        Q[...] = mean_field(self._energies(), self._pairwise, 1, start=Q, threads=self.threads)

    def klDivergence(self, Q: ArrayLike) -> float:
        """KL divergence of Q from the CRF without log Z: it may be negative, only its decrease means something.

        Raises:
            InputError: Q is not (n_labels, N) finite numbers.
        """
        marginals = _as_array("Q", Q)
        self._check_marginals(marginals)
        return kl_divergence(marginals, self._energies(), self._pairwise)

    def _add(self, lattice: Lattice, compat: ArrayLike, kernel: int, normalization: int) -> None:
        _enum("kernel", kernel, KernelType)
        chosen = _NORMALIZATIONS[_enum("normalization", normalization, NormalizationType)]
        self._pairwise.append(Pairwise(lattice, _compatibility(compat, self._labels), chosen))

    def _energies(self) -> Array:
        """The unary, all zeros where none was set; checked against the memory that inference needs at least."""
        _require_memory(4 * self._labels * self._points * (2 if self._unary is None else 1), "inference")
        return np.zeros((self._labels, self._points), np.float32) if self._unary is None else self._unary

    def _require_lattice_memory(self, dimension: int) -> None:
        _require_memory(8 * (dimension + 1) * self._points, f"the lattice of {self._points} points")

    def _check_unary(self, energies: Array) -> None:
        expected = (self._labels, self._points)
        if energies.shape != expected:
            hint = ": transpose it" if energies.shape == expected[::-1] else ""
            raise InputError(f"unary has shape {energies.shape}, expected {self._expected_unary()}{hint}")

    def _check_grid(self, array: Array) -> None:
        """Of a unary with more than two dimensions, before it is flattened."""
        if len(array) != self._labels or array[0].size != self._points:
            raise InputError(f"unary has shape {array.shape}, expected {self._expected_unary()}")

    def _expected_unary(self) -> str:
        return f"({self._labels}, {self._points})"

    def _check_marginals(self, Q: Array) -> None:
        if Q.shape != (self._labels, self._points):
            raise InputError(f"Q has shape {Q.shape}, expected ({self._labels}, {self._points})")
        if not np.isfinite(Q).all():
            raise InputError("Q holds NaN or infinity, expected finite numbers")


class DenseCRF2D(DenseCRF):
    """The CRF of an image. Mind the order of the arguments: width, height, labels."""

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        self._width, self._height = _size("w", w), _size("h", h)
        super().__init__(self._width * self._height, nlabels)

    def addPairwiseGaussian(
        self,
        sxy: ArrayLike,
        compat: ArrayLike,
        kernel: KernelType | int = DIAG_KERNEL,
        normalization: NormalizationType | int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add the smoothness kernel, over positions alone.

        Args:
            sxy: sigma in pixels, a number or (sx, sy).
            compat: as in `addPairwiseEnergy`.

        Raises:
            InputError: a sigma is not greater than 0 or too small for the image, or as in `addPairwiseEnergy`.
        """
        sx, sy = _sigmas("sxy", sxy, 2)
        self._require_lattice_memory(2)
        lattice = Lattice.of_grid(self._height, self._width, sx, sy, threads=self.threads)
        self._add(lattice, compat, kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: ArrayLike,
        srgb: ArrayLike,
        rgbim: ArrayLike,
        compat: ArrayLike,
        kernel: KernelType | int = DIAG_KERNEL,
        normalization: NormalizationType | int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add the appearance kernel, over positions and colours.

        Args:
            sxy: sigma in pixels, a number or (sx, sy).
            srgb: sigma in grey levels, a number or one for each channel.
            rgbim: (h, w, 3) uint8, in any memory layout.
            compat: as in `addPairwiseEnergy`.

        Raises:
            InputError: the image is not of that shape and type, or as in `addPairwiseGaussian`.
        """
        image = self._image(rgbim)
        sx, sy = _sigmas("sxy", sxy, 2)
        self._require_lattice_memory(5)
        lattice = Lattice.of_image(image, sx, sy, _sigmas("srgb", srgb, 3), threads=self.threads)
        self._add(lattice, compat, kernel, normalization)

    def _image(self, rgbim: ArrayLike) -> Array:
        image = _as_array("rgbim", rgbim)
        expected = (self._height, self._width, 3)
        if image.shape != expected:
            hint = ""
            if image.shape == (self._width, self._height, 3):
                hint = ": DenseCRF2D takes the width first, then the height"
            elif image.shape == (3, *expected[:2]):
                hint = ": move the channels last, rgbim.transpose(1, 2, 0)"
            elif image.shape == expected[:2] or image.shape == (*expected[:2], 1):
                hint = ": repeat a grey image's channel three times"
            elif image.shape[:2] == expected[:2]:
                hint = ": drop the further channels, or pass utils.create_pairwise_bilateral to addPairwiseEnergy"
            raise InputError(f"rgbim has shape {image.shape}, expected {expected}{hint}")
        if image.dtype != np.uint8:
            raise InputError(f"rgbim is {image.dtype}, expected uint8 (0..255): scale and convert it first")
        return image

    def _check_grid(self, array: Array) -> None:
        if array.shape != (self._labels, self._height, self._width):
            raise InputError(f"unary has shape {array.shape}, expected {self._expected_unary()}")

    def _expected_unary(self) -> str:
        return f"({self._labels}, {self._points}) or ({self._labels}, {self._height}, {self._width})"


def _as_array(name: str, value: Any) -> Array:
    if getattr(value, "requires_grad", False):
        raise InputError(f"{name} is a tensor that requires a gradient, expected an array: call .detach() first")
    return as_array(name, value)


def _copied(name: str, value: object, expected: str) -> Array:
    """A float32 copy of a matrix, so that the caller may write to theirs."""
    array = _as_array(name, value)
    if array.ndim != 2:
        raise InputError(f"{name} has shape {array.shape}, expected {expected}")
    return np.array(float32(name, array), order="C")


def _size(name: str, value: Any) -> int:
    """A size, truncated to an integer as pydensecrf truncates it."""
    try:
        number = 0 if isinstance(value, str) else int(value)
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1:
        raise InputError(f"{name} is {value!r}, expected an integer of at least 1")
    return number


def _sigmas(name: str, given: ArrayLike, count: int) -> list[float]:
    """`count` sigmas from a number, one number in a list, or at least `count`; pydensecrf ignores further ones."""
    values = _as_array(name, given).ravel().tolist()
    if len(values) != 1 and len(values) < count:
        raise InputError(f"{name} is {given!r}, expected a number or {count} numbers")
    return sigmas(name, values[0] if len(values) == 1 else values[:count], count)


def _enum(name: str, value: Any, kind: type[IntEnum]) -> IntEnum:
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}, expected a {kind.__name__}") from None


def _compatibility(given: ArrayLike, labels: int) -> float | Array:
    """A checked compatibility; a multiple of -I becomes the Potts weight that it equals."""
    compat = check_compat(_as_array("compat", given), labels)
    if compat.ndim == 0:
        return float(compat)
    matrix = np.diag(compat) if compat.ndim == 1 else compat
    if np.array_equal(matrix, matrix[0, 0] * np.eye(labels, dtype=np.float32)):
        return -float(matrix[0, 0])
    return compat


def _require_memory(size: int, purpose: str) -> None:
    """Raise MemoryError where `purpose` needs more bytes than the machine has: else the system may end the process."""
    try:
        present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return
    if size > present:
        raise MemoryError(f"{purpose} needs at least {size / 2**30:.1f} GiB, the machine has {present / 2**30:.1f} GiB")
