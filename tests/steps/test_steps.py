"""The arithmetic of the stages on one image or batch, without files."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("pydantic")
import torch
from PIL import Image
from torch.nn import functional as F

import amn_fast
from amn_fast.config import AmnInference, Mask
from amn_fast.data.augment import item_generator
from amn_fast.data.store import Activations, StridedActivations
from amn_fast.errors import InputError
from amn_fast.steps import amn, mask, seed, seg
from amn_fast.steps.cam import no_activations
from amn_fast.steps.items import MaskDataset, SeedDataset, checked_labels


def test_masks_by_crf_are_those_of_the_scores_with_a_background_at_the_threshold():
    rng = np.random.default_rng(0)
    image, scores = rng.integers(0, 256, (9, 13, 3), np.uint8), rng.random((2, 9, 13), np.float32)
    scores[:, 0, 0], scores[:, 0, 1] = 0, (1, 0)
    keys, thresholds = np.array([3, 7], np.uint8), (0.0, 0.2, 0.5, 0.8, 1.0)
    for threshold, found in zip(thresholds, mask.crf_masks(image, scores, keys, thresholds), strict=True):
        t = min(max(threshold, 1e-5), 1 - 1e-5)
        p = np.concatenate([1 - scores.max(0, keepdims=True), scores]).astype(np.float64).clip(1e-5)
        p[0] *= t / (1 - t)
        expected = amn_fast.dense_crf(image, -np.log(p), backend="reference").argmax(0)
        np.testing.assert_array_equal(found, np.array([0, 3, 7])[expected])
        np.testing.assert_array_equal(found, mask.crf_masks(image, scores, keys, (threshold,))[0])
    assert not mask.crf_masks(image, scores[:0], keys[:0], thresholds).any()


def test_softmax_over_all_channels_or_the_images_own():
    logits = torch.tensor([0.0, 1.0, 5.0, 2.0])[:, None, None].expand(4, 2, 3)  # background, three classes
    net = SimpleNamespace(
        activations=lambda pair, condition: logits, backbone=SimpleNamespace(normalize=torch.from_numpy)
    )
    image, seed = np.zeros((8, 12, 3), np.float32), np.zeros((8, 12), np.uint8)  # no pixel is sharpened
    label = np.array([True, False, True])
    for softmax, kept in (("all", [0, 1, 2, 3]), ("image", [0, 1, 3])):
        settings = AmnInference(scales=(1.0,), softmax=softmax)
        found = amn.activate(net, image, label, seed, settings, torch.device("cpu"))
        expected = dict(zip(kept, torch.softmax(logits[kept, 0, 0], 0).tolist(), strict=True))
        assert found.keys.tolist() == [1, 3]
        for key, strided, full in zip(found.keys, found.strided, found.full, strict=True):
            np.testing.assert_allclose(strided, expected[int(key)], atol=1e-6)
            np.testing.assert_allclose(full, expected[int(key)], atol=1e-6)
    nothing = amn.activate(net, image, ~label & False, seed, settings, torch.device("cpu"))
    assert (nothing.strided.shape, nothing.size) == ((0, 2, 3), (8, 12))


def test_a_mask_needs_the_maps_at_stride_four_and_the_size_alone():
    rng = np.random.default_rng(0)
    strided, edge = rng.random((2, 6, 8), np.float32), rng.random((6, 8), np.float32) * 0.5
    full = Activations(np.array([2, 5], np.uint8), strided, np.zeros((2, 21, 30), np.float32))
    without = StridedActivations(full.keys, strided, (21, 30))
    settings = Mask(exp_times=3, background=0.75)
    labels = mask.make_mask(full, edge, settings)
    assert labels.shape == (21, 30)
    assert set(np.unique(labels)) == {0, 2, 5}
    np.testing.assert_array_equal(labels, mask.make_mask(without, edge, settings))
    assert not mask.make_mask(no_activations(21, 30), edge, settings).any()


def test_constant_activations_are_found():
    planes = np.zeros((4, 3, 4), np.float32)
    planes[1], planes[2, 1, 1], planes[3, 0, 0] = 1, 0.5, 1e-6
    found = Activations(np.array([2, 3, 5, 9], np.uint8), planes[:, :1, :1], planes)
    assert seed.constant_classes(found) == [2, 3]
    assert seed.constant_classes(no_activations(3, 4)) == []


def labels_at(labels, size):
    """Each mask by Pillow's nearest."""
    height, width = size
    return torch.stack(
        [torch.from_numpy(np.array(Image.fromarray(m.numpy()).resize((width, height), Image.NEAREST))) for m in labels]
    ).long()


def test_the_segmentation_loss_is_the_sum_of_the_cross_entropies():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (2, 65, 90)))
    logits = [torch.randn(2, 4, *size, requires_grad=True) for size in ((9, 12), (5, 6), (7, 9), (65, 90))]
    loss = seg.multi_scale_loss(logits, labels)
    expected = sum(F.cross_entropy(one, labels_at(labels, one.shape[2:]), ignore_index=255) for one in logits)
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(mine, theirs)
    unknown = seg.multi_scale_loss(logits, torch.full((2, 40, 40), 255, dtype=torch.uint8))
    assert unknown.item() == 0
    assert not any(part.any() for part in torch.autograd.grad(unknown, logits))


class Squares:
    """Two images, 40 x 60 and 60 x 40, and their classes."""

    classes, ids, name = ("cat", "cup"), ("a", "b"), "squares"

    def image(self, id):
        return np.full((40, 60, 3) if id == "a" else (60, 40, 3), 90, np.uint8)

    def labels(self, id):
        return np.array([True, id == "b"])


def test_items_are_crops_that_seed_epoch_and_index_decide():
    def plain(image):
        return torch.zeros(3, *image.shape[:2])

    def ones(id):
        return np.ones(Squares().image(id).shape[:2], np.uint8)

    items = MaskDataset(Squares(), ones, plain, 512, (0.5, 2.0), 0)
    shares = [int((items.item("a", item_generator(0, k, 0))[1] != 255).sum()) / 2400 for k in range(12)]
    assert set(shares) == {0.25, 4.0}  # of the listed factors
    seeds = SeedDataset(Squares(), ones, plain, 96, (0.5, 1.5), 7)
    image, seed, label = seeds[3, 1]
    assert (image.shape, seed.shape, label.tolist()) == ((3, 96, 96), (96, 96), [1, 1])
    assert torch.equal(seeds[3, 1][1], seed)
    assert not torch.equal(seeds[4, 1][1], seed)
    wrong = SeedDataset(Squares(), lambda id: ones("a"), plain, 96, (0.5, 1.5), 7)[0, 1]
    assert isinstance(wrong, InputError)  # not raised: the process that loads images hands it over
    with pytest.raises(InputError, match=r"here: holds label 3, expected 0\.\.2 or 255"):
        checked_labels(np.array([[3, 255]], np.uint8), (1, 2), 2, "here")
