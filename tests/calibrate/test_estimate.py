"""The statistics of `calibrate`: exact when all is known, and intervals that hold what they say."""

import json
from pathlib import Path

import numpy as np
import pytest

from amn_fast.calibrate.estimate import Answers, Masks, allocate, cells_of, edges_for
from amn_fast.metrics import Confusion
from amn_fast.ops.mask import mask_from_scores


def population(n_classes, rng):
    """Cells by what their pixels show, (C, B, C + 1): many sure pixels, few between, some of another class."""
    edges = edges_for(200, n_classes, 0.25)
    centres = np.array([0.03, *edges]) + 0.05
    area = rng.integers(20_000, 200_000, n_classes)
    density = 3 * np.exp(-8 * centres) + 0.3 * np.exp(-(((centres - 0.9) / 0.2) ** 2))
    middle, slope = rng.uniform(0.2, 0.5, (n_classes, 1)), rng.uniform(6, 15, (n_classes, 1))
    own = 1 / (1 + np.exp(-(centres - middle) * slope))
    pixels = (area[:, None] * density / density.sum()).astype(np.int64)
    table = np.zeros((*pixels.shape, n_classes + 1), np.int64)
    for k in range(n_classes):
        table[k, :, k + 1] = 0.95 * pixels[k] * own[k]
        if n_classes > 1:
            table[k, :, (k + 1) % n_classes + 1] = 0.05 * pixels[k] * own[k]
        table[k, :, 0] = pixels[k] - table[k].sum(-1)
    return edges, table


def by_kind(table):
    own, background = np.einsum("kbk->kb", table[..., 1:]), table[..., 0]
    return np.stack([own, background, table.sum(-1) - own - background], -1)


def others_of(table):
    found = table[..., 1:].sum(1).astype(float)
    np.fill_diagonal(found, 0)
    return found / np.maximum(found.sum(1, keepdims=True), 1)


def true_figures(table, place, sure=0):
    """mIoU, precision and recall at a threshold from the whole confusion matrix."""
    n_classes = len(table)
    counts = np.zeros((n_classes + 1, n_classes + 1))
    for k in range(n_classes):
        counts[:, k + 1] += table[k, place + 1 :].sum(0)
        counts[:, 0] += table[k, : place + 1].sum(0)
    counts[0, 0] += sure
    right, predicted, true = np.diag(counts), counts.sum(0), counts.sum(1)
    return [np.mean(right / whole) for whole in (true + predicted - right, predicted, true)]


def recorded(name):
    """Pixels of a run's masks by cell and ground truth, written by docs/experiments/calibrate_population.py."""
    found = json.loads((Path(__file__).parents[1] / "golden" / "calibrate" / f"{name}.json").read_text())
    together = np.array(found["images_together"])
    others = together / np.maximum(together.sum(1, keepdims=True), 1)
    return tuple(found["edges"]), np.array(found["pixels"]), others, found["without_class"]


def simulated(n_classes):
    edges, table = population(n_classes, np.random.default_rng(n_classes))
    return edges, table, others_of(table), 0


@pytest.mark.parametrize(
    ("masks", "highest"),
    [pytest.param(recorded(name), 0.97, id=name) for name in ("demo", "msrc", "voc6")]
    + [pytest.param(simulated(n), 1.0, id=f"{n} classes") for n in (1, 10)],
)
def test_the_interval_contains_the_true_value_as_often_as_it_says(masks, highest):
    """500 simulations with 200 answers each; the threshold is chosen by the same answers.

    On real masks the coverage is that of the interval, 95 %: of the demo (full mode) and of small runs of the fast mode
    on MSRC and VOC (14 and six classes). With more pixels of middle scores it is conservative.
    """
    edges, table, others, sure = masks
    rng = np.random.default_rng(0)
    sizes = table.sum(-1)
    asked = allocate(sizes, 200)
    assert asked.sum() == 200
    shares = table / np.maximum(sizes, 1)[..., None]
    true = [true_figures(table, place, sure) for place in range(len(edges))]
    hits, widths, regrets = [], [], []
    for _ in range(500):
        found = Answers(sizes, by_kind(rng.multinomial(asked, shares)), others, edges, sure)
        place = found.best()
        quality = found.quality(place)
        hits.append(quality.miou.low <= true[place][0] <= quality.miou.high)
        widths.append(quality.miou.high - quality.miou.low)
        regrets.append(max(one[0] for one in true) - true[place][0])
    figures = (np.mean(hits), np.mean(widths), np.mean(regrets))
    print("{} classes: coverage {:.3f}, width {:.3f}, regret {:.4f}".format(len(table), *figures))
    assert 0.93 <= np.mean(hits) <= highest
    assert np.mean(widths) < (0.2 if len(table) <= 3 else 0.4)
    assert np.mean(regrets) < 0.01


def test_with_every_pixel_answered_the_figures_are_those_of_the_confusion_matrix():
    rng = np.random.default_rng(0)
    scores, keys = rng.random((2, 60, 80), np.float32) ** 3, np.array([1, 3], np.uint8)
    true = rng.choice([0, 1, 3], (60, 80)).astype(np.uint8)
    edges = (0.1, 0.25, 0.5)
    label, bins = cells_of(scores, keys, edges)
    table = np.zeros((3, 4, 4), np.int64)
    np.add.at(table, (label.astype(int) - 1, bins, true), 1)
    found = Answers(table.sum(-1), by_kind(table), others_of(table), edges, sure=100)
    for place, edge in enumerate(edges):
        confusion = Confusion(3)
        confusion.add(mask_from_scores(scores, keys, edge), true)
        confusion.add(np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8))
        expected = confusion.scores()
        quality = found.quality(place)
        shown = [k for k in range(4) if expected.iou[k] == expected.iou[k]]
        assert [quality.iou[k].value for k in shown] == pytest.approx(expected.iou[shown])
        assert quality.iou[0].low <= expected.iou[0] <= quality.iou[0].high


def test_an_interval_over_images_contains_the_value_of_all_images():
    """400 images of one class whose quality varies: eight of them, 500 times."""
    rng = np.random.default_rng(4)
    area, hit = rng.integers(500, 5000, 400), rng.beta(8, 2, 400)
    right = np.stack([9000 - area, area * hit], -1).astype(np.int64)[:, None]
    predicted = right + np.stack([area * (1 - hit), area * 0.1], -1).astype(np.int64)[:, None]
    true = np.stack([np.full(400, 9000) - area, area], -1)
    everything = Masks(right, predicted, true, (0.25,)).quality(0, rng).miou.value
    hits = []
    for _ in range(500):
        few = rng.choice(400, 8, replace=False)
        found = Masks(right[few], predicted[few], true[few], (0.25,)).quality(0, rng).miou
        hits.append(found.low <= everything <= found.high)
    assert 0.92 <= np.mean(hits) <= 0.98, np.mean(hits)


def test_questions_go_where_they_help_and_never_exceed_the_pixels():
    sizes = np.array([[5, 0, 1000], [100_000, 3, 20_000]])
    found = allocate(sizes, 60)
    assert found.sum() == 60
    assert (found <= sizes).all()
    assert found[1, 0] == found.max()
    assert allocate(np.array([[2, 1]]), 60).tolist() == [[2, 1]]
