"""Walk to pseudo-mask: the recorded mask, thresholds, weak and absent classes, up-sampling, sweep."""

from pathlib import Path

import numpy as np
import pytest

from amn_fast.ops.mask import make_mask, mask_from_scores, mask_scores, sweep_scores, upsample
from case_table import each

GOLDEN = Path(__file__).parents[1] / "golden" / "amn"


def recorded():
    golden = np.load(GOLDEN / "make_mask.npz")
    keys = np.concatenate([[0], golden["valid"] + 1])
    return golden["strided"][1:], golden["edge"], keys, tuple(golden["size"]), golden["final_mask"]


@each({"walk": [{}, {"method": "steps"}, {"backend": "reference"}]})
def test_recorded_mask(walk):
    activation, edge, keys, size, expected = recorded()
    mask = make_mask(activation, edge, keys, size, threshold=0.25, power=1.3, **walk)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)


def test_scores_reach_one_and_stay_in_range():
    activation, edge, _, size, _ = recorded()
    scores = mask_scores(activation, edge, size)
    assert scores.shape == (2, *size)
    assert scores.dtype == np.float32
    assert scores.min() >= 0
    assert scores.max() == 1


def test_activations_of_nothing_are_background():
    _, edge, _, size, _ = recorded()
    nothing = np.zeros((2, *edge.shape[1:]), np.float32)
    for per_class in (False, True):
        assert (make_mask(nothing, edge, [0, 4, 15], size, per_class=per_class) == 0).all()


def test_no_class_is_background():
    _, edge, _, size, _ = recorded()
    mask = make_mask(np.zeros((0, *edge.shape[1:]), np.float32), edge, [0], size)
    assert mask.shape == size
    assert (mask == 0).all()


def test_a_weak_class_beside_a_strong_one():
    activation = np.zeros((2, 8, 16), np.float32)
    activation[0, :, :8] = 1.0
    activation[1, :, 8:] = 0.1
    edge = np.zeros((8, 16), np.float32)
    edge[:, 7:9] = 1
    published = make_mask(activation, edge, [0, 3, 9], (32, 64))
    assert set(np.unique(published)) == {0, 3}
    kept = make_mask(activation, edge, [0, 3, 9], (32, 64), per_class=True)
    assert set(np.unique(kept)) == {0, 3, 9}


def test_background_wins_a_tie_and_the_first_class_among_classes():
    scores = np.array([[[0.25, 0.26, 0.5, 0.1]], [[0.25, 0.1, 0.5, 0.9]]], np.float32)
    np.testing.assert_array_equal(mask_from_scores(scores, [0, 7, 80], 0.25), [[0, 7, 7, 80]])


@each({"size": [(1, 1), (3, 4), (33, 43), (36, 44), (30, 41)]})
def test_upsampling_is_that_of_pytorch(size):
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(0).random((3, 9, 11), np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[None], scale_factor=4, mode="bilinear", align_corners=False
    )[0, :, : size[0], : size[1]]
    np.testing.assert_allclose(upsample(maps, size), expected.numpy(), atol=2e-7)


def test_one_pixel():
    mask = make_mask(np.ones((1, 1, 1), np.float32), np.zeros((1, 1)), [0, 5], (1, 3))
    np.testing.assert_array_equal(mask, [[5, 5, 5]])


def test_a_sweep_gives_the_single_answers():
    activation, edge, _, size, _ = recorded()
    points = list(sweep_scores(activation, edge, size, betas=(5, 10), exp_times=(8, 4), powers=(1, 1.3)))
    assert len(points) == 8
    for beta, exp_times, power, scores in points:
        alone = mask_scores(activation, edge, size, beta=beta, exp_times=exp_times, power=power)
        np.testing.assert_array_equal(scores, alone)
