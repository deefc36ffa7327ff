"""The GPU kernels' own bodies and their driver, run as loops on the CPU: everything but the launch itself."""

import itertools

import numpy as np
import pytest

from amn_fast._native import native
from amn_fast.errors import InputError
from amn_fast.kernels.dense_crf import reference
from amn_fast.ops.dense_crf import DenseCRF, dense_crf, refine_seed, unary_from_labels
from amn_fast.ops.lattice import Lattice
from amn_fast.ops.mean_field import Pairwise, kl_divergence, mean_field
from crf_cases import (
    FEATURE_CASES,
    GOLDEN,
    IMAGE_CASES,
    answer_to,
    check_marginals,
    load,
    refusals,
    seed_case,
    smooth_unary,
    unary_of,
)

torch = pytest.importorskip("torch")
cuda = pytest.importorskip("amn_fast.kernels.dense_crf.cuda")
gpu = pytest.importorskip("amn_fast.kernels.dense_crf.cuda.host")

NORMALIZATIONS = ("symmetric", "before", "after", "none")


def batch_of(photo):
    """Images and unaries of several sizes and numbers of labels, one with a forbidden label."""
    sizes = [(40, 50), (31, 27), (40, 50), (1, 17), (50, 33), (25, 25)]
    images = [photo[i : i + h, 2 * i : 2 * i + w] for i, (h, w) in enumerate(sizes)]
    unaries = [smooth_unary(labels, *size, labels) for labels, size in zip([3, 3, 5, 2, 3, 5], sizes, strict=True)]
    unaries[1][2, 5] = np.inf
    return images, unaries


@pytest.mark.parametrize(
    "name", sorted({*IMAGE_CASES} - {"coco_full_81labels", "voc_full_21labels", "voc_full_3labels"})
)
def test_marginals_equal_the_recorded_ones(name, door):
    case = load(name)
    check_marginals(name, case, answer_to(case, case["image"], unary_of(case), "cuda"))


def test_any_features_equal_the_recorded_answers(door):
    for name in FEATURE_CASES:
        case = load(name)
        call = case["call"]
        unary = unary_from_labels(case["labels"].ravel(), call["labels"], call["gt_prob"], zero_unsure=False)
        terms = [Pairwise(Lattice(case["features"], backend="cuda"), call["compat"])]
        q = mean_field(unary, terms, call["iterations"])
        assert np.abs(q - case["q"]).max() <= 1e-4
        assert (q.argmax(0) == case["q"].argmax(0)).all()


def test_single_steps_equal_inference_and_the_recorded_divergence(door):
    case = load("steps_kl")
    unary = unary_from_labels(case["labels"], 3, 0.7, zero_unsure=False).reshape(3, -1)
    terms = DenseCRF(case["image"], backend="cuda").pairwise
    q = mean_field(unary, terms, 0)
    assert np.array_equal(mean_field(unary, terms, 0, start=q), q)
    for step, expected in enumerate(case["q_steps"]):
        assert np.abs(q - expected).max() <= 1e-4
        assert np.array_equal(q, mean_field(unary, terms, step))
        assert kl_divergence(q, unary, terms) / q.shape[1] == pytest.approx(case["kl_per_pixel"][step], abs=1e-4)
        q = mean_field(unary, terms, 1, start=q)


def test_refined_seed_equals_the_recorded_one(door):
    for name, fg, bg in [("merge_cam", 0.30, 0.05), ("merge_amn", 0.45, 0.15)]:
        arguments, expected = seed_case(name)
        seed = refine_seed(*arguments, fg=fg, bg=bg, backend="cuda")
        assert seed.dtype == np.uint8
        assert (seed == expected).all()


def same_lattice(ours, reference_lattice):
    """Whether two lattices differ in the numbers of their vertices alone."""
    n = len(reference_lattice.offset)
    assert ours.count == reference_lattice.m
    vertices = ours.vertices[:, :n].T.numpy()
    theirs = np.full(ours.count + 1, -1)
    theirs[vertices] = reference_lattice.offset
    assert (theirs[vertices] == reference_lattice.offset).all()
    assert np.array_equal(ours.weights[:, :n].T.numpy(), reference_lattice.weight)
    # Vertices of padding points alone have no point here to be recognised by.
    known = np.flatnonzero(theirs[:-1] >= 0)
    theirs[theirs < 0] = reference_lattice.m
    number = np.full(reference_lattice.m + 1, -1)
    number[theirs[known]] = known
    missing = np.full(reference_lattice.m + 1, True)
    missing[theirs[known]] = False
    for side, expected in enumerate((reference_lattice.previous, reference_lattice.following)):
        wanted = expected[:, theirs[known]]
        found = ours.neighbours[:, known, side].numpy()
        assert ((found < 0) == (wanted == reference_lattice.m)).all()
        sure = ~missing[wanted]
        assert (found[sure] == number[wanted[sure]]).all()


def test_the_lattice_is_that_of_the_cpu(door, photo):
    for size in [(1, 1), (1, 17), (17, 1), (2, 3), (13, 11), (60, 80)]:
        image = photo[: size[0], : size[1]]
        ours = Lattice.of_image(image, 50, 5, [5, 6, 7], backend="cuda")
        features = reference.bilateral_features(image, 50, 5, [5, 6, 7])
        same_lattice(ours.handle.lattices, reference.Lattice.build(features))
        if native is not None:
            cpu = Lattice.of_image(image, 50, 5, [5, 6, 7], backend="cpu").handle
            assert ours.handle.vertices == cpu.vertices or image.shape[0] * image.shape[1] >= 32768  # bands have ghosts


def test_any_dimension_and_range_equals_the_reference(door):
    for scale in [1.0, 300.0, 50000.0]:
        for d in [1, 2, 3, 4, 5, 6]:
            features = (scale * np.random.default_rng(d).normal(size=(d, 301))).astype(np.float32)
            features[:, 5] = features[:, 9]
            values = np.random.default_rng(0).normal(size=(3, 301)).astype(np.float32)
            expected = reference.Lattice.build(features)
            ours = Lattice(features, backend="cuda")
            same_lattice(ours.handle.lattices, expected)
            for transpose in (False, True):
                assert np.abs(ours.filter(values, transpose) - expected.filter(values, transpose)).max() <= 1e-5
            words = cuda.pack(cuda.matrix_features(torch.from_numpy(features))).words
            assert words == (1 if scale == 1 else words)
            assert words > 1 or scale < 1000 or d < 4


def test_keys_of_the_widest_range_fit():
    for d in [1, 2, 3, 4, 5, 6]:

        def packed(reach, d=d):
            return cuda.pack(cuda.Features(d, [-reach] * d, [reach] * d, None, None))

        least, most = 1.0, 1e9  # the widest range that is allowed
        for _ in range(60):
            middle = (least + most) / 2
            try:
                packed(middle)
                least = middle
            except InputError:
                most = middle
        packing = packed(least)
        assert packing.words <= cuda.MOST_WORDS
        assert packing.words == 2 or d < 4
        assert len(set(zip(packing.word, packing.shift, strict=True))) == d


def test_small_pictures_equal_the_reference(door, photo):
    for size in [(1, 1), (1, 17), (17, 1), (2, 3), (13, 11)]:
        for labels in [1, 2, 3, 4, 5, 6, 9, 21, 81, 255]:
            image, unary = photo[: size[0], : size[1]], smooth_unary(labels, *size)
            expected = dense_crf(image, unary, iterations=3, backend="reference")
            assert np.abs(dense_crf(image, unary, iterations=3, backend="cuda") - expected).max() <= 1e-5


def test_normalisations_and_compatibilities_equal_the_reference(door, photo):
    for kind in ["number", "vector", "matrix", "both"]:
        for normalization in NORMALIZATIONS:
            for labels in [3, 4, 7]:
                random = np.random.default_rng(labels)
                vector, matrix = -4 * random.random(labels), random.normal(size=(labels, labels))
                gaussian = (3, {"number": 3, "vector": vector, "matrix": matrix, "both": vector}[kind])
                bilateral = (50, 5, {"number": 10, "vector": 2 * vector, "matrix": 3, "both": matrix}[kind])
                image, unary = photo[:21, :30], smooth_unary(labels, 21, 30)
                settings = {
                    "gaussian": gaussian,
                    "bilateral": bilateral,
                    "normalization": normalization,
                    "iterations": 4,
                }
                ours = dense_crf(image, unary, backend="cuda", **settings)
                assert np.abs(ours - dense_crf(image, unary, backend="reference", **settings)).max() <= 1e-4


def test_three_matrices_on_lattices_of_features(door):
    random = np.random.default_rng(3)
    features = [random.normal(size=(d, 203)).astype(np.float32) for d in (2, 3, 5)]
    matrices = [random.normal(size=(6, 6)) for _ in features]
    unary = random.random((6, 203)).astype(np.float32)

    def solved(backend):
        pairs = zip(features, matrices, strict=True)
        return mean_field(unary, [Pairwise(Lattice(one, backend=backend), matrix) for one, matrix in pairs], 5)

    assert np.abs(solved("cuda") - solved("reference")).max() <= 1e-5


def test_twenty_runs_on_several_threads_give_the_same_bits(door, photo):
    for labels in [3, 21]:
        door.workers = 4
        unary = smooth_unary(labels, 60, 80)
        once = dense_crf(photo[:60, :80], unary, iterations=3, backend="cuda")
        for _ in range(20):
            assert np.array_equal(once, dense_crf(photo[:60, :80], unary, iterations=3, backend="cuda"))


def test_vertices_are_numbered_as_points_touch_them(door, photo):
    door.workers = 5
    sizes = [(40, 50), (31, 27), (60, 80)]
    images = [torch.from_numpy(photo[:h, :w].copy()) for h, w in sizes]
    batch = cuda.Batch(door, [h * w for h, w in sizes], [w for _, w in sizes])
    for _ in range(5):
        mesh = cuda.build(batch, cuda.image_features(images, 50, 50, [5, 5, 5]))
        numbers = mesh.vertices.T.reshape(-1).numpy()  # in the order of points, then of remainders
        highest = np.maximum.accumulate(np.concatenate([[-1], numbers[:-1]]))
        assert (numbers <= highest + 1).all()
        assert numbers.max() + 1 == mesh.count
        kinds = [mesh.vertices[:, first : first + n] for first, n in zip(batch.firsts, batch.padded, strict=True)]
        assert all(int(a.max()) < int(b.min()) for a, b in itertools.pairwise(kinds))


def test_an_answer_does_not_depend_on_its_batch(door, photo):
    door.workers = 3
    images, unaries = batch_of(photo)
    alone = [dense_crf(*pair, iterations=3, backend="cuda") for pair in zip(images, unaries, strict=True)]
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(images))[: len(images) - seed]
        answers = dense_crf([images[i] for i in order], [unaries[i] for i in order], iterations=3, backend="cuda")
        for i, answer in zip(order, answers, strict=True):
            assert np.array_equal(answer, alone[i])
    assert (alone[1][2, 5] == 0).all()


def test_a_batch_takes_as_many_launches_as_a_picture(door, photo):
    unary = smooth_unary(3, 40, 50)

    def launches(count):
        door.launched.clear()
        dense_crf([photo[:40, :50]] * count, [unary] * count, backend="cuda")
        return [kernel for kernel, *_ in door.launched]

    assert launches(1) == launches(5)


def test_iterations_do_not_wait_for_the_gpu(door, photo, monkeypatch):
    iterate = cuda.MeanField.iterate

    def refuse(*arguments, **options):
        raise AssertionError("waits for the device")

    def watched(*arguments):
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "nonzero"):
                patch.setattr(torch.Tensor, name, refuse)
            iterate(*arguments)

    monkeypatch.setattr(cuda.MeanField, "iterate", watched)
    for labels, compat in ((2, 10), (3, 10), (21, 10), (3, -10 * np.eye(3))):
        dense_crf(photo[:20, :30], smooth_unary(labels, 20, 30), bilateral=(50, 5, compat), backend="cuda")


def test_a_flat_picture_is_summed_in_pieces(door):
    for workers in [1, 5]:
        door.workers = workers
        image = np.full((150, 200, 3), 90, np.uint8)
        lattice = Lattice.of_image(image, 1000, 5, [5, 5, 5], backend="cuda")
        mesh = lattice.handle.lattices
        assert mesh.count < 300
        assert len(mesh.levels) == 3  # from thousands of points to hundreds of sums, to a few, to one
        values = np.random.default_rng(0).random((2, 30000)).astype(np.float32)
        expected = reference.Lattice.build(reference.bilateral_features(image, 1000, 5, [5, 5, 5])).filter(
            values.astype(np.float64)
        )
        assert np.abs(lattice.filter(values) / expected - 1).max() <= 1e-5
        assert all(len(level.begins) == level.count for level in mesh.levels)
        assert max(int((level.ends - level.begins).max()) for level in mesh.levels) <= cuda.CHUNK


def test_a_table_that_is_too_full_is_replaced(door):
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
    lattice = Lattice.of_image(noise, 0.1, 0.1, [0.1] * 3, backend="cuda")  # every point has six vertices of its own
    assert [kernel for kernel, *_ in door.launched].count("insert_entries") == 2
    assert lattice.handle.vertices == 6 * 60 * 70
    same_lattice(
        lattice.handle.lattices, reference.Lattice.build(reference.bilateral_features(noise, 0.1, 0.1, [0.1] * 3))
    )


def test_several_unaries_in_one_pass_equal_one_by_one(door, photo):
    for labels in [2, 3, 4, 5, 21]:
        crf = DenseCRF(photo[:40, :50], backend="cuda")
        unaries = [smooth_unary(labels, 40, 50, seed) for seed in range(3)]
        for together, unary in zip(crf.marginals(unaries, 4), unaries, strict=True):
            assert np.array_equal(together, crf.marginals(unary, 4))
        for best, unary in zip(crf.labels(unaries, 4), unaries, strict=True):
            assert best.dtype == np.int32
            assert np.array_equal(best, crf.marginals(unary, 4).argmax(0))


def test_a_crf_keeps_its_lattices(door, photo):
    crf = DenseCRF(photo[:40, :50], backend="cuda")
    crf.marginals(smooth_unary(3, 40, 50), 2)
    door.launched.clear()
    crf.marginals(smooth_unary(4, 40, 50), 2)
    assert not [kernel for kernel, *_ in door.launched if kernel.startswith(("embed", "insert"))]


def test_refined_seeds_of_a_batch_equal_one_by_one(door):
    case = np.load(GOLDEN / "amn" / "merge_cam.npz")
    image, scores = case["image"], case["high_res"]
    images = [image, image[:50, :60], image[20:61, 10:70], image[:30, :30]]
    activations = [scores, scores[:1, :50, :60], scores[:, 20:61, 10:70].astype(np.float64), scores[:0, :30, :30]]
    keys = [[4, 15], [4], np.array([15, 4], np.uint8), []]
    call = {"fg": 0.3, "bg": 0.05}
    together = refine_seed(images, activations, keys, backend="cuda", **call)
    names = [kernel for kernel, *_ in door.launched]
    for i, seed in enumerate(together):
        assert np.array_equal(seed, refine_seed(images[i], activations[i], keys[i], backend="cuda", **call))
    assert names.count("give_answer") == 2  # one for each number of labels, both maps at once
    for ours, cpu in zip(together, refine_seed(images, activations, keys, threads=2, **call), strict=True):
        assert np.array_equal(ours, cpu)
    with pytest.raises(InputError, match="expected one for each image"):
        refine_seed(images, activations[:2], keys, backend="cuda", **call)


def test_pruning_keeps_the_most_probable_labels(tensors_are_on_gpu, photo):
    for tensors in [False, True]:
        unary = np.full((21, 40, 50), 9.0, np.float32)
        unary[::2] = smooth_unary(11, 40, 50)
        given = torch.from_numpy(unary) if tensors else unary
        pruned = np.asarray(dense_crf(photo[:40, :50], given, prune=1e-3, backend="cuda"))
        assert (pruned[1::2] == 0).all()
        assert np.array_equal(pruned[::2], dense_crf(photo[:40, :50], unary[::2], backend="cuda"))
        crf = DenseCRF(photo[:40, :50], backend="cuda")
        assert np.array_equal(np.asarray(crf.labels(given, prune=1e-3)), pruned.argmax(0))
        assert np.array_equal(np.asarray(crf.marginals(given, prune=1e-3)), pruned)
        with pytest.raises(InputError, match="Potts"):
            dense_crf(photo[:40, :50], given, prune=1e-3, bilateral=(50, 5, [1.0] * 21), backend="cuda")


def test_bad_values_are_refused_as_by_the_reference(door):
    for name, call in refusals():
        messages = set()
        for backend in ("reference", "cuda"):
            with pytest.raises(InputError, match="expected") as caught:
                call(backend)
            messages.add(str(caught.value))
        assert len(messages) == 1, (name, messages)


def test_large_energies_equal_the_reference(door, photo):
    for labels, scale in itertools.product((2, 3, 7), (2000, 1e10, 3e37)):
        unary = np.random.default_rng(labels).normal(size=(labels, 9, 8)) * scale
        unary[0, 3, 3] = np.inf
        expected = dense_crf(photo[:9, :8], unary, iterations=3, backend="reference")
        assert np.abs(dense_crf(photo[:9, :8], unary, iterations=3, backend="cuda") - expected).max() <= 2e-5
