"""Heads on frozen features and the choice of thresholds, without files: definitions, exactness, determinism."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("pydantic")
pytest.importorskip("skimage")
import torch

from amn_fast import refine_seed
from amn_fast.data.store import Activations
from amn_fast.models import CamNet
from amn_fast.models.heads import HeadsNet
from amn_fast.ops.pixel_loss import pixel_loss
from amn_fast.steps import choice, heads, linear_cam
from amn_fast.steps.regions import find_regions

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (50, 70, 3), np.uint8)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = HeadsNet(3, "efficientnet_lite0").eval()
    heads.fit_projections(net, [heads.level_maps(net, IMAGE, CPU)], np.random.default_rng(0))
    return net


def test_gradient_is_that_of_pixel_loss():
    rng = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(40, 5, generator=rng), torch.ones(40, 1)], 1)
    labels = torch.randint(0, 4, (3, 40), generator=rng, dtype=torch.uint8)
    labels[0, :9], labels[2, labels[2] > 0] = 255, 0  # unknown cells; a seed without foreground
    weights = torch.randn(6, 3 * 4, generator=rng, requires_grad=True)
    maps = (x @ weights).view(40, 3, 4).permute(1, 2, 0)[:, :, None]  # (P, C + 1, 1, n)
    sum(pixel_loss(maps[k : k + 1], labels[k : k + 1, None], eps=0.1) for k in range(3)).backward()
    found = heads.gradient(x, labels, weights.detach(), 4, 0.1)
    torch.testing.assert_close(found, weights.grad, rtol=1e-5, atol=1e-7)


def test_each_head_is_fitted_by_itself_in_the_same_bits_for_any_thread_count(monkeypatch):
    x = torch.randn(900, 20, generator=torch.Generator().manual_seed(1))
    labels = torch.stack([torch.where(x[:, 1] > 1, 2, (x[:, 0] > t).byte()) for t in (-1, 0, 1)]).byte()
    with heads.one_thread():
        one = heads.fit(x, labels, 2, steps=60)
    torch.set_num_threads(2)
    with heads.one_thread():
        assert torch.equal(one, heads.fit(x, labels, 2, steps=60))
    torch.set_num_threads(1)
    monkeypatch.setattr(heads, "MOST_LOGITS", 1)  # one head at a time
    torch.testing.assert_close(heads.fit(x, labels, 2, steps=60), one, rtol=1e-4, atol=1e-5)
    right = (heads.logits(one, x.T[:, None], [1, 2]).argmax(1)[:, 0] == labels).float().mean(1)
    assert (right > 0.75).all()


def test_the_network_gives_what_the_steps_give(net):
    projected = heads.project(net, heads.level_maps(net, IMAGE, CPU, scale=1.0))
    head = torch.randn(1, 4, net.width + 1, generator=torch.Generator().manual_seed(2))
    heads.install(net, head[0])
    x = net.backbone.normalize(IMAGE)
    expected = heads.logits(head, heads.grid_features(projected), [1, 2, 3])[0]
    torch.testing.assert_close(net(x[None])[0], expected, rtol=0.02, atol=0.1)  # maps are kept in half precision
    flipped = heads.level_maps(net, np.ascontiguousarray(IMAGE[:, ::-1]), CPU, flip=True)
    for a, b in zip(flipped, heads.level_maps(net, IMAGE, CPU), strict=True):
        torch.testing.assert_close(a, b.flip(-1), rtol=1e-3, atol=1e-3)
    for level, projection in zip(heads.level_maps(net, IMAGE, CPU), net.projections, strict=True):
        values = projection(level[None])[0].flatten(1).double()  # fitted on these cells: standardised
        torch.testing.assert_close(values.mean(1), torch.zeros_like(values[:, 0]), rtol=0, atol=1e-3)
        assert values.std(1, correction=0).max() < 1.01


def test_seeds_of_all_pairs_are_those_of_refine_seed():
    full = RNG.random((2, *IMAGE.shape[:2]), np.float32)
    found = Activations(np.array([2, 5], np.uint8), full[:, ::4, ::4], full)
    thresholds, pairs = (0.2, 0.5, 0.7), [(0.5, 0.2), (0.7, 0.2), (0.7, 0.5)]
    maps = choice.labels_at(IMAGE, found, thresholds, (50, 5, 10), IMAGE.shape[:2])
    for (fg, bg), seed in zip(pairs, choice.seeds(maps, thresholds, pairs), strict=True):
        np.testing.assert_array_equal(seed, refine_seed(IMAGE, full, found.keys, fg=fg, bg=bg))


def test_large_images_are_seen_at_a_bounded_size(net, monkeypatch):
    full = RNG.random((1, *IMAGE.shape[:2]), np.float32)
    found = Activations(np.array([2], np.uint8), full[:, ::4, ::4], full)
    for longest, size in ((640, (13, 18)), (35, (7, 9))):
        monkeypatch.setattr(heads, "LONGEST", longest)
        image = choice.prepare(net, IMAGE, found, (0.2, 0.5), (50, 5, 10), CPU)
        assert image.regions.shape == size
        fitted = torch.zeros(2, 4, net.width + 1)
        assert choice.measure(fitted, image).eta.shape == (2,)


def test_separation_and_agreement_by_definition():
    regions, p = RNG.integers(0, 5, 60), RNG.random((3, 60))
    for one, found in zip(p, choice.separation(p, regions), strict=True):
        m = one.mean()
        between = sum((regions == s).sum() * (one[regions == s].mean() - m) ** 2 for s in range(5))
        assert found == pytest.approx(between / (60 * m * (1 - m)))
    assert choice.separation(np.zeros((1, 60)), regions) == 0  # a map without foreground decides nothing
    a, b = RNG.integers(0, 3, (2, 2, 60))
    b[0, b[0] == 2] = 0
    for k, found in enumerate(choice.agreement(a, b, 4)):
        ious = [((a[k] == c) & (b[k] == c)).sum() / ((a[k] == c) | (b[k] == c)).sum() for c in range(3)]
        assert found == pytest.approx(np.mean(ious))


def test_regions_follow_edges():
    image = np.zeros((60, 90, 3), np.uint8)
    image[20:50, 30:80] = 200
    regions = find_regions(image)
    assert regions.shape == (60, 90)
    inside, outside = np.unique(regions[24:46, 34:76]), np.unique(regions[:16])
    assert (len(inside), len(outside)) == (1, 1)
    assert inside != outside


def test_a_linear_cam_fits_the_weights_of_a_cam_network(net):
    labels = torch.eye(3).repeat(10, 1)
    features = labels @ torch.rand(3, 12, generator=torch.Generator().manual_seed(3)) + 0.01
    with heads.one_thread():
        weights = linear_cam.fit(features, labels)
    assert ((features @ weights.T > 0) == (labels > 0)).all()
    classifier = CamNet(3, "efficientnet_lite0").eval()
    pooled = linear_cam.pooled_features(classifier, IMAGE, CPU)
    assert pooled.shape == (2, 1280)
    logits = classifier(classifier.backbone.normalize(IMAGE)[None])
    torch.testing.assert_close(pooled[:1] @ classifier.classifier.weight[:, :, 0, 0].T, logits, rtol=1e-4, atol=1e-5)
