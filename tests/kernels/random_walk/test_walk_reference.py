"""The definition: recorded paths and affinities, its two forms against each other, the Chebyshev coefficients."""

import json
from math import comb
from pathlib import Path

import numpy as np
import pytest

from amn_fast.kernels.random_walk import reference
from case_table import each

GOLDEN = Path(__file__).parents[2] / "golden" / "amn"


@each({"radius": [5, 10]})
def test_recorded_offsets_and_paths(radius):
    recorded = json.loads((GOLDEN / f"paths_radius{radius}.json").read_text())
    expected = {tuple(o): {tuple(p) for p in path} for o, path in zip(*recorded.values(), strict=True)}
    assert {offset: set(reference.path(offset)) for offset in reference.half_plane(radius)} == expected


def test_recorded_affinities():
    golden = np.load(GOLDEN / "affinity.npz")
    edge = golden["edge"][0]
    w = edge.shape[1]
    found = dict(zip(reference.half_plane(5), reference.affinities(edge), strict=True))
    order = json.loads((GOLDEN / "paths_radius5.json").read_text())["search_dst"]
    for offset, recorded, dst in zip(order, golden["affinity"], golden["dst"], strict=True):
        src = golden["src"]
        np.testing.assert_array_equal(dst - src, offset[0] * w + offset[1])
        np.testing.assert_allclose(found[tuple(offset)].reshape(-1)[src], recorded, atol=1e-7)


@each({"size": [(1, 1), (1, 9), (9, 1), (8, 11)]})
def test_steps_equal_the_dense_form(size):
    generator = np.random.default_rng(0)
    x, edge = generator.random((2, *size)), generator.random(size) ** 2
    for radius, beta, exp_times in ((1, 10, 3), (3, 2, 0), (5, 10, 8)):
        settings = {"radius": radius, "beta": beta, "exp_times": exp_times}
        np.testing.assert_allclose(
            reference.walk(x, edge, **settings), reference.walk_dense(x, edge, **settings), rtol=1e-9
        )


@each({"exp_times": [0, 1, 3, 6, 9]})
def test_all_coefficients_give_the_power(exp_times):
    n = 2**exp_times
    found = reference.chebyshev_coefficients(exp_times, 1e-17)
    t = np.linspace(-1, 1, 101)
    np.testing.assert_allclose(np.polynomial.chebyshev.chebval(t, found), t**n, atol=1e-14)
    for k in range(2 - n % 2, len(found), 2):
        assert found[k] == pytest.approx(comb(n, (n - k) // 2) / 2 ** (n - 1), rel=1e-12)


@each({"tolerance": [1e-2, 1e-4, 1e-6], "exp_times": [4, 8, 12]})
def test_the_cut_bounds_the_error_and_keeps_one(exp_times, tolerance):
    found = reference.chebyshev_coefficients(exp_times, tolerance)
    t = np.linspace(-1, 1, 2001)
    error = np.abs(np.polynomial.chebyshev.chebval(t, found) - t ** (2**exp_times))
    assert error.max() <= 2 * tolerance
    assert np.polynomial.chebyshev.chebval(1.0, found) == pytest.approx(1, abs=1e-13)


def test_the_usual_walk_takes_79_terms():
    assert len(reference.chebyshev_coefficients(8, 1e-6)) == 79
