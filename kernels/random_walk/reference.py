"""The affinity random walk by definition, in double precision.

Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (CVPR 2019), section 5.
Two forms give the same answer: `walk_dense` builds the transition matrix of all pairs of pixels, as IRN's code;
`walk` keeps one number per pair of neighbours and takes the steps one by one.
"""

import numpy as np
from numpy.typing import NDArray

from amn_fast.kernels.common.paths import half_plane, path

Float = NDArray[np.float64]


def affinities(edge: NDArray, radius: int = 5) -> Float:
    """1 - the maximal edge on the path between each pixel and its neighbours.

    Args:
        edge: (h, w), in [0, 1].
        radius: pixels closer than this are neighbours.

    Returns:
        (P, h, w): entry [p, y, x] is the affinity of pixel (y, x) and pixel (y, x) + half_plane(radius)[p]; 0 where
        that pixel lies outside.
    """
    h, w = edge.shape
    offsets = half_plane(radius)
    result = np.zeros((len(offsets), h, w))
    free = 1.0 - np.asarray(edge, np.float64)
    for plane, (dy, dx) in zip(result, offsets, strict=True):
        rows, columns = slice(0, max(h - dy, 0)), slice(max(-dx, 0), max(min(w - dx, w), 0))
        inside = plane[rows, columns]
        if inside.size == 0:
            continue
        inside[:] = 1.0
        for y, x in path((dy, dx)):
            part = free[rows.start + y : rows.stop + y, columns.start + x : columns.stop + x]
            np.minimum(inside, part, out=inside)
    return result


def transition(edge: NDArray, radius: int = 5, beta: float = 10) -> Float:
    """The dense transition matrix, (h·w, h·w): affinities to the power beta, each column divided by its sum."""
    h, w = edge.shape
    index = np.arange(h * w).reshape(h, w)
    matrix = np.eye(h * w)
    for plane, (dy, dx) in zip(affinities(edge, radius), half_plane(radius), strict=True):
        y, x = np.nonzero(plane)
        i, j = index[y, x], index[y + dy, x + dx]
        matrix[i, j] = matrix[j, i] = plane[y, x] ** beta
    return matrix / matrix.sum(0)


def walk_dense(x: NDArray, edge: NDArray, *, radius: int = 5, beta: float = 10, exp_times: int = 8) -> Float:
    """The form of IRN's code: square the dense matrix `exp_times` times. (h·w)² numbers: for small maps."""
    matrix = transition(edge, radius, beta)
    for _ in range(exp_times):
        matrix = matrix @ matrix
    start = np.asarray(x, np.float64) * (1.0 - np.asarray(edge, np.float64))
    return (start.reshape(len(x), -1) @ matrix).reshape(x.shape)


def walk(x: NDArray, edge: NDArray, *, radius: int = 5, beta: float = 10, exp_times: int = 8) -> Float:
    """The same by 2^exp_times steps over the neighbours; linear in pixels.

    Args:
        x: (K, h, w).
        edge: (h, w), in [0, 1].

    Returns:
        (K, h, w), float64.
    """
    h, w = edge.shape
    pairs = []
    for plane, (dy, dx) in zip(affinities(edge, radius), half_plane(radius), strict=True):
        here = np.s_[..., 0 : max(h - dy, 0), max(-dx, 0) : max(min(w - dx, w), 0)]
        there = np.s_[..., min(dy, h) : h, max(min(dx, w), 0) : max(min(w + dx, w), 0)]
        pairs.append((plane[here] ** beta, here, there))

    def spread(maps: Float) -> Float:
        total = maps.copy()  # a pixel's affinity to itself is 1
        for weight, here, there in pairs:
            total[here] += weight * maps[there]
            total[there] += weight * maps[here]
        return total

    sums = spread(np.ones((1, h, w)))
    maps = np.asarray(x, np.float64) * (1.0 - np.asarray(edge, np.float64))
    for _ in range(2**exp_times):
        maps = spread(maps) / sums
    return maps


def chebyshev_coefficients(exp_times: int, tolerance: float) -> Float:
    """c with t^n ≈ Σ c_k T_k(t) on [-1, 1], n = 2^exp_times, cut where the rest sums to at most `tolerance`.

    The exact coefficients are c_k = 2^(1-n)·binom(n, (n-k)/2) for n - k even (half of it for k = 0) and 0 otherwise;
    they are positive and sum to 1. What is kept is scaled to sum to 1, so that t = 1, the walk's fixed point, stays
    exact: a constant map stays constant and mass is conserved at any tolerance.
    """
    n = 2**exp_times
    first = n % 2
    weights = [0.5 if first == 0 else 1.0]
    k = first
    while k < n and weights[-1] > 1e-18 * weights[0]:
        weights.append(weights[-1] * (n - k) / (n + k + 2) * (2.0 if k == 0 else 1.0))
        k += 2
    values = np.array(weights) / sum(weights)
    rest = np.cumsum(values[::-1])[::-1]  # rest[i]: the sum from i on
    kept = max(int(np.count_nonzero(rest > tolerance)), 1)
    result = np.zeros(first + 2 * (kept - 1) + 1)
    result[first::2] = values[:kept] / values[:kept].sum()
    return result
