"""The random walk against a sparse matrix of SciPy and IRN's dense matrix power."""

import os

import numpy as np
import pytest
from problems import name_of, smooth_maps
from published_steps import sparse_steps
from racing import Method

from amn_fast.kernels.random_walk import reference
from amn_fast.ops.random_walk import random_walk

CPUS = os.cpu_count() or 1  # NumPy's matrix product takes all
SMALL, VOC = (16, 20), (94, 125)
CASES = [(VOC, 1), (VOC, 2)] + [
    pytest.param(size, maps, marks=pytest.mark.full)
    for size, maps in [((24, 31), 1), ((47, 63), 1), (VOC, 4), ((188, 250), 1)]
]


def problem(size: tuple[int, int], maps: int) -> tuple[np.ndarray, np.ndarray]:
    edge = smooth_maps(1, *size, seed=1)[0] ** 4
    return smooth_maps(maps, *size), edge


@pytest.mark.parametrize(("size", "maps"), CASES)
def test_against_the_reference(race, profile, size, maps):
    size = SMALL if profile == "quick" else size
    x, edge = problem(size, maps)
    race.parity(random_walk(x, edge, backend="reference"), random_walk(x, edge, threads=1), 1e-5)
    race.same_task(random_walk(x, edge, backend="reference"), sparse_steps(x, edge), 1e-3)
    ours = Method("ours", lambda: random_walk(x, edge, threads=1))
    others = [
        Method("reference", lambda: random_walk(x, edge, backend="reference")),
        Method("SciPy sparse", lambda: sparse_steps(x, edge)),
    ]
    race.run("random_walk", f"{name_of(size)}, K = {maps}", ours, *others, rounds=2)


def test_against_the_dense_matrix(race, profile):
    size = SMALL if profile == "quick" else (32, 40)  # the dense matrix of 94x125 has 138 million entries
    x, edge = problem(size, 1)
    dense = reference.walk_dense(x, edge)
    race.parity(dense, random_walk(x, edge, threads=1), 1e-5)
    ours = Method("ours", lambda: random_walk(x, edge, threads=1))
    other = Method("dense matrix power", lambda: reference.walk_dense(x, edge), CPUS)
    race.run("random_walk", f"{name_of(size)}, K = 1", ours, other, rounds=3)
