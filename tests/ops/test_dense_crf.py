import itertools

import numpy as np
import pytest

from amn_fast._native import native
from amn_fast.errors import InputError
from amn_fast.kernels.dense_crf import reference
from amn_fast.ops import lattice as lattice_module
from amn_fast.ops.dense_crf import DenseCRF, dense_crf, refine_seed, unary_from_labels, unary_from_softmax
from amn_fast.ops.lattice import Lattice
from amn_fast.ops.mean_field import Pairwise, kl_divergence, mean_field
from crf_cases import (
    BACKENDS,
    FEATURE_CASES,
    IMAGE_CASES,
    answer_to,
    check_marginals,
    close,
    cpu,
    load,
    reference_of,
    seed_case,
    smooth_unary,
    unary_of,
)

SLOW_IN_NUMPY = ("coco_full_81labels", "voc_full_21labels", "voc_full_3labels", "irn_21labels")


@pytest.mark.parametrize("name", IMAGE_CASES)
def test_marginals_equal_the_recorded_ones(name):
    case = load(name)
    for backend in BACKENDS:
        if backend == "cpu" or name not in SLOW_IN_NUMPY:
            check_marginals(name, case, answer_to(case, case["image"], unary_of(case), backend))


def test_any_features_equal_the_recorded_answers():
    for name, backend in itertools.product(FEATURE_CASES, BACKENDS):
        case = load(name)
        call = case["call"]
        unary = unary_from_labels(case["labels"].ravel(), call["labels"], call["gt_prob"], zero_unsure=False)
        terms = [Pairwise(Lattice(case["features"], backend=backend), call["compat"])]
        q = mean_field(unary, terms, call["iterations"])
        assert np.abs(q - case["q"]).max() <= 1e-4, (name, backend)
        assert (q.argmax(0) == case["q"].argmax(0)).all(), (name, backend)


def test_single_steps_equal_inference_and_the_recorded_divergence():
    for backend in BACKENDS:
        case = load("steps_kl")
        unary = unary_from_labels(case["labels"], 3, 0.7, zero_unsure=False)
        terms = DenseCRF(case["image"], backend=backend).pairwise
        unary = unary.reshape(3, -1)
        q = mean_field(unary, terms, 0)
        for step, expected in enumerate(case["q_steps"]):
            assert np.abs(q - expected).max() <= 1e-4
            assert np.array_equal(q, mean_field(unary, terms, step))
            assert kl_divergence(q, unary, terms) / q.shape[1] == pytest.approx(case["kl_per_pixel"][step], abs=1e-4)
            q = mean_field(unary, terms, 1, start=q)


def test_unaries_equal_the_recorded_ones():
    case = load("unaries")
    labels, softmax = case["labels"], case["softmax"]
    for ours, name in [
        (unary_from_labels(labels, 3, 0.6), "zero_unsure"),
        (unary_from_labels(labels, 4, 0.6, zero_unsure=False), "sure"),
        (unary_from_softmax(softmax), "from_softmax"),
        (unary_from_softmax(softmax, scale=0.7), "from_softmax_scaled"),
        (unary_from_softmax(softmax, clip=1e-3), "from_softmax_clip"),
    ]:
        assert ours.shape[1:] == labels.shape
        np.testing.assert_allclose(ours.reshape(len(ours), -1), case[name], rtol=1e-6, atol=1e-7)


def test_refined_seed_equals_the_recorded_one():
    for name, fg, bg in [("merge_cam", 0.30, 0.05), ("merge_amn", 0.45, 0.15)]:
        for backend in BACKENDS:
            arguments, expected = seed_case(name)
            seed = refine_seed(*arguments, fg=fg, bg=bg, backend=backend)
            assert seed.dtype == np.uint8
            assert (seed == expected).all()


@pytest.fixture
def instruction_sets():
    """Iterates over those of this machine, each in use while it is at hand."""
    before = native.crf_instruction_set()

    def each():
        for name in ("baseline", "avx2", "avx512"):
            if native.crf_use_instruction_set(name):
                yield name

    yield each
    native.crf_use_instruction_set(before)


@cpu
def test_small_images_equal_the_reference(photo):
    sizes, counts = [(1, 1), (1, 17), (17, 1), (2, 3), (13, 11)], [1, 2, 3, 5, 6, 9, 14, 21, 38, 81]
    for size, labels in itertools.product(sizes, counts):
        image, unary = photo[: size[0], : size[1]], smooth_unary(labels, *size)
        close(dense_crf(image, unary, iterations=4), dense_crf(image, unary, iterations=4, backend="reference"))


@cpu
def test_every_instruction_set_gives_the_reference(instruction_sets, photo):
    image = photo[:40, :50]
    for labels in (2, 3, 4, 21, 30):
        unary = smooth_unary(labels, 40, 50)
        expected = reference_of(image, unary)
        for _ in instruction_sets():
            close(dense_crf(image, unary), expected)


@cpu
def test_threads_do_not_change_a_bit(photo):
    for labels in [2, 3, 21]:
        image = np.concatenate([photo, photo[::-1]])[:300]  # enough pixels for several bands
        unary = smooth_unary(labels, *image.shape[:2])
        once = dense_crf(image, unary, iterations=3, threads=1)
        for threads in (1, 2, 3, 4, 7):
            assert np.array_equal(once, dense_crf(image, unary, iterations=3, threads=threads))
        again = dense_crf([image] * 4, [unary] * 4, iterations=3, threads=4)
        assert all(np.array_equal(once, one) for one in again)


@cpu
def test_several_unaries_in_one_pass_equal_one_by_one(photo):
    crf = DenseCRF(photo)
    unaries = [smooth_unary(labels, *photo.shape[:2], seed) for seed, labels in enumerate([3, 2, 3, 21, 3, 2])]
    for together, unary in zip(crf.marginals(unaries, 4), unaries, strict=True):
        close(together, crf.marginals(unary, 4), 1e-6)
    for labels, unary in zip(crf.labels(unaries, 4), unaries, strict=True):
        assert np.array_equal(labels, crf.marginals(unary, 4).argmax(0))
    image = photo[:41, :57]  # the last tile of points is not full
    for labels, count in itertools.product((2, 3, 4, 5, 6, 14, 17, 21, 29, 81), (1, 3, 5)):
        maps = [smooth_unary(labels, *image.shape[:2], seed).argmin(0) for seed in range(count)]
        energies = [unary_from_labels(one, labels, 0.7, zero_unsure=False) for one in maps]
        found, alone = DenseCRF(image).marginals(energies), [dense_crf(image, one) for one in energies]
        for one, other in zip(found, alone, strict=True):
            close(one, other, 2e-5)
        unequal = energies[0] + np.where(np.arange(labels) == 0, 1e-6, 0).astype(np.float32)[:, None, None]  # no map's
        close(dense_crf(image, unequal), alone[0], 1e-3)


@cpu
def test_label_maps_and_the_energies_they_make_give_the_same_bits(photo):
    labels = smooth_unary(4, *photo.shape[:2]).argmin(0)
    labels[:20] = 4
    unary = unary_from_labels(labels, 4, 0.7, zero_unsure=True, ignore_label=0)
    moved = unary.copy()
    moved[0, -1, -1] += 1e-3  # no longer a label map's
    same, other = dense_crf(photo, unary), dense_crf(photo, moved)
    close(same, other, 1e-3)
    terms = DenseCRF(photo[:40, :40]).pairwise
    close(dense_crf(photo[:40, :40], unary[:, :40, :40]), reference_of(photo[:40, :40], unary[:, :40, :40]))
    assert terms[0].lattice.backend == "cpu"


@cpu
def test_labels_that_a_map_does_not_show_share_the_work_and_nothing_else(instruction_sets, photo):
    image = photo[:41, :57]
    for labels, shown in [(6, [4]), (7, [0, 6]), (21, [3, 7, 20]), (81, [5, 6, 9, 40, 80])]:
        regions = np.random.default_rng(0).integers(0, len(shown), (5, 6))
        shown_map = np.array(shown)[np.kron(regions, np.ones((9, 10), int))[:41, :57]]
        energies = unary_from_labels(shown_map, labels, 0.7, zero_unsure=False)
        energies[:, 20:30, 10:20] = energies.max()  # nothing is known here: every label is the same
        expected, odds = reference_of(image, energies), np.exp(-energies.astype(np.float64))
        absent = np.setdiff1d(np.arange(labels), shown)
        for _ in instruction_sets():
            ours, again = dense_crf(image, energies), dense_crf(image, energies, threads=2)
            close(ours, expected, 2e-5)
            assert (ours == again).all()
            assert np.abs(ours.sum(axis=0, dtype=np.float64) - 1).max() <= 1e-6
            assert (ours[absent] == ours[absent[0]]).all()
            close(dense_crf(image, energies, iterations=0), odds / odds.sum(0), 1e-6)


@cpu
def test_of_equally_probable_labels_the_first_is_the_best_whether_a_map_shows_it_or_not(photo):
    labels = np.full((8, 9), 5)
    energies = unary_from_labels(labels, 21, 0.7, zero_unsure=False)
    energies[:, 3:] = energies.max()
    crf = DenseCRF(photo[:8, :9], gaussian=None, bilateral=None)
    best, q = crf.labels(energies), crf.marginals(energies)
    assert (best[:3] == 5).all()
    assert (best[3:] == 0).all()
    assert (best == q.argmax(0)).all()


def test_one_label_is_certain(photo):
    for backend in BACKENDS:
        assert (dense_crf(photo[:9, :9], np.ones((1, 9, 9), np.float32), backend=backend) == 1).all()


@cpu
def test_infinite_energy_forbids_a_label(photo):
    image, unary = photo[:20, :30], smooth_unary(3, 20, 30)
    unary[2, 5] = np.inf
    unary[0, 9] = np.inf
    q = dense_crf(image, unary)
    assert (q[2, 5] == 0).all()
    assert (q[0, 9] == 0).all()
    close(q, reference_of(image, unary))


@cpu
def test_any_dimension_and_range_equals_the_reference():
    for scale in [1.0, 300.0]:
        for d in [1, 2, 4, 7, 12, 32]:
            features = (scale * np.random.default_rng(d).normal(size=(d, 120))).astype(np.float32)
            values = np.random.default_rng(0).normal(size=(3, 120)).astype(np.float32)
            ours, theirs = Lattice(features), Lattice(features, backend="reference")
            other = np.random.default_rng(1).normal(size=(3, 120))
            for transpose in (False, True):
                close(ours.filter(values, transpose), theirs.filter(values, transpose))
            adjoint = (values * ours.filter(other, True)).sum()
            assert (other * ours.filter(values)).sum() == pytest.approx(adjoint, rel=1e-4, abs=1e-2)
            assert ours.handle.vertices == reference.Lattice.build(features).m


def test_the_lattice_is_near_the_exact_gaussian_sum():
    features = np.random.default_rng(1).normal(size=(2, 400)).astype(np.float32)
    values = np.random.default_rng(2).random((1, 400))
    ones = np.ones((1, 400))
    lattice = Lattice(features, backend="reference")
    ours = lattice.filter(values) / lattice.filter(ones)
    exact = reference.exact_filter(features, values) / reference.exact_filter(features, ones)
    assert np.abs(ours - exact).max() < 0.03


def test_a_scalar_compat_equals_minus_identity_and_minus_vector(photo):
    for backend in BACKENDS:
        image, unary = photo[:20, :30], smooth_unary(3, 20, 30)
        scalar = dense_crf(image, unary, bilateral=(50, 5, 10), backend=backend)
        close(dense_crf(image, unary, bilateral=(50, 5, -10 * np.eye(3)), backend=backend), scalar, 1e-5)
        close(dense_crf(image, unary, bilateral=(50, 5, [-10.0] * 3), backend=backend), scalar, 1e-5)
        tilted = np.array([[0, 2.0, 1], [0, 0, 5], [3, 1, 0]])
        close(
            dense_crf(image, unary, bilateral=(50, 5, tilted), backend=backend),
            dense_crf(image, unary, bilateral=(50, 5, (tilted + tilted.T) / 2), backend=backend),
            1e-6,
        )


def test_no_iterations_and_no_kernels_give_the_softmax(photo):
    for iterations in [0, -1]:
        unary = smooth_unary(3, 20, 30)
        expected = reference.softmax(-unary)
        close(dense_crf(photo[:20, :30], unary, iterations=iterations), expected, 1e-6)
        close(dense_crf(photo[:20, :30], unary, gaussian=None, bilateral=None), expected, 1e-6)
        close(dense_crf(photo[:20, :30], unary, gaussian=(3, 0), bilateral=None), expected, 1e-6)


@cpu
def test_labels_may_be_permuted(photo):
    unary = smooth_unary(5, *photo.shape[:2])
    order = [3, 0, 4, 2, 1]
    assert np.abs(dense_crf(photo, unary)[order] - dense_crf(photo, unary[order])).max() < 1e-4


@cpu
def test_mirrored_transposed_and_recoloured_pictures_agree_on_most_pixels():
    case = load("voc_full_3labels")  # the lattice is not symmetric: upstream's answers differ as much
    image, unary = case["image"], unary_of(case)
    labels = dense_crf(image, unary).argmax(0)
    assert (labels == dense_crf(image[:, ::-1], unary[:, :, ::-1]).argmax(0)[:, ::-1]).mean() >= 0.99
    assert (labels == dense_crf(image.swapaxes(0, 1), unary.swapaxes(1, 2)).argmax(0).T).mean() >= 0.99
    assert (labels == dense_crf(image[..., ::-1], unary).argmax(0)).mean() >= 0.99


@cpu
def test_pruning_keeps_the_most_probable_labels(photo):
    unary = np.full((81, *photo.shape[:2]), 9.0, np.float32)
    unary[::2] = smooth_unary(41, *photo.shape[:2])
    whole, pruned = dense_crf(photo, unary), dense_crf(photo, unary, prune=1e-3)
    assert (pruned[1::2] == 0).all()
    assert (whole.argmax(0) == pruned.argmax(0)).mean() > 0.999
    assert np.abs(pruned.sum(axis=0) - 1).max() < 1e-5
    assert np.array_equal(DenseCRF(photo).labels(unary, prune=1e-3), pruned.argmax(0))


def test_unsigned_labels_equal_signed_ones_and_ignored_pixels_are_uniform():
    labels = np.array([[0, 1, 2], [3, 0, 1]])
    assert np.array_equal(unary_from_labels(labels.astype(np.uint8), 3), unary_from_labels(labels, 3))
    labels[0, 0] = 255
    unary = unary_from_labels(labels, 4, zero_unsure=False, ignore_label=255)
    assert np.allclose(unary[:, 0, 0], np.log(4))


def test_softmax_values_are_clipped_not_renormalised():
    softmax = np.array([[1.2, 0.0], [0.3, 0.5]], np.float32)
    assert np.allclose(unary_from_softmax(softmax), -np.log([[1, 1e-5], [0.3, 0.5]]), atol=1e-6)
    assert np.isposinf(unary_from_softmax(softmax, clip=None)[0, 1])
    with pytest.raises(InputError, match="NaN"):
        unary_from_softmax(np.array([[np.nan], [1.0]]))


def test_refine_seed_without_classes_or_confidence_is_background(photo):
    for backend in BACKENDS:
        image = photo[:16, :20]
        nothing = refine_seed(image, np.zeros((0, 16, 20)), [], fg=0.3, bg=0.05, backend=backend)
        assert nothing.dtype == np.uint8
        assert (nothing == 0).all()
        flat = refine_seed(image, np.full((1, 16, 20), 0.05), [7], fg=0.3, bg=0.05, backend=backend)
        assert (flat == 0).all()  # an activation that only equals the threshold is background
        assert (refine_seed(image, np.full((1, 16, 20), 0.1), [7], fg=0.3, bg=0.05, backend=backend) == 255).all()
        assert (refine_seed(image, np.full((1, 16, 20), 0.9), [7], fg=0.3, bg=0.05, backend=backend) == 7).all()


def test_grid_lattices_are_bounded_in_number_and_bytes(monkeypatch):
    cache = lattice_module.GridCache()
    monkeypatch.setattr(lattice_module, "grids", cache)
    first = Lattice.of_grid(8, 9, 1.0, 1.0)
    assert Lattice.of_grid(8, 9, 1.0, 1.0) is first
    for i in range(200):
        Lattice.of_grid(8, 9, 2.0 + i, 1.0)
    assert len(cache.kept) == cache.most
    assert cache.nbytes == sum(lattice.nbytes for lattice, _ in cache.kept.values())
    cache.most_bytes = 3 * first.nbytes
    Lattice.of_grid(8, 9, 1.5, 1.0)
    assert 0 < cache.nbytes <= cache.most_bytes
