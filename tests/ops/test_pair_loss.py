"""IRN's pair losses against a direct statement over single pairs, recorded pair counts, edge labels, errors."""

import functools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from amn_fast.kernels.common.paths import half_plane, path  # noqa: E402
from amn_fast.ops.pair_loss import PairLossTerms, pair_loss, pair_means, pair_sums  # noqa: E402
from case_table import each  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "amn"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if INTERPRETED else ["reference", "cpu"]
if INTERPRETED:
    from amn_fast.kernels.pair_loss import triton

    triton.BLOCK = 2048  # the interpreter's time goes by operations, not by elements
# A gradient takes there 0.3 s with radius 3, 1 s with 5 and 6 s with 10: large ones where they are the subject.
SIZES = [(2, (4, 7)), (3, (3, 5)), (5, (13, 18)), (10, (12, 23))][: 3 if INTERPRETED else 4]
LARGE = [(2, (4, 7)), (3 if INTERPRETED else 5, (13, 18)), (5, (9, 150)), (10, (24, 40))]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
ONCE = LARGE[1:2] if INTERPRETED else LARGE  # types differ in loads and rounding, which any radius shows
SMALL = 3 if INTERPRETED else 5


def random_case(batch=2, height=13, width=18, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    edge = (2 * torch.randn(batch, 1, height, width, generator=generator, dtype=torch.float64)).to(dtype)
    displacement = (3 * torch.randn(batch, 2, height, width, generator=generator, dtype=torch.float64)).to(dtype)
    coarse = torch.randint(0, 4, (batch, height // 3 + 1, width // 3 + 1), generator=generator)
    labels = coarse.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :height, :width].to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return edge, displacement, labels.contiguous()


def direct(edge, displacement, labels, radius):
    """The five terms, pair by pair, in Python's double precision."""
    edge, displacement, labels = edge.double().numpy(), displacement.double().numpy(), labels.numpy()
    batch, height, width = labels.shape
    r = radius - 1
    sums, counts = [0.0] * 5, [0, 0, 0]
    for b in range(batch):
        free = 1 / (1 + np.exp(edge[b, 0]))
        for y in range(height - r):
            for x in range(r, width - r):
                for dy in range(r + 1):
                    for dx in range(-r, r + 1):
                        if (dy == 0 and dx <= 0) or dy * dy + dx * dx >= radius * radius:
                            continue
                        one, other = int(labels[b, y, x]), int(labels[b, y + dy, x + dx])
                        if 255 in (one, other):
                            continue
                        a = 1.0
                        for py in range(dy + 1):
                            for px in range(min(dx, 0), max(dx, 0) + 1):
                                if (dy * px - dx * py) ** 2 / (dy * dy + dx * dx) < 1:
                                    a = min(a, free[y + py, x + px])
                        d = displacement[b, :, y, x] - displacement[b, :, y + dy, x + dx]
                        if one != other:
                            counts[2] += 1
                            sums[2] += -math.log(1 + 1e-5 - a)
                        elif one == 0:
                            counts[0] += 1
                            sums[0] += -math.log(a + 1e-5)
                            sums[4] += abs(d[0]) + abs(d[1])
                        else:
                            counts[1] += 1
                            sums[1] += -math.log(a + 1e-5)
                            sums[3] += abs(d[0] - dy) + abs(d[1] - dx)
    bg, fg, neg = counts
    means = [s / (n + 1e-5) for s, n in zip(sums, (bg, fg, neg, 2 * fg, 2 * bg), strict=True)]
    return means, counts


@each({"radius": [5, 10]})
def test_offsets_and_paths_are_the_recorded_ones(radius):
    if radius == 10:
        offsets = half_plane(radius)
        assert len(offsets) == len(set(offsets)) == 152
    recorded = json.loads((GOLDEN / f"paths_radius{radius}.json").read_text())
    theirs = {
        tuple(o): {tuple(p) for p in way} for o, way in zip(recorded["search_dst"], recorded["paths"], strict=True)
    }
    assert {offset: set(path(offset)) for offset in half_plane(radius)} == theirs


if not INTERPRETED:  # ten seconds there

    @each({"backend": BACKENDS})
    def test_recorded_pair_counts(backend):
        golden = np.load(GOLDEN / "irn_losses.npz")
        labels = torch.from_numpy(golden["labels"])[None]
        zeros = torch.zeros(1, 3, *labels.shape[1:])
        _, counts = pair_sums(zeros[:, :1], zeros[:, 1:], labels, backend=backend)
        assert counts.tolist() == [golden["bg_pos_count"], golden["fg_pos_count"], golden["neg_count"]]


@each({"backend": BACKENDS, "radius, size": SIZES})
def test_equals_the_direct_statement(radius, size, backend):
    case = random_case(2, *size)
    terms = pair_loss(*case, radius=radius, backend=backend)
    means, counts = direct(*case, radius)
    np.testing.assert_allclose([t.item() for t in terms], means, rtol=1e-6)
    assert pair_sums(*case, radius=radius, backend=backend)[1].tolist() == counts
    bg_pos, fg_pos, neg, dp_fg, dp_bg = means
    total = ((bg_pos / 2 + fg_pos / 2) + neg) / 2 + (dp_fg + dp_bg) / 2
    assert terms.total.item() == pytest.approx(total, rel=1e-6)


def gradients(case, backend, weights=(0.3, 1.1, 0.7, 0.9, 0.4), **options):
    edge, displacement, labels = case
    edge, displacement = edge.detach().requires_grad_(), displacement.detach().requires_grad_()
    terms = pair_loss(edge, displacement, labels, backend=backend, **options)
    sum(w * t for w, t in zip(weights, terms, strict=True)).backward()
    return terms, edge.grad, displacement.grad


@each({"backend": BACKENDS})
def test_gradcheck(backend):
    edge, displacement, labels = random_case(1, 5, 8, dtype=torch.float64)
    inputs = edge.requires_grad_(), displacement.requires_grad_()

    def terms(edge, displacement):
        return tuple(pair_loss(edge, displacement, labels, radius=3, backend=backend))

    assert torch.autograd.gradcheck(terms, inputs, fast_mode=INTERPRETED)


@each({"backend": BACKENDS, "label": [0, 3, 30, 255]})
def test_a_kind_without_pairs_contributes_nothing(label, backend):
    edge, displacement, labels = random_case()
    labels.fill_(label)
    terms, edge_gradient, displacement_gradient = gradients((edge, displacement, labels), backend, radius=SMALL)
    present = {"bg_pos": label == 0, "dp_bg": label == 0, "fg_pos": 0 < label < 255, "dp_fg": 0 < label < 255}
    for name, term in terms._asdict().items():
        assert (term.item() > 0) == present.get(name, False), name
    assert edge_gradient.isfinite().all()
    assert displacement_gradient.isfinite().all()
    assert bool(edge_gradient.any()) == (label != 255)


@each({"backend": BACKENDS, "logit": [-1e4, 1e4]})
def test_affinities_of_0_and_1_have_bounded_gradients(logit, backend):
    edge, displacement, labels = random_case()
    edge.fill_(logit)
    terms, edge_gradient, _ = gradients((edge, displacement, labels), backend, radius=SMALL)
    assert all(t.isfinite() for t in terms)
    assert edge_gradient.isfinite().all()
    assert edge_gradient.abs().max() <= 1e5


@each({"backend": BACKENDS})
def test_infinity_and_nan_show_where_a_pair_counts_and_nowhere_else(backend):
    """The label of image 1, the pixel, its label, the terms that a NaN in its edge and in its displacement reaches."""
    table = [
        (0, (0, 9), 0, {"bg_pos"}, {"dp_bg"}),
        (0, (12, 9), 0, {"bg_pos"}, {"dp_bg"}),
        (3, (8, 0), 3, {"fg_pos"}, {"dp_fg"}),
        (3, (5, 17), 3, {"fg_pos"}, {"dp_fg"}),
        (3, (5, 9), 4, {"fg_pos", "neg"}, set()),  # a class of one pixel
        (3, (12, 0), 3, set(), set()),  # too far from all sources
        (255, (5, 9), 255, set(), set()),
        (255, (5, 9), 3, set(), set()),
    ]
    radius = 3 if INTERPRETED else 4
    for around, (y, x), label, of_edge, of_displacement in [table[k] for k in (1, 4, 7)] if INTERPRETED else table:
        edge, displacement, labels = clean = random_case()
        labels[1] = around
        labels[1, y, x] = label
        unspoiled = gradients(clean, backend, radius=radius)
        for spoiled, reached in ((0, of_edge), (1, of_displacement)):
            for value in (math.nan, math.inf)[: 1 if INTERPRETED and label != 0 else 2]:
                case = [edge.clone(), displacement.clone(), labels]
                case[spoiled][1, 0, y, x] = value
                terms, *found = gradients(case, backend, radius=radius)
                message = (around, (y, x), label, spoiled, value)
                bounded = spoiled == 0 and math.isinf(value)  # affinities of 0 and 1
                shown = {name for name, term in terms._asdict().items() if not term.isfinite()}
                assert shown == (set() if bounded else reached), message
                assert all(terms._asdict()[name].isnan() == math.isnan(value) for name in shown), message
                if backend != "reference":
                    _, *expected = gradients(case, "reference", radius=radius)
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8, equal_nan=True, msg=str(message))
                assert found[0].isnan().sum() == (math.isnan(value) and spoiled == 0 and bool(reached)), message
                if not reached:
                    assert terms == unspoiled[0], message
                    assert all(map(torch.equal, found, unspoiled[1:])), message


@each({"backend": BACKENDS})
def test_whole_batch_mean(backend):
    case = random_case(4)
    whole = pair_loss(*case, radius=SMALL, backend=backend)
    parts = [pair_sums(*(t[i : i + 2] for t in case), radius=SMALL, backend=backend) for i in (0, 2)]
    joined = pair_means(parts[0][0] + parts[1][0], parts[0][1] + parts[1][1])
    np.testing.assert_allclose([t.item() for t in joined], [t.item() for t in whole], rtol=1e-6)


@each({"backend": BACKENDS})
def test_batch_of_none(backend):
    edge, displacement, labels = (t[:0] for t in random_case())
    assert all(t.item() == 0 for t in pair_loss(edge, displacement, labels, radius=SMALL, backend=backend))


@each({"backend": BACKENDS})
def test_strided_inputs(backend):
    edge, displacement, labels = case = random_case()
    terms, edge_gradient, displacement_gradient = gradients(case, backend, radius=SMALL)
    turned = tuple(t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (edge, displacement, labels))
    other = gradients(turned, backend, radius=SMALL)
    np.testing.assert_allclose([t.item() for t in other[0]], [t.item() for t in terms], rtol=1e-6)
    torch.testing.assert_close(other[1], edge_gradient)
    torch.testing.assert_close(other[2], displacement_gradient)


@each({"backend": BACKENDS})
def test_half_precision(backend):
    for dtype in (torch.float16, torch.bfloat16):
        edge, displacement, labels = random_case(dtype=dtype)
        terms = pair_loss(edge, displacement, labels, radius=SMALL, backend=backend)
        exact = pair_loss(edge.double(), displacement.double(), labels, radius=SMALL, backend="reference")
        np.testing.assert_allclose([t.item() for t in terms], [t.item() for t in exact], rtol=1e-6)
        assert terms.bg_pos.dtype == torch.float32


@functools.cache
def exact_gradients(dtype, radius, size):
    edge, displacement, labels = random_case(2, *size, dtype=dtype)
    return gradients((edge.double(), displacement.double(), labels), "reference", radius=radius)


@each(
    {
        "backend": BACKENDS,
        "dtype, radius, size": [(dtype, *one) for dtype in DTYPES for one in (ONCE if dtype in DTYPES[1:] else LARGE)],
    }
)
def test_gradients_equal_the_exact_ones(dtype, radius, size, backend):
    """Ties included: bfloat16 maps are full of them, and the first pixel of the path takes the gradient."""
    case = random_case(2, *size, dtype=dtype)
    terms, *true = exact_gradients(dtype, radius, size)
    ours, *found = gradients(case, backend, radius=radius)
    np.testing.assert_allclose([t.item() for t in ours], [t.item() for t in terms], rtol=1e-6)
    for gradient, true_gradient in zip(found, true, strict=True):
        # The reference computes in the type it is given and loses digits in log(1 + 1e-5 - a); the kernels do not.
        rounding = 1e-2 if dtype == torch.bfloat16 else 1e-4 if backend == "reference" else 1e-6
        scale = float(true_gradient.abs().max())
        torch.testing.assert_close(gradient.double(), true_gradient, rtol=rounding, atol=1e-6 * scale)


def test_total_is_irns_weighting():
    terms = PairLossTerms(*(torch.tensor(float(k)) for k in (1, 2, 4, 8, 16)))
    assert terms.total.item() == (0.5 * 1 + 0.5 * 2 + 4) / 2 + (8 + 16) / 2
