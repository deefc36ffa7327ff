"""The affinity random walk: recorded answers, invariants, odd sizes and values, errors, interruption."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from amn_fast import _native
from amn_fast.errors import BackendError, InputError
from amn_fast.kernels.random_walk import reference
from amn_fast.ops.random_walk import Affinities, random_walk
from case_table import each

GOLDEN = Path(__file__).parents[1] / "golden" / "amn"
CASES = sorted(path.stem for path in GOLDEN.glob("walk_*.npz"))
METHODS = ["chebyshev", "steps"]
needs_native = pytest.mark.skipif(_native.native is None, reason=_native.missing or "-")
WALKS = [{"backend": "reference", "method": "steps"}]
if _native.native is not None:
    WALKS += [{"backend": "cpu", "method": method} for method in METHODS]


def recorded(case):
    golden = np.load(GOLDEN / f"{case}.npz")
    settings = {name: int(golden[name]) for name in ("radius", "beta", "exp_times")}
    return golden["x"], golden["edge"], settings, golden["rw_exact"]


def problem(k=2, h=13, w=17, seed=0):
    generator = np.random.default_rng(seed)
    return generator.random((k, h, w), np.float32), generator.random((h, w), np.float32) ** 2


def relative_error(found, exact):
    return np.abs(found - exact).max() / np.abs(exact).max()


def test_all_recorded_cases_are_here():
    assert len(CASES) == 8


@each({"how": WALKS, "case": CASES})
def test_recorded_answers(case, how):
    x, edge, settings, exact = recorded(case)
    found = random_walk(x, edge, **how, **settings)
    assert found.dtype == np.float32
    assert relative_error(found, exact) < 5e-6  # the published float32 walk: 5e-5 on the small case


@needs_native
@each({"case": ["walk_small", "walk_odd", "walk_voc", "walk_coco"]})
def test_the_mask_is_that_of_double_precision(case):
    x, edge, settings, exact = recorded(case)
    found = random_walk(x, edge, **settings)
    with_background = [
        np.concatenate([np.full((1, *e.shape[1:]), 0.25 * e.max()), e]).argmax(0) for e in (found, exact)
    ]
    assert np.mean(with_background[0] == with_background[1]) >= 0.9999


@each(
    {
        "size": [(1, 1), (1, 20), (20, 1), (2, 3), (6, 7), (19, 23)],
        "settings": [(1, 10, 8), (2, 1, 3), (5, 10, 0), (5, 10, 1), (5, 2.5, 9), (12, 4, 5)],
    }
)
def test_the_dense_definition(size, settings):
    radius, beta, exp_times = settings
    x, edge = problem(3, *size)
    exact = reference.walk_dense(x, edge, radius=radius, beta=beta, exp_times=exp_times)
    for how in WALKS:
        found = random_walk(x, edge, radius=radius, beta=beta, exp_times=exp_times, **how)
        assert relative_error(found, exact) < 1e-5, how


@needs_native
def test_error_follows_the_tolerance():
    x, edge, settings, exact = recorded("walk_small")
    errors = [relative_error(random_walk(x, edge, tolerance=t, **settings), exact) for t in (1e-1, 1e-2, 1e-4, 1e-6)]
    assert errors == sorted(errors, reverse=True)
    assert all(error <= t * 10 for error, t in zip(errors, (1e-1, 1e-2, 1e-4, 1e-6), strict=True))


class TestInvariants:
    @each({"how": WALKS})
    def test_a_constant_map_stays_constant(self, how):
        _, edge = problem(h=40, w=33)
        x = (0.7 / (1 - edge.astype(np.float64)))[None]  # the walk starts at x (1 - edge)
        found = random_walk(x, edge, **how)
        np.testing.assert_allclose(found, 0.7, rtol=1e-6)

    @each({"how": WALKS})
    def test_mass_weighted_by_the_column_sums_is_conserved(self, how):
        x, edge = problem(h=40, w=33)
        strength = reference.affinities(edge) ** 10
        index = np.arange(edge.size).reshape(edge.shape)
        sums = np.ones(edge.size)
        for plane, (dy, dx) in zip(strength, reference.half_plane(5), strict=True):
            y, c = np.nonzero(plane)
            np.add.at(sums, index[y, c], plane[y, c])
            np.add.at(sums, index[y + dy, c + dx], plane[y, c])
        before = ((x * (1 - edge)).reshape(2, -1).astype(np.float64) * sums).sum(1)
        after = (random_walk(x, edge, **how).reshape(2, -1) * sums).sum(1)
        np.testing.assert_allclose(after, before, rtol=1e-6)

    @each({"how": WALKS})
    def test_no_value_leaves_the_range(self, how):
        x, edge = problem(h=40, w=33)
        start = x * (1 - edge)
        found = random_walk(x, edge, **how, tolerance=1e-3)
        assert found.min() >= start.min()
        assert found.max() <= start.max()

    @each({"how": WALKS})
    def test_a_wall_is_never_crossed(self, how):
        edge = np.zeros((20, 30), np.float32)
        edge[:, 14] = 1
        x = np.zeros((1, 20, 30), np.float32)
        x[:, :, :14] = 1
        found = random_walk(x, edge, **how)
        assert (found[:, :, 14:] == 0).all()
        np.testing.assert_allclose(found[:, :, :14], 1, rtol=1e-6)

    @each({"how": WALKS})
    def test_edges_everywhere_leave_nothing(self, how):
        x, edge = problem()
        assert (random_walk(x, np.ones_like(edge), **how) == 0).all()

    @each({"how": WALKS})
    def test_no_edges_spread_evenly(self, how):
        x = np.zeros((1, 9, 9), np.float32)
        x[0, 4, 4] = 1
        found = random_walk(x, np.zeros((9, 9)), exp_times=10, **how)
        assert found.min() > 0
        assert found.max() < 1.05 * found.min()

    @each({"how": WALKS})
    def test_the_walk_is_linear(self, how):
        x, edge = problem(2)
        both = np.concatenate([x, x[:1] - 3 * x[1:]]).astype(np.float64)
        a, b, sum_ = random_walk(both, edge, **how)
        np.testing.assert_allclose(sum_, a - 3 * b, atol=5e-5)


def test_columns_of_the_transition_sum_to_one():
    _, edge = problem()
    np.testing.assert_allclose(reference.transition(edge).sum(0), 1, rtol=1e-12)


@needs_native
class TestSameBits:
    @each({"method": METHODS, "maps": [1, 2, 3, 4, 7, 9]})
    def test_for_any_number_of_threads(self, method, maps):
        x, edge = problem(maps, 50, 61)
        alone = random_walk(x, edge, method=method, threads=1)
        for threads in (2, 3, 16):
            np.testing.assert_array_equal(random_walk(x, edge, method=method, threads=threads), alone)

    def test_for_one_map_and_many(self):
        x, edge = problem(9, 31, 40)
        together = random_walk(x, edge)
        for map_, expected in zip(x, together, strict=True):
            np.testing.assert_array_equal(random_walk(map_[None], edge)[0], expected)

    @each({"threads": [1, 2, 7]})
    def test_alone_and_in_a_list(self, threads):
        problems = [problem(k, h, w, seed=k) for k, h, w in ((1, 1, 1), (2, 1, 20), (5, 40, 30), (3, 17, 64))]
        xs, edges = (list(part) for part in zip(*problems, strict=True))
        together = random_walk(xs, edges, threads=threads)
        for (x, edge), found in zip(problems, together, strict=True):
            np.testing.assert_array_equal(found, random_walk(x, edge, threads=1))

    def test_for_several_numbers_of_steps_at_once(self):
        x, edge = problem(3, 30, 30)
        affinities = Affinities(edge)
        for times, found in zip((8, 0, 5), affinities.walk(x, [8, 0, 5]), strict=True):
            np.testing.assert_array_equal(found, affinities.walk(x, times))

    @each({"instructions": ["baseline", "avx2", "avx512"]})
    def test_for_instruction_sets_with_one_rounding(self, instructions):
        x, edge = problem(3, 45, 77)
        affinities = _native.native.WalkAffinities(edge, 5, 10.0)
        coefficients = reference.chebyshev_coefficients(8, 1e-6)[None]
        best = affinities.walk(x, coefficients, True, 1)
        try:
            found = affinities.walk(x, coefficients, True, 1, instructions)
        except ValueError as error:
            pytest.skip(str(error))
        if {instructions, _native.native.walk_instructions()} <= {"avx2", "avx512"}:
            np.testing.assert_array_equal(found, best)
        else:
            assert relative_error(found, best) < 2e-6


class TestInputs:
    def test_layouts_and_dtypes(self):
        x, edge = problem(2, 20, 24)
        x, edge = x.astype(np.float16), edge.astype(np.float16)
        expected = random_walk(x.astype(np.float32), edge.astype(np.float32))
        wide = np.zeros((2, 40, 48), np.float16)
        wide[:, ::2, ::2] = x
        for same in (x, wide[:, ::2, ::2], np.asfortranarray(x), x.astype(np.float64)):
            found = random_walk(same, np.asfortranarray(edge))
            assert found.dtype == same.dtype
            np.testing.assert_array_equal(found, expected.astype(same.dtype))
        frozen = x.copy()
        frozen.flags.writeable = False
        np.testing.assert_array_equal(random_walk(frozen, edge[None]), expected.astype(np.float16))

    def test_the_input_is_left_alone(self):
        x, edge = problem()
        kept = x.copy(), edge.copy()
        random_walk(x, edge)
        np.testing.assert_array_equal(x, kept[0])
        np.testing.assert_array_equal(edge, kept[1])

    @needs_native
    @each({"scale": [1e-37, 1e-20, 1e30, -3.0]})
    def test_scale_does_not_matter(self, scale):
        x, edge = problem()
        found = random_walk(x * np.float32(scale), edge)
        np.testing.assert_allclose(found, random_walk(x, edge) * np.float32(scale), rtol=1e-5)

    @needs_native
    def test_nearly_closed_edges(self):
        x, edge = problem(1, 30, 30)
        edge[:, 10:] = 1 - 1e-5  # affinities of 1e-50: no float holds them
        edge[:, 20:] = 1 - 1e-3
        exact = reference.walk(x, edge)
        np.testing.assert_allclose(random_walk(x, edge), exact, atol=1e-6)

    def test_more_steps_than_can_be_taken_one_by_one(self):
        with pytest.raises(InputError, match="exp_times is 21"):
            random_walk(*problem(), exp_times=21, method="steps")

    def test_lists_of_different_lengths(self):
        x, edge = problem()
        with pytest.raises(InputError, match="edge is a list of 1, expected a list of 2"):
            random_walk([x, x], [edge])

    def test_a_backend_asked_for_never_falls_back(self, monkeypatch):
        monkeypatch.setattr(_native, "native", None)
        monkeypatch.setattr(_native, "missing", "not built")
        with pytest.raises(BackendError, match="not built"):
            random_walk(*problem(), backend="cpu")
        assert random_walk(*problem()).shape == (2, 13, 17)


class TestTensors:
    def test_the_answer_of_arrays(self):
        torch = pytest.importorskip("torch")
        x, edge = problem()
        found = random_walk(torch.from_numpy(x), torch.from_numpy(edge))
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), random_walk(x, edge))

    def test_the_registered_operation(self):
        torch = pytest.importorskip("torch")
        x, edge = (torch.from_numpy(part) for part in problem())
        random_walk(x, edge)  # registers it
        arguments = ([x, x.half()[:, ::2]], [edge, edge[::2]], 5, 10.0, 3, "chebyshev", 1e-6, "cpu", 1)
        if _native.native is None:
            arguments = (*arguments[:7], "reference", 1)
        torch.library.opcheck(torch.ops.amn_fast.random_walk.default, arguments)

    def test_devices_and_kinds_do_not_mix(self):
        torch = pytest.importorskip("torch")
        x, edge = (torch.from_numpy(part) for part in problem())
        with pytest.raises(InputError, match=r"^x\[1\] is ndarray .*, expected a PyTorch tensor"):
            random_walk([x, x.numpy()], [edge, edge])
        with pytest.raises(BackendError, match="not on a GPU"):
            random_walk(x, edge, backend="triton")
        with pytest.raises(BackendError, match="takes CUDA tensors"):
            random_walk(x.numpy(), edge.numpy(), backend="triton")


def test_large_maps_stay_linear_in_memory():
    x, edge = problem(1, 300, 260)
    affinities = Affinities(edge)
    if affinities.backend == "cpu":
        assert affinities._native.nbytes < 300 * 260 * 4 * 34 * 1.3
    assert np.isfinite(affinities.walk(x, 3)).all()


@needs_native
def test_an_interrupt_ends_the_walk_at_once():
    """In a process of its own; a walk of a million steps takes many minutes."""
    code = """
import os, signal, threading
import numpy as np
from amn_fast import random_walk
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores Ctrl-C
rng = np.random.default_rng(0)
x, edge = rng.random((4, 200, 200), np.float32), rng.random((200, 200), np.float32) ** 2
for xs, edges, threads in ((x, edge, 1), (x, edge, 3), ([x] * 5, [edge] * 5, 2)):
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        random_walk(xs, edges, threads=threads, method="steps", exp_times=20)
        print("not interrupted")
    except KeyboardInterrupt:
        print("interrupted")
    timer.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["interrupted"] * 3), done.stderr


@needs_native
def test_a_daemon_thread_inside_the_walk_does_not_disturb_the_exit():
    code = """
import threading, time
import numpy as np
from amn_fast import random_walk
x, edge = np.ones((4, 100, 100), np.float32), np.zeros((100, 100), np.float32)
def forever():
    while True: random_walk(x, edge, exp_times=4)
for _ in range(2): threading.Thread(target=forever, daemon=True).start()
time.sleep(0.5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
