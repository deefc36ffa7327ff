"""Each health check speaks up on a bad run and is silent on a good one."""

import math
import re

import numpy as np
import pytest

from amn_fast.steps import doubt, health

NAMES = ("cat", "dog", "cow")
RNG = np.random.default_rng(0)


def labels_of(n=60, classes=3):
    return RNG.random((n, classes)) < 0.4


def features_of(labels, noise=1.0):
    return labels @ RNG.normal(size=(labels.shape[1], 20)) + noise * RNG.normal(size=(len(labels), 20))


def separate(labels, features):
    return health.separation(health.crossed_scores(features, labels), labels, NAMES[: labels.shape[1]])


TRUE = labels_of()
SAME = np.stack([TRUE[:, 0], TRUE[:, 0]], 1)


GOOD = [
    health.classifier([0.7, 0.3, 0.1], 0.69, 1, 0.02, 0.2, 90),
    health.activations(np.array([1, 0, 0]), np.array([30, 30, 30]), NAMES),
    health.seeds("seeds", "cam_seed", [2, 0], 50, (0.6, 0.2)),
    health.missing_classes([1, 2, 0], [30, 30, 4], NAMES),
    health.missing_classes([2, 9, 1], [5, 30, 5], NAMES),  # two of five may be chance, as below
    health.seeds("seeds", "cam_seed", [2, 2], 5, (0.6, 0.2)),
    health.flooding(np.full(5, 0.3), np.array([0.9, 0.9, 0.3, 0.3, 0.3]), 8),
    health.flooding(np.full(20, 0.3), np.full(20, 0.35), 8),
    health.flooding(np.full(20, 0.85), np.full(20, 0.9), 8),  # large objects, not the walk
    health.flooding(np.full(20, 0.4), np.full(20, 0.5), 8),
    health.foreground(0.3, 50),
    health.below_cam(0.7, 0.6),
    health.below_heads(0.87, 0.91),
]

BAD = {
    "guessing": (
        health.classifier([0.7, 0.693], 0.69, 1, 0.02, 0.2, 90),
        True,
        r"is 0\.693, that of guessing is 0\.690",
    ),
    "diverged": (health.classifier([5.0, math.nan, 9.0], 0.69, 27, 2, 20, 90), True, r"train_cam\.lr=0\.025, .*=0\.25"),
    "restarted": (health.classifier([0.3, 0.1], 0.69, 3, 0.06, 0.6, 90), False, r"set train_cam\.lr=0\.02, .*=0\.2$"),
    "one label": (health.classifier([0.0], 0.0, 1, 0.02, 0.2, 90), True, "all images have the same label"),
    "one flat": (
        health.activations(np.array([30, 0, 0]), np.full(3, 30), NAMES),
        False,
        "30 of 90 .* most of cat, and",
    ),
    "flat": (health.activations(np.array([30, 20, 0]), np.full(3, 30), NAMES), True, "most of cat, dog, and"),
    "no object": (health.seeds("seeds", "cam_seed", [49, 0], 50, (0.6, 0.2)), True, r"lower cam_seed\.fg, now 0\.6"),
    "no background": (
        health.seeds("seeds", "amn_seed", [0, 20], 50, (0.6, 0.2)),
        False,
        r"raise amn_seed\.bg, now 0\.2",
    ),
    "lost class": (health.missing_classes([1, 20, 4], [30, 30, 4], NAMES), False, r"dog \(20 of 30\); lower"),
    "lost classes": (
        health.missing_classes([25, 20, 0], [30, 30, 4], NAMES),
        True,
        r"cat \(25 of 30\), dog \(20 of 30\)",
    ),
    "flood": (
        health.flooding(np.full(20, 0.3), np.full(20, 0.95), 8),
        True,
        r"20 of 20 images; lower mask\.exp_times, now 8",
    ),
    "spread": (
        health.flooding(np.full(50, 0.43), np.array([0.95] * 12 + [0.52] * 38), 8),
        False,
        r"from 43% to 62%; set mask\.background=auto, or lower mask\.exp_times, now 8",
    ),
    "empty": (health.foreground(0.001, 50), True, r"99\.9% of their pixels are background; lower mask\.background"),
    "full": (health.foreground(0.99, 50), True, "are foreground; raise"),
    "worse than CAM": (health.below_cam(0.47, 0.628), True, r"0\.470, is below the CAM's, 0\.628"),
    "worse than heads": (health.below_heads(0.6, 0.75), False, "linear heads on the same seeds, 0.750; train"),
}


def test_good_runs_are_not_called_out():
    assert not any(GOOD)


@pytest.mark.parametrize("name", BAD)
def test_bad_runs_are_called_out(name):
    found, serious, text = BAD[name]
    assert found.serious == serious
    assert re.search(text, found.text), found.text


def test_labels_that_fit_their_images_are_not_called_out():
    assert separate(TRUE, features_of(TRUE)) == []


def test_shuffled_labels_are_called_out():
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(TRUE))
        (found,) = separate(TRUE[order], features_of(TRUE))
        assert found.serious, seed
        assert "check that each label belongs to its image" in found.text


def test_classes_that_look_alike_are_named():
    one = RNG.random(80) < 0.5
    pair = np.stack([one & (RNG.random(80) < 0.5), one & (RNG.random(80) < 0.5), RNG.random(80) < 0.5], 1)
    looks = np.stack([one, one, pair[:, 2]], 1)
    assert any("images of cat and dog look alike" in found.text for found in separate(pair, features_of(looks, 0.3)))
    (found,) = separate(SAME, features_of(SAME))
    assert found.serious
    assert "cat and dog are labelled in the same images" in found.text


def test_doubt_orders_masks_by_what_is_wrong_with_them():
    """Square objects: the mask of the first is the object, the next are cut ever shorter by a wavering threshold."""
    keys, found = np.array([2], np.uint8), []
    for loss in (0, 4, 8, 12):
        scores = np.zeros((1, 40, 40), np.float32)
        scores[0, 10:30, 10:30] = 0.9
        scores[0, 10:30, 30 - loss : 30] = 0.3
        mask = np.where(scores[0] > 0.35, 2, 0).astype(np.uint8)
        found.append(doubt.signs(scores, scores, keys, mask, 0.35))
    assert doubt.doubts(found).argsort().tolist() == [0, 1, 2, 3]
    assert found[0] == pytest.approx((1.0, 1.0, 0.975, 0.975))


def test_expected_iou_never_rises_with_doubt():
    where = np.sort(RNG.random(50))
    iou = np.clip(0.9 - 0.5 * where + 0.1 * RNG.normal(size=50), 0, 1)
    fitted = doubt.fit_iou(where, iou)
    assert (np.diff(fitted) <= 0).all()
    assert fitted.mean() == pytest.approx(iou.mean())
    assert doubt.rank_correlation(where, iou) < -0.5
