"""Metrics against their definitions, written out pixel by pixel."""

import json
import math

import numpy as np
import pytest

from amn_fast.errors import InputError
from amn_fast.metrics import ActivationHistogram, Confusion, ThresholdCurve


def random_masks(seed: int, n_classes: int = 4, size: tuple[int, int] = (13, 17)) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a ground truth that agree in part, both with some 255."""
    rng = np.random.default_rng(seed)
    ground_truth = rng.integers(0, n_classes + 1, size).astype(np.uint8)
    prediction = np.where(rng.random(size) < 0.6, ground_truth, rng.integers(0, n_classes + 1, size)).astype(np.uint8)
    ground_truth[rng.random(size) < 0.1] = 255
    prediction[rng.random(size) < 0.2] = 255
    return prediction, ground_truth


def random_activations(
    seed: int, n_classes: int = 4, n_keys: int = 2, size: tuple[int, int] = (13, 17), dtype=np.float32
):
    """Activations, keys and ground truth; many activations lie exactly on a threshold, some tie."""
    rng = np.random.default_rng(seed)
    keys = 1 + rng.permutation(n_classes)[:n_keys]
    activations = rng.random((n_keys, *size))
    on_grid = rng.random(activations.shape) < 0.5
    activations[on_grid] = np.rint(activations[on_grid] * 100) / 100
    ground_truth = rng.choice([0, 0, *keys, 1 + rng.integers(n_classes), 255], size).astype(np.uint8)
    return activations.astype(dtype), keys, ground_truth


def argmax_with_background(activations: np.ndarray, keys: np.ndarray, threshold: float) -> np.ndarray:
    """The definition of a prediction at a background threshold, in the precision of the activations."""
    background = np.full((1, *activations.shape[1:]), threshold, activations.dtype)
    return np.array([0, *keys])[np.concatenate([background, activations]).argmax(0)]


def slow_iou(
    prediction: np.ndarray, ground_truth: np.ndarray, n_classes: int, unknown: str, absent: str
) -> list[float]:
    """IoU of each class, from sets of pixels; NaN where the class does not count."""
    counts = ground_truth != 255
    if unknown == "ignore":
        counts &= prediction != 255
    result = []
    for label in range(n_classes + 1):
        is_true, is_predicted = (ground_truth == label) & counts, (prediction == label) & counts
        union = (is_true | is_predicted).sum()
        left_out = not union or (absent == "skip" and not is_true.any())
        result.append(math.nan if left_out else (is_true & is_predicted).sum() / union)
    return result


def test_iou_is_that_of_the_definition():
    for absent in ["zero", "skip"]:
        for unknown in ["wrong", "ignore"]:
            images = [random_masks(seed) for seed in range(3)]
            confusion = Confusion(6)  # classes 5 and 6 are absent from everything
            for prediction, ground_truth in images:
                prediction[prediction == 4] = 5  # and class 5 is predicted but never true, 4 true but never predicted
                confusion.add(prediction, ground_truth)
            prediction, ground_truth = (np.concatenate([pair[side] for pair in images]) for side in (0, 1))
            expected = slow_iou(prediction, ground_truth, 6, unknown, absent)
            scores = confusion.scores(unknown, absent)
            np.testing.assert_allclose(scores.iou, expected, rtol=1e-14)
            assert scores.miou == pytest.approx(np.nanmean(expected), rel=1e-14)
            assert math.isnan(scores.iou[5]) == (absent == "skip")
            assert math.isnan(scores.iou[6])
            assert (scores.unknown, scores.absent) == (unknown, absent)


def test_a_case_done_by_hand():
    ground_truth = np.array([[0, 0, 1, 1], [1, 1, 2, 255]])
    prediction = np.array([[0, 1, 1, 1], [255, 0, 2, 1]])
    confusion = Confusion(2)
    confusion.add(prediction, ground_truth)
    assert confusion.counts.tolist() == [[1, 1, 0, 0], [1, 2, 0, 1], [0, 0, 1, 0]]
    wrong = confusion.scores("wrong")
    assert wrong.iou == pytest.approx([1 / 3, 2 / 5, 1])
    assert wrong.precision == pytest.approx([1 / 2, 2 / 3, 1])
    assert wrong.recall == pytest.approx([1 / 2, 2 / 4, 1])
    assert (wrong.accuracy, wrong.coverage, wrong.pixels) == pytest.approx((4 / 7, 6 / 7, 7))
    ignore = confusion.scores("ignore")
    assert ignore.iou == pytest.approx([1 / 3, 2 / 4, 1])
    assert ignore.recall == pytest.approx([1 / 2, 2 / 3, 1])
    assert (ignore.accuracy, ignore.coverage, ignore.pixels) == pytest.approx((4 / 6, 6 / 7, 6))


def test_perfect_masks_score_one_whatever_the_truth_leaves_unknown():
    ground_truth = np.array([[0, 0, 1], [1, 255, 255]], np.uint8)
    confusion = Confusion(1)
    confusion.add(np.array([[0, 0, 1], [1, 0, 1]], np.uint8), ground_truth)
    assert confusion.scores().miou == 1


def test_minus_one_in_signed_arrays_is_unknown():
    prediction, ground_truth = random_masks(1)
    unsigned, signed = Confusion(4), Confusion(4)
    unsigned.add(prediction, ground_truth)
    for dtype in (np.int16, np.int64):
        signed.counts[:] = 0
        signed.add(
            np.where(prediction == 255, -1, prediction.astype(dtype)),
            np.where(ground_truth == 255, -1, ground_truth.astype(dtype)),
        )
        assert (signed.counts == unsigned.counts).all()
    assert unsigned.counts[:, -1].any()


def test_absent_classes_leave_precision_and_recall_undefined():
    confusion = Confusion(2)
    confusion.add(np.array([[0, 0, 2, 2]]), np.array([[0, 0, 0, 1]]))
    scores = confusion.scores()
    np.testing.assert_array_equal(scores.precision, [1, np.nan, 0])
    np.testing.assert_allclose(scores.recall, [2 / 3, 0, np.nan])
    assert (scores.mean_precision, scores.mean_recall) == pytest.approx((1 / 2, 1 / 3))
    assert confusion.scores(absent="skip").mean_precision == 1
    assert scores.to_json()["precision"] == [1.0, None, 0.0]


def test_nothing_counted_is_none_and_not_a_number():
    confusion = Confusion(2)
    assert confusion.scores().to_json()["miou"] is None
    confusion.add(np.full((2, 3), 255), np.array([[0, 1, 2], [0, 0, 0]]))
    assert confusion.scores("wrong").miou == 0
    ignore = confusion.scores("ignore").to_json()
    assert (ignore["miou"], ignore["accuracy"], ignore["coverage"], ignore["pixels"]) == (None, None, 0.0, 0)


def test_layout_does_not_matter():
    for change in [np.asfortranarray, lambda a: a[::-1, ::-1], lambda a: np.repeat(a, 2, 1)[:, ::2]]:
        prediction, ground_truth = random_masks(2)
        contiguous, other = Confusion(4), Confusion(4)
        contiguous.add(np.ascontiguousarray(change(prediction)), np.ascontiguousarray(change(ground_truth)))
        read_only = change(ground_truth)
        read_only.flags.writeable = False
        other.add(change(prediction), read_only)
        assert (contiguous.counts == other.counts).all()


def test_most_classes_that_fit():
    labels = np.arange(255, dtype=np.uint8).reshape(1, 255)
    confusion = Confusion(254)
    confusion.add(labels, labels)
    scores = confusion.scores()
    assert scores.miou == 1
    assert len(scores.iou) == 255


def test_merged_parts_equal_the_whole():
    whole, first, second = Confusion(4), Confusion(4), Confusion(4)
    for seed in range(4):
        whole.add(*random_masks(seed))
        (first if seed % 2 else second).add(*random_masks(seed))
    before = first.counts.copy()
    assert ((first + second).counts == whole.counts).all()
    assert (first.counts == before).all()  # the parts are not changed
    with pytest.raises(InputError, match="have 4 and 3 classes, expected equal numbers"):
        whole + Confusion(3)


def test_curve_is_the_confusion_at_each_threshold():
    for thresholds in [None, np.arange(21) / 20, np.linspace(0.1, 0.7, 601)]:
        for n_keys in [0, 1, 2, 4]:
            for dtype in [np.float16, np.float32, np.float64]:
                curve = ThresholdCurve(4, thresholds)
                images = [random_activations(seed, n_keys=n_keys, dtype=dtype) for seed in range(2)]
                images.append(random_activations(9, n_keys=3, dtype=dtype))
                for image in images:
                    curve.add(*image)
                result = curve.result()
                for index in range(0, len(curve.thresholds), 1 + len(curve.thresholds) // 100):
                    threshold, confusion = curve.thresholds[index], Confusion(4)
                    for activations, keys, ground_truth in images:
                        confusion.add(argmax_with_background(activations, keys, threshold), ground_truth)
                    expected = confusion.scores()
                    np.testing.assert_array_equal(result.iou[index], expected.iou)
                    assert curve.scores(threshold).to_json() == expected.to_json()
                    assert curve.scores(threshold, absent="skip").to_json() == confusion.scores(absent="skip").to_json()


def test_an_activation_equal_to_the_threshold_is_background():
    for dtype in (np.float16, np.float32, np.float64):
        for step in range(101):
            curve = ThresholdCurve(1)
            curve.add(np.full((1, 1, 1), step / 100, dtype), [1], np.ones((1, 1), int))
            assert (curve.result().iou[:, 1] == (np.arange(101) < step)).all()


def test_figures_of_a_curve_done_by_hand():
    # Three of ten pixels are foreground; the threshold separates them from the rest where .30 <= t < .55.
    activations = np.array([[[0.6, 0.6, 0.55, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]]])
    ground_truth = np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]])
    curve = ThresholdCurve(1)
    curve.add(activations, [1], ground_truth)
    result = curve.result()
    assert result.miou[[0, 10, 30, 55, 60]] == pytest.approx(
        [(0 + 3 / 10) / 2, (6 / 7 + 3 / 4) / 2, 1, (7 / 8 + 2 / 3) / 2, (7 / 10 + 0) / 2]
    )
    assert (result.best_threshold, result.best_miou) == (0.3, 1)
    assert result.width == pytest.approx(0.25)
    assert result.mean == pytest.approx(np.mean(result.miou[5:96]))
    written = json.loads(json.dumps(curve.to_json()))
    assert written["width"] == 0.25
    assert written["thresholds"][30] == 0.3
    assert np.shape(written["iou"]) == (101, 2)


def test_width_counts_the_thresholds_within_one_point_of_the_best():
    # A fifth of the object and of the background lies evenly between .5 and 1, and 0 and .5: the curve falls slowly.
    object_ = np.concatenate([np.full(2000, 1.0), np.linspace(0.5, 0.999, 500)])
    activations = np.concatenate([object_, 0.999 - object_.clip(max=0.999)]).reshape(1, 1, 5000)
    curve = ThresholdCurve(1)
    curve.add(activations, [1], np.repeat([1, 0], 2500).reshape(1, 5000))
    result = curve.result()
    drop = result.best_miou - result.miou
    within = int((drop <= 0.01).sum())
    assert int((drop <= 0.005).sum()) < within < int((drop <= 0.015).sum())  # the one point matters
    assert result.width == pytest.approx(within / 100)
    assert result.best_threshold == curve.thresholds[drop.argmin()]


def test_an_empty_curve_is_none():
    written = ThresholdCurve(2).to_json()
    assert written["best_miou"] is None
    assert written["miou"] == [None] * 101


def test_scores_only_at_thresholds_of_the_curve():
    with pytest.raises(InputError, match=r"threshold is 0\.155, not on the curve, .*: the nearest is 0\.1"):
        ThresholdCurve(2).scores(0.155)


def test_histogram_of_a_case_done_by_hand():
    histogram = ActivationHistogram(3)
    activations = np.array([[[1.0, 0.2, 0.4, 0.0, 0.9]], [[0.5, 0.8, 0.6, 0.1, 0.9]]], np.float32)
    #                 own map of 1, of 3 (0.8), background, unknown, and a class without a map, which is left out
    histogram.add(activations, [1, 3], np.array([[1, 3, 0, 255, 2]]))
    histogram.add(np.zeros((0, 1, 4)), [], np.zeros((1, 4), int))  # no map: nothing to count
    histogram.add(np.full((1, 1, 1), 0.3), [1], np.ones((1, 1), int))
    result = histogram.result()
    assert result.foreground_mean == pytest.approx((1 + 0.8 + 0.3) / 3)
    assert result.background_mean == pytest.approx(0.6)
    assert result.gap == pytest.approx(0.1)
    assert result.imbalance == pytest.approx(np.std([1, 0.8, 0.3]) / 0.7)
    assert result.low_share == pytest.approx(1 / 3)
    np.testing.assert_allclose(result.class_mean, [0.65, np.nan, 0.8])
    np.testing.assert_allclose(result.class_imbalance, [0.35 / 0.65, np.nan, 0], atol=1e-12)
    assert np.flatnonzero(result.by_class[0]).tolist() == [15, 49]
    assert np.flatnonzero(result.background).tolist() == [30]
    assert json.loads(json.dumps(histogram.to_json()))["class_mean"][1] is None


def test_histogram_follows_the_pixels():
    activations, keys, ground_truth = random_activations(3, n_keys=3, size=(40, 50))
    histogram = ActivationHistogram(4)
    histogram.add(activations, keys, ground_truth)
    result = histogram.result()
    own = np.concatenate([activations[k][ground_truth == key] for k, key in enumerate(keys)]).astype(float)
    background = activations.max(0)[ground_truth == 0].astype(float)
    assert result.foreground.sum() == len(own)
    assert result.background.sum() == len(background)
    assert result.foreground_mean == pytest.approx(own.mean(), abs=5e-4)
    assert result.gap == pytest.approx(own.mean() - background.mean(), abs=1e-3)
    assert result.imbalance == pytest.approx(own.std() / own.mean(), abs=2e-3)
    assert result.low_share == pytest.approx((np.rint(own * 1000) < 500).mean())
    expected, _ = np.histogram(np.floor(np.rint(own * 1000) / 20), np.arange(51))
    assert (result.foreground == expected).all()


def test_an_empty_histogram_is_none():
    written = ActivationHistogram(2).to_json()
    assert (written["gap"], written["imbalance"], written["low_share"]) == (None, None, None)


def test_bad_masks_are_refused_and_nothing_is_counted():
    for prediction, ground_truth, message in [
        (np.zeros((3, 4), int), np.zeros((4, 3), int), r"prediction is 3 x 4 pixels .* ground truth is 4 x 3"),
        (np.array([[4]]), np.array([[0]]), r"the prediction has id 4, expected 0 to 3, or 255"),
        (np.array([[0, 0]]), np.array([[77, 254]]), r"the ground truth has ids 77, 254, expected 0 to 3, or 255"),
        (np.array([[0]]), np.array([[-2]]), r"the ground truth has id -2"),
        (np.array([[256]]), np.array([[0]]), r"the prediction has id 256"),
        (np.array([[-1]], np.int8).view(np.uint8) - 1, np.array([[0]]), r"the prediction has id 254"),
        (np.array([[0.5]]), np.array([[0]]), r"the prediction is float64 .* expected integers of shape \(H, W\)"),
        (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), int), r"is uint8 of shape \(2, 2, 3\)"),
    ]:
        confusion = Confusion(3)
        with pytest.raises(InputError, match=message):
            confusion.add(prediction, ground_truth)
        assert not confusion.counts.any()


def test_bad_activations_are_refused_and_nothing_is_counted():
    for activations, keys, ground_truth, message in [
        (np.zeros((1, 2, 3)), [1], np.zeros((3, 2), int), r"activations are 2 x 3 pixels .* ground truth is 3 x 2"),
        (np.zeros((1, 2, 3)), [1, 2], np.zeros((2, 3), int), r"one label id for each of the 1 maps"),
        (np.zeros((1, 2, 3)), [0], np.zeros((2, 3), int), r"keys are \[0\], expected label ids from 1 to 3"),
        (np.zeros((1, 2, 3)), [4], np.zeros((2, 3), int), r"keys are \[4\], expected label ids from 1 to 3"),
        (np.zeros((1, 2, 3)), [1.0], np.zeros((2, 3), int), r"label ids from 1 to 3"),
        (np.zeros((2, 2, 3)), [2, 2], np.zeros((2, 3), int), r"keys are \[2, 2\], expected each class once"),
        (
            np.full((1, 1, 1), np.nan),
            [1],
            np.zeros((1, 1), int),
            r"range from nan to nan, expected numbers in \[0, 1\]",
        ),
        (np.full((1, 1, 1), 1.5), [1], np.zeros((1, 1), int), r"range from 1\.5 to 1\.5"),
        (np.full((1, 1, 1), -0.5), [1], np.zeros((1, 1), int), r"range from -0\.5"),
        (
            np.zeros((2, 3)),
            [1],
            np.zeros((2, 3), int),
            r"are float64 of shape \(2, 3\), expected floats of shape \(K, H, W\)",
        ),
        (np.zeros((1, 1, 1), np.uint8), [1], np.zeros((1, 1), int), r"are uint8 .* expected floats"),
        (np.zeros((1, 1, 1)), [1], np.full((1, 1), 9), r"the ground truth has id 9"),
    ]:
        for kind in [ThresholdCurve, ActivationHistogram]:
            metric = kind(3)
            with pytest.raises(InputError, match=message):
                metric.add(activations, keys, ground_truth)
            assert metric.to_json() == kind(3).to_json()


def test_bad_thresholds_are_refused():
    for thresholds in [[0.5], [0, 0.1, 0.3], [0.2, 0.1], [0, 0.0001], [0, np.nan], [[0, 0.1]]]:
        with pytest.raises(InputError, match="evenly spaced"):
            ThresholdCurve(2, thresholds)


def test_number_of_classes_is_bounded_by_the_label_255():
    for n_classes in [0, 255, -1]:
        for kind in (Confusion, ThresholdCurve, ActivationHistogram):
            with pytest.raises(InputError, match="expected 1 to 254"):
                kind(n_classes)


def test_rules_go_by_their_names():
    confusion = Confusion(2)
    with pytest.raises(InputError, match="unknown is 'miss', expected 'wrong' or 'ignore'"):
        confusion.scores(unknown="miss")
    with pytest.raises(InputError, match="absent is 'nan', expected 'zero' or 'skip'"):
        confusion.scores(absent="nan")
