"""Steps of IRN's and AMN's inference as their code arranges them: resized maps in eager PyTorch, a sparse walk."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amn_fast.kernels.merge.reference import strided_size
from amn_fast.kernels.random_walk import reference

TINY = 1e-5


def resized(maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    return torch.stack([F.interpolate(m[None], size, mode="bilinear", align_corners=False)[0] for m in maps])


def published_cam(maps: list[Tensor], size: tuple[int, int], valid: list[int]) -> tuple[Tensor, Tensor]:
    padded = ((size[0] - 1) // 16 + 1) * 16, ((size[1] - 1) // 16 + 1) * 16
    strided = resized(maps, strided_size(*size)).sum(0)[valid]
    full = resized(maps, padded).sum(0)[valid, : size[0], : size[1]]
    return strided / (strided.amax((1, 2), True) + TINY), full / (full.amax((1, 2), True) + TINY)


def published_amn(
    maps: list[Tensor], size: tuple[int, int], valid: list[int], small: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor]:
    answers = []
    for grid, labels in ((strided_size(*size), small), (size, seed)):
        p = resized(maps, grid).mean(0).softmax(0)[[0] + [k + 1 for k in valid]]
        low, high = p.amin((1, 2), True), p.amax((1, 2), True)
        answers.append(torch.where(labels != 0, (p - low) / (high - low + TINY), p))
    return answers[0], answers[1]


def sparse_steps(x: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """256 products with the sparse transition matrix, which is built anew as in every other method."""
    from scipy import sparse

    height, width = edge.shape
    index = np.arange(height * width).reshape(height, width)
    rows, columns, values = [index.ravel()], [index.ravel()], [np.ones(height * width)]
    for plane, (dy, dx) in zip(reference.affinities(edge), reference.half_plane(5), strict=True):
        y, x_of = np.nonzero(plane)
        one, other, weight = index[y, x_of], index[y + dy, x_of + dx], plane[y, x_of] ** 10
        rows, columns, values = [*rows, one, other], [*columns, other, one], [*values, weight, weight]
    matrix = sparse.csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))))
    transposed = (matrix / matrix.sum(0)).T.tocsr().astype(np.float32)
    flat = np.ascontiguousarray((x * (1 - edge)).reshape(len(x), -1).T)
    for _ in range(256):
        flat = transposed @ flat
    return flat.T.reshape(x.shape)
