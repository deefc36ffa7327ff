"""The Triton kernels, run by Triton's interpreter on the CPU.

`test_interpreter.py` runs this file in a process where TRITON_INTERPRET was set before Triton was imported. The
interpreter is slow: the small recorded cases walk all the way, in one batch; the large ones a few steps.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from amn_fast.errors import InputError
from amn_fast.kernels.random_walk import reference
from amn_fast.kernels.random_walk import triton as kernels
from amn_fast.ops.random_walk import random_walk
from case_table import each

assert os.environ.get("TRITON_INTERPRET") == "1"

GOLDEN = Path(__file__).parents[2] / "golden" / "amn"


def recorded(case):
    golden = np.load(GOLDEN / f"{case}.npz")
    return torch.from_numpy(golden["x"]), torch.from_numpy(golden["edge"][0]), golden


def relative_error(found, exact):
    return np.abs(np.asarray(found) - exact).max() / np.abs(exact).max()


def test_recorded_answers_in_one_batch():
    cases = [recorded(f"walk_{name}") for name in ("small", "odd")]
    coefficients = reference.chebyshev_coefficients(8, 1e-6)
    xs, edges = [x for x, _, _ in cases], [edge for _, edge, _ in cases]
    found = kernels.random_walk(xs, edges, 5, 10.0, coefficients, True, whole=True, numbers=8192)
    for (_, _, golden), propagated in zip(cases, found, strict=True):
        assert relative_error(propagated, golden["rw_exact"]) < 5e-6


@each({"case": ["walk_radius3", "walk_radius10"]})
def test_recorded_answers_launch_by_launch(case):
    x, edge, golden = recorded(case)
    coefficients = reference.chebyshev_coefficients(int(golden["exp_times"]), 1e-6)
    (found,) = kernels.random_walk(
        [x], [edge], int(golden["radius"]), float(golden["beta"]), coefficients, True, whole=False, numbers=2048
    )
    assert relative_error(found, golden["rw_exact"]) < 5e-6


@each({"case, whole": [("walk_voc", True), ("walk_coco", False)]})
def test_a_few_steps_of_the_large_cases(case, whole):
    x, edge, _ = recorded(case)
    coefficients = reference.chebyshev_coefficients(2, 1e-6)
    (found,) = kernels.random_walk([x], [edge], 5, 10.0, coefficients, True, whole=whole, numbers=16384)
    assert relative_error(found, reference.walk(x, edge.numpy(), exp_times=2)) < 5e-6


@each({"whole": [False, True]})
def test_plain_steps(whole):
    x, edge, golden = recorded("walk_radius3")
    coefficients = np.eye(1, 17, 16)[0]
    (found,) = kernels.random_walk([x], [edge], 3, 8.0, coefficients, False, whole=whole)
    assert relative_error(found, golden["rw_exact"]) < 5e-6


def test_same_bits_alone_in_a_batch_and_either_way():
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, 1, 1), (3, 1, 20), (6, 20, 1), (2, 9, 14)]
    xs = [torch.rand(size, generator=generator) for size in sizes]
    edges = [torch.rand(size[1:], generator=generator) for size in sizes]
    coefficients = reference.chebyshev_coefficients(2, 1e-6)
    together = kernels.random_walk(xs, edges, 5, 10.0, coefficients, True, whole=True, numbers=256)
    for x, edge, expected in zip(xs, edges, together, strict=True):
        assert relative_error(expected, reference.walk(x, edge.numpy(), exp_times=2)) < 5e-6
        for whole, numbers in ((False, 128), (True, 1024)):
            (alone,) = kernels.random_walk([x], [edge], 5, 10.0, coefficients, True, whole=whole, numbers=numbers)
            torch.testing.assert_close(alone, expected, rtol=0, atol=0)


@each({"dtype": [torch.float16, torch.bfloat16, torch.float64]})
def test_the_operation_takes_views_of_any_dtype(dtype):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, 9, 7, generator=generator).to(dtype).transpose(1, 2)[::2]
    edge = torch.rand(1, 9, 7, generator=generator).to(dtype).transpose(1, 2)
    found = random_walk(x, edge, exp_times=2, backend="triton")
    assert found.dtype == dtype
    expected = random_walk(x.double(), edge.double(), exp_times=2, backend="reference")
    torch.testing.assert_close(found.double(), expected, rtol=2 * torch.finfo(dtype).eps + 5e-6, atol=1e-6)


@each({"place": ["x", "edge"]})
def test_values_that_are_not_numbers(place):
    parts = {"x": torch.rand(2, 6, 5), "edge": torch.rand(6, 5)}
    parts[place][..., 2, 3] = torch.nan
    with pytest.raises(InputError, match=rf"^{place}\[1\] has "):
        random_walk([torch.rand(1, 3, 3), parts["x"]], [torch.rand(3, 3), parts["edge"]], backend="triton")


def test_no_maps():
    assert random_walk(torch.zeros(0, 4, 5), torch.zeros(4, 5), backend="triton").shape == (0, 4, 5)


def test_values_stay_in_range_and_walls_hold():
    edge = torch.zeros(12, 16)
    edge[:, 8] = 1
    x = torch.zeros(1, 12, 16)
    x[:, :, :8] = 1
    found = random_walk(x, edge, exp_times=4, tolerance=1e-2, backend="triton")
    assert (found[:, :, 8:] == 0).all()
    assert (found[:, :, :8] == 1).all()  # a constant map stays constant bit by bit
