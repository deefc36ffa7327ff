"""The dense CRF as a definition: permutohedral-lattice filtering and mean field, in plain NumPy.

Points are embedded in single precision, as pydensecrf does: another rounding puts them into other simplices. Everything
after that is in double precision.

This is what the tests trust and what runs without a compiler. Krähenbühl & Koltun, "Efficient Inference in Fully
Connected CRFs with Gaussian Edge Potentials" (2011); the filter is Adams, Baek & Davis, "Fast High-Dimensional
Filtering Using the Permutohedral Lattice" (2010). `exact_filter` is the Gaussian sum that the lattice approximates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amn_fast.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

MAX_COORDINATE = 2097152.0  # 2^21, as in embed.hpp
PADDING = 4  # pydensecrf embeds points in fours and fills the last group with zero features


@dataclass
class Lattice:
    """The permutohedral lattice of `n` points in `d` dimensions.

    Attributes:
        offset: (n, d + 1) int64, the vertices of the simplex around each point.
        weight: (n, d + 1) float32, its barycentric weights.
        previous, following: (d + 1, m) int64, each vertex' neighbours along each axis; `m` where there is none.
    """

    d: int
    m: int
    offset: Array
    weight: Array
    previous: Array
    following: Array
    norms: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    @classmethod
    def build(cls, features: Array) -> "Lattice":
        """The lattice of `features` (d, n) float32, each already divided by its sigma."""
        features = np.asarray(features, np.float32)
        d, n = features.shape
        coordinate_ranges(features.min(axis=1, initial=0), features.max(axis=1, initial=0))  # or an InputError
        padded = np.zeros((d, -(-n // PADDING) * PADDING), np.float32)
        padded[:, :n] = features
        base, rank, weight = embed(padded)
        keys = vertex_keys(base, rank)  # (d + 1, n, d): one key per vertex of each point's simplex
        unique, inverse = np.unique(keys.reshape(-1, d), axis=0, return_inverse=True)
        offset = inverse.reshape(d + 1, -1).T[:n]
        following = np.stack([find(unique, unique + step) for step in axis_steps(d)])
        previous = np.stack([find(unique, unique - step) for step in axis_steps(d)])
        return cls(d, len(unique), np.ascontiguousarray(offset), weight[:n], previous, following)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.offset, self.weight, self.previous, self.following))

    @property
    def alpha(self) -> np.float32:
        return np.float32(1.0) / (np.float32(1) + np.float32(2) ** np.float32(-self.d))

    def filter(self, values: Array, transpose: bool = False) -> Array:
        """K · values for values (channels, n): splat, blur along every axis, slice. Keeps the floating type.

        The slice is the transpose of the splat and the blur along an axis is symmetric, so the transposed kernel, Kᵀ,
        differs in the order of the axes alone.
        """
        values = np.asarray(values)
        if values.dtype != np.float64:
            values = values.astype(np.float32)
        weight = self.weight.astype(values.dtype)
        vertices = np.zeros((self.m + 1, len(values)), values.dtype)  # the last row stands for missing neighbours
        for j in range(self.d + 1):
            np.add.at(vertices, self.offset[:, j], weight[:, j, None] * values.T)
        half = values.dtype.type(0.5)
        axes = list(zip(self.previous, self.following, strict=True))
        for previous, following in reversed(axes) if transpose else axes:
            vertices[:-1] = vertices[:-1] + half * (vertices[previous] + vertices[following])
        sliced = np.zeros(values.shape[::-1], values.dtype)
        for j in range(self.d + 1):
            sliced += (weight[:, j, None] * values.dtype.type(self.alpha)) * vertices[self.offset[:, j]]
        return sliced.T

    def norm(self, normalization: str) -> tuple[Array, Array]:
        """What each point is multiplied with before and after the filter, (n,) each."""
        if normalization not in self.norms:
            ones = np.ones(len(self.offset))
            if normalization == "none":
                self.norms[normalization] = (ones, ones)
            else:
                mass = self.filter(ones[None])[0] + 1e-20
                if normalization == "symmetric":
                    scale = 1.0 / np.sqrt(mass)
                    self.norms[normalization] = (scale, scale)
                elif normalization in ("before", "after"):
                    scale = 1.0 / mass
                    self.norms[normalization] = (scale, ones) if normalization == "before" else (ones, scale)
                else:
                    raise InputError(
                        f"normalization is {normalization!r}, expected 'symmetric', 'before', 'after' or 'none'"
                    )
        return self.norms[normalization]


def coordinate_ranges(lowest: Sequence[float] | Array, highest: Sequence[float] | Array) -> list[tuple[float, float]]:
    """The ranges of the d + 1 lattice coordinates of features within lowest..highest, zero included.

    Raises:
        InputError: a coordinate is too large to leave single precision the bits of barycentric weights.
    """
    d = len(lowest)
    ranges = [(0.0, 0.0)] * (d + 1)
    low = high = 0.0
    for j in range(d, -1, -1):  # coordinate j: the later scaled features' sum less j times its own
        least, most = low, high
        if j > 0:
            scale = float(elevation_scale(d, j))
            a, b = float(lowest[j - 1]) * scale, float(highest[j - 1]) * scale
            least, most = least - j * b, most - j * a
            low, high = low + a, high + b
        if not (abs(least) < MAX_COORDINATE and abs(most) < MAX_COORDINATE):
            raise InputError(
                "the features' range is too wide for their sigmas: lattice coordinates reach "
                f"{max(abs(least), abs(most)):f}, expected less than 2097152 (single precision); "
                "use larger sigmas (sxy, srgb, ...)"
            )
        ranges[j] = least, most
    return ranges


def elevation_scale(d: int, j: int) -> np.float32:
    """The factor of feature j in 1..d, in single precision."""
    return np.float32(1.0 / np.sqrt((j + 1.0) * j) * float(np.float32(np.sqrt(2.0 / 3.0) * (d + 1))))


def embed(features: Array) -> tuple[Array, Array, Array]:
    """Where points (d, n) float32 lie in the lattice, in single precision as pydensecrf computes it.

    Returns:
        base: (d + 1, n) int64, the remainder-0 vertex of the enclosing simplex.
        rank: (d + 1, n) int64, each coordinate's rank by distance from `base`.
        weight: (n, d + 1) float32, barycentric weights of the vertices of remainder 0..d.
    """
    d, n = features.shape
    one = np.float32(1)
    inverse = one / np.float32(d + 1)
    elevated = np.empty((d + 1, n), np.float32)
    total = np.zeros(n, np.float32)
    for j in range(d, 0, -1):
        scaled = features[j - 1] * elevation_scale(d, j)
        elevated[j] = total - np.float32(j) * scaled
        total = total + scaled
    elevated[0] = total

    rounded = np.rint(inverse * elevated)
    base = rounded * np.float32(d + 1)
    excess = rounded.sum(axis=0, dtype=np.float32)  # integers: exact in any order
    rank = np.zeros((d + 1, n), np.float32)
    distance = elevated - base
    for i in range(d):
        for j in range(i + 1, d + 1):
            less = distance[i] < distance[j]  # of equal ones the later coordinate ranks up
            rank[i] += less
            rank[j] += ~less
    rank += excess
    shift = np.float32(d + 1) * ((rank < 0).astype(np.float32) - (rank >= d + 1).astype(np.float32))
    rank += shift
    base += shift

    order = (d - rank).astype(np.int64)
    distance = (elevated - base) * inverse
    ordered = np.empty((d + 1, n), np.float32)
    np.put_along_axis(ordered, order, distance, axis=0)
    weight = np.empty((n, d + 1), np.float32)
    weight[:, 0] = ordered[0] + (one - ordered[d])
    weight[:, 1:] = (ordered[1:] - ordered[:-1]).T
    return base.astype(np.int64), rank.astype(np.int64), weight


def vertex_keys(base: Array, rank: Array) -> Array:
    """(d + 1, n, d) the first d coordinates of each simplex vertex; the last one follows, as they sum to 0."""
    d = len(base) - 1
    keys = [base + r - np.where(rank > d - r, d + 1, 0) for r in range(d + 1)]
    return np.stack([key[:d].T for key in keys])


def axis_steps(d: int) -> Array:
    """(d + 1, d) the step to the following vertex along each axis."""
    steps = np.ones((d + 1, d), np.int64)
    steps[range(d), range(d)] = -d
    return steps


def find(keys: Array, wanted: Array) -> Array:
    """The row of `keys` (sorted, unique) that equals each row of `wanted`; len(keys) where there is none."""
    both = np.concatenate([keys, wanted])
    _, first, inverse = np.unique(both, axis=0, return_index=True, return_inverse=True)
    found = first[inverse.reshape(-1)[len(keys) :]]
    return np.where(found < len(keys), found, len(keys))


def exact_filter(features: Array, values: Array) -> Array:
    """The Gaussian sum the lattice approximates: out[:, i] = sum_j exp(-|f_i - f_j|² / 2) values[:, j]. O(n²)."""
    features = np.asarray(features, np.float64)
    squared = ((features[:, :, None] - features[:, None, :]) ** 2).sum(axis=0)
    return np.asarray(values, np.float64) @ np.exp(-squared / 2)


@dataclass
class Kernel:
    """One pairwise term: a lattice, its normalisation, and a compatibility.

    `compat` is a scalar (Potts: c rewards equal labels, acting as -c · I), a vector (L,) (a diagonal) or a matrix
    (L, L) (symmetrised), the last two added to the energy as they are.
    """

    lattice: Lattice
    compat: float | Array
    normalization: str = "symmetric"

    def energy(self, marginals: Array) -> Array:
        before, after = self.lattice.norm(self.normalization)
        filtered = self.lattice.filter(marginals * before) * after
        compat = np.asarray(self.compat, np.float64)
        if compat.ndim == 0:
            return -compat * filtered
        if compat.ndim == 1:
            return compat[:, None] * filtered
        return (0.5 * (compat + compat.T)) @ filtered


def softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(axis=0))
    return raised / raised.sum(axis=0)


def mean_field(unary: Array, kernels: Sequence[Kernel], iterations: int, start: Array | None = None) -> Array:
    """Marginals (L, n) float64 after `iterations` parallel updates from softmax(-unary), or from `start`."""
    unary = np.asarray(unary, np.float64)
    unary = unary - unary.min(axis=0)  # the marginals are the same, and enormous energies leave the messages their bits
    marginals = softmax(-unary) if start is None else np.asarray(start, np.float64)
    for _ in range(iterations):
        logits = -unary
        for kernel in kernels:
            logits = logits - kernel.energy(marginals)
        marginals = softmax(logits)
    return marginals


def kl_divergence(marginals: Array, unary: Array, kernels: Sequence[Kernel]) -> float:
    """KL(Q || P) without the constant log Z, so it may be negative; only its decrease has a meaning."""
    q = np.asarray(marginals, np.float64)
    total = float((q * np.log(np.maximum(q, 1e-20))).sum() + (q * unary).sum())
    return total + sum(float((q * kernel.energy(marginals)).sum()) for kernel in kernels)


def gaussian_features(height: int, width: int, sx: float, sy: float) -> Array:
    """(2, H·W) float32: x / sx, y / sy."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([x / np.float32(sx), y / np.float32(sy)]).reshape(2, -1)


def highest_features(height: int, width: int, sx: float, sy: float, colours: Sequence[float]) -> list[float]:
    """The largest features that an image of this size can have, whatever its colours."""
    sides = ((width - 1, sx), (height - 1, sy), *((255, colour) for colour in colours))
    with np.errstate(over="ignore"):
        return [float(np.float32(value) / np.float32(sigma)) for value, sigma in sides]


def bilateral_features(image: Array, sx: float, sy: float, colours: Sequence[float]) -> Array:
    """(2 + C, H·W) float32: x / sx, y / sy, then each channel of `image` (H, W, C) divided by its own sigma."""
    height, width, channels = image.shape
    scaled = image.astype(np.float32) / np.asarray(colours, np.float32)
    return np.concatenate([gaussian_features(height, width, sx, sy), scaled.reshape(-1, channels).T])
