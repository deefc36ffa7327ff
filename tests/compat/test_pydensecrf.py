"""amn_fast.compat.pydensecrf against pydensecrf's recorded answers, and clear errors where pydensecrf crashed."""

import json
import os
import platform
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from amn_fast.compat import pydensecrf
from amn_fast.compat.pydensecrf import densecrf as dcrf
from amn_fast.compat.pydensecrf import utils
from amn_fast.compat.run_script import SHIM
from amn_fast.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDER = runpy.run_path(str(Path(__file__).with_name("record_pydensecrf.py")))
RECORDED = np.load(GOLDEN / "compat" / "pydensecrf.npz", allow_pickle=False)
H, W = 18, 23


@pytest.fixture(scope="module")
def marginals():
    return RECORDER["marginals"](dcrf, utils)


@pytest.fixture
def random():
    return np.random.RandomState(3)


@pytest.fixture
def image(random):
    return RECORDER["photo"](random, H, W)


@pytest.fixture
def unary(random):
    return utils.unary_from_softmax(RECORDER["probabilities"](random, 3, H, W))


def crf_of(unary, image, sxy=50, srgb=5, compat=10, cls=dcrf.DenseCRF2D):
    d = cls(W, H, len(unary))
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image, compat=compat)
    return d


# Recorded answers


def test_inference_gives_the_recorded_answers(marginals):
    assert {name for name in RECORDED.files if not name.startswith("utils_")} == set(marginals)
    for name, answer in marginals.items():
        ours, recorded = np.asarray(answer), RECORDED[name]
        assert ours.shape == recorded.shape, name
        if recorded.ndim:
            assert ours.dtype == np.float32, name
            assert np.abs(ours - recorded).max() <= 1e-4, name
            assert (ours.argmax(0) == recorded.argmax(0)).all(), name
            assert np.abs(ours.sum(0, dtype=np.float64) - 1).max() <= 1e-6, name
        else:
            assert ours == pytest.approx(float(recorded), abs=1e-4), name


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_helpers_give_the_recorded_answers_bit_for_bit():
    ours = RECORDER["helpers"](utils)
    assert {f"utils_{name}" for name in ours} == {name for name in RECORDED.files if name.startswith("utils_")}
    for name, value in ours.items():
        recorded = RECORDED[f"utils_{name}"]
        assert value.dtype == recorded.dtype, name
        if platform.machine() == "x86_64" or value.dtype.kind != "f":
            assert np.array_equal(value, recorded), name
        else:  # NumPy's logarithm of single precision differs in the last bit elsewhere
            np.testing.assert_array_max_ulp(value, recorded, maxulp=4)


def test_pictures_give_the_recorded_answers():
    for name in ("anisotropic", "bilateral_only", "irn_2labels", "psa_softmax"):  # tests/ops has them all
        case = np.load(GOLDEN / "crf" / f"{name}.npz", allow_pickle=False)
        call = json.loads(str(case["call"]))
        d = dcrf.DenseCRF2D(call["w"], call["h"], call["labels"])
        if call["unary"] == "softmax":
            d.setUnaryEnergy(utils.unary_from_softmax(case["softmax"]))
        else:
            d.setUnaryEnergy(
                utils.unary_from_labels(case["labels"], call["labels"], call["gt_prob"], zero_unsure=False)
            )
        if call["gaussian"]:
            d.addPairwiseGaussian(*call["gaussian"])
        if call["bilateral"]:
            sxy, srgb, compat = call["bilateral"]
            d.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=case["image"], compat=compat)
        Q = np.array(d.inference(call["iterations"]))
        if "q" in case:
            assert np.abs(Q - case["q"]).max() <= 1e-4
            assert (Q.argmax(0) == case["q"].argmax(0)).all()
        else:
            assert np.abs(Q[:, ::97] - case["q_every_97th"]).max() <= 1e-4
            assert (Q.argmax(0) == case["argmax"]).all()


def test_features_give_the_recorded_answers():
    for name in ["features_1d", "features_3d", "features_6d", "grey_features", "volume_gaussian"]:
        case = np.load(GOLDEN / "crf" / f"{name}.npz", allow_pickle=False)
        call, features = json.loads(str(case["call"])), case["features"]
        if name == "grey_features":
            made = utils.create_pairwise_bilateral(call["sdims"], call["schan"], case["image"], call["chdim"])
            assert np.array_equal(made, features)
        if name == "volume_gaussian":
            assert np.array_equal(utils.create_pairwise_gaussian(call["sdims"], case["labels"].shape), features)
        d = dcrf.DenseCRF(features.shape[1], call["labels"])
        d.setUnaryEnergy(utils.unary_from_labels(case["labels"], call["labels"], call["gt_prob"], zero_unsure=False))
        d.addPairwiseEnergy(features, compat=call["compat"])
        Q = d.inference(call["iterations"])
        assert np.abs(Q - case["q"]).max() <= 1e-4
        assert (np.argmax(Q, 0) == case["q"].argmax(0)).all()


# The interface


def test_names_and_values_are_pydensecrfs():
    kernels = [("CONST_KERNEL", 0), ("DIAG_KERNEL", 1), ("FULL_KERNEL", 2)]
    normalizations = ["NO_NORMALIZATION", "NORMALIZE_BEFORE", "NORMALIZE_AFTER", "NORMALIZE_SYMMETRIC"]
    for name, value in kernels:
        assert getattr(dcrf, name) is dcrf.KernelType[name]
        assert getattr(dcrf, name) == value
    for value, name in enumerate(normalizations):
        assert getattr(dcrf, name) is dcrf.NormalizationType[name]
        assert getattr(dcrf, name) == value
    matrix = pydensecrf.eigen.matrixXf([[1, 2], [3, 4]])
    assert matrix.dtype == np.float32
    with pytest.raises(InputError, match="expected 1 dimensions"):
        pydensecrf.eigen.vectorXf(matrix)


def test_marginals_are_an_array_and_behave_like_the_original_ones(unary, image):
    Q = crf_of(unary, image).inference(3)
    assert Q.shape == (3, H * W)
    assert len(Q) == 3
    assert np.argmax(Q, axis=0).reshape(H, W).shape == (H, W)
    copy, view = np.array(Q), np.asarray(Q)
    view[0] = 5
    assert (Q[0] == 5).all()
    assert (copy[0] < 5).all()
    assert memoryview(Q).shape == Q.shape


def test_positional_keyword_and_whole_number_arguments(unary, image):
    expected = crf_of(unary, image).inference(2)
    d = dcrf.DenseCRF2D(float(W), np.int64(H), 3)
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian((3, 3), 3, dcrf.DIAG_KERNEL, dcrf.NORMALIZE_SYMMETRIC)
    d.addPairwiseBilateral(np.array([50, 50]), [5], image, np.float32(10), 1, 3)
    assert np.array_equal(d.inference(2.0), expected)


def test_single_steps_equal_inference_bit_for_bit(unary, image):
    d = crf_of(unary, image)
    Q, tmp1, tmp2 = d.startInference()
    divergences = []
    for count in range(6):
        assert np.array_equal(Q, d.inference(count))
        divergences.append(d.klDivergence(Q))
        assert d.stepInference(Q, tmp1, tmp2) is None
    assert divergences[-1] < divergences[0]


def test_the_unary_is_copied(unary, image):
    given = unary.copy()
    expected = crf_of(unary, image).inference(2)
    d, const = crf_of(given, image), dcrf.ConstUnary(given)
    given[:] = 0
    assert np.array_equal(d.inference(2), expected)
    d.setUnary(const)
    assert np.array_equal(d.inference(2), expected)


def test_a_unary_object_serves_several_crfs(unary, image):
    const = dcrf.ConstUnary(unary)
    for _ in range(2):
        d = crf_of(unary * 0, image)
        d.setUnary(const)
        assert np.array_equal(d.inference(2), crf_of(unary, image).inference(2))


def test_logistic_unary_is_the_product(unary, image, random):
    weights, features = random.rand(3, 4).astype("f"), random.rand(4, H * W).astype("f")
    expected = crf_of(weights @ features, image).inference(2)
    d = crf_of(unary, image)
    d.setUnary(dcrf.LogisticUnary(weights, features))
    assert np.array_equal(d.inference(2), expected)
    d.setUnaryEnergy(weights, features)
    assert np.array_equal(d.inference(2), expected)


def test_a_subclass_works(unary, image):
    class Mine(dcrf.DenseCRF2D):
        def __init__(self, w, h, n, note="mine"):
            super().__init__(w, h, n)
            self.note = note

    d = crf_of(unary, image, cls=Mine)
    assert d.note == "mine"
    assert np.array_equal(d.inference(2), crf_of(unary, image).inference(2))


def test_unaries_of_any_layout_are_taken(unary, image):
    for as_given in ["float64", "float16", "fortran", "sliced", "read_only", "grid", "list"]:
        unary = unary.astype(np.float16).astype(np.float32)
        expected = crf_of(unary, image).inference(3)
        frozen = unary.copy()
        frozen.flags.writeable = False
        given = {
            "float64": unary.astype(np.float64),
            "float16": unary.astype(np.float16),
            "fortran": np.asfortranarray(unary),
            "sliced": np.repeat(unary, 2, axis=1)[:, ::2],
            "read_only": frozen,
            "grid": unary.reshape(3, H, W),
            "list": unary.tolist(),
        }[as_given]
        assert np.array_equal(crf_of(given, image).inference(3), expected)


def test_images_of_any_layout_are_taken(unary, image):
    for as_given in ["flipped", "transposed", "read_only", "bgr"]:
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        frozen = image.copy()
        frozen.flags.writeable = False
        given = {
            "flipped": image[:, ::-1],
            "transposed": planes.transpose(1, 2, 0),
            "read_only": frozen,
            "bgr": image[..., ::-1],
        }[as_given]
        assert not given.flags.c_contiguous or not given.flags.writeable
        assert np.array_equal(
            crf_of(unary, given).inference(3), crf_of(unary, np.array(given, order="C", copy=True)).inference(3)
        )


def test_pillow_images_are_taken(unary, image):
    Image = pytest.importorskip("PIL.Image")
    expected = crf_of(unary, image).inference(3)
    assert np.array_equal(crf_of(unary, Image.fromarray(image)).inference(3), expected)
    assert np.array_equal(crf_of(unary, np.asarray(Image.fromarray(image))).inference(3), expected)


def test_tensors_are_taken(unary, image):
    torch = pytest.importorskip("torch")
    expected = crf_of(unary, image).inference(3)
    tensor = torch.from_numpy(unary.copy())
    assert np.array_equal(crf_of(tensor, torch.from_numpy(image)).inference(3), expected)
    with pytest.raises(InputError, match=r"u is a tensor that requires.*detach"):
        crf_of(tensor.requires_grad_(), image)


def test_the_same_call_gives_the_same_bits_also_in_python_threads(unary, image):
    expected = crf_of(unary, image).inference(5)
    shared = crf_of(unary, image)
    with ThreadPoolExecutor(4) as pool:
        own = list(pool.map(lambda _: crf_of(unary, image).inference(5), range(20)))
        one = list(pool.map(lambda _: shared.inference(5), range(20)))
    assert all(np.array_equal(Q, expected) for Q in own + one)


def test_a_multiple_of_minus_identity_equals_the_scalar_bit_for_bit(unary, image):
    expected = crf_of(unary, image, compat=4).inference(4)
    for compat in (-4 * np.eye(3), np.full(3, -4.0), -4 * np.eye(3, dtype=np.float32), [-4, -4, -4], np.array(4)):
        assert np.array_equal(crf_of(unary, image, compat=compat).inference(4), expected)
    assert not np.array_equal(crf_of(unary, image, compat=4 * np.eye(3)).inference(4), expected)


def test_turned_pictures_agree_but_for_the_lattices_noise(random):
    for turn in ["flip", "transpose", "bgr"]:
        image = (random.rand(40, 50, 3) * 256).astype(np.uint8)
        y, x = np.mgrid[:40, :50]
        given = (x + 5 * np.sin(y / 4) > 20).astype(int) + ((x - 35) ** 2 + (y - 15) ** 2 < 80)

        def labels(image, given):
            h, w = given.shape
            d = dcrf.DenseCRF2D(w, h, 3)
            d.setUnaryEnergy(utils.unary_from_labels(given, 3, 0.7, zero_unsure=False))
            d.addPairwiseGaussian(3, 3)
            d.addPairwiseBilateral(50, 5, image, 10)
            return d.inference(10).argmax(0).reshape(h, w)

        expected = labels(image, given)
        assert (expected != given).any()
        if turn == "flip":
            turned = labels(image[:, ::-1], given[:, ::-1])[:, ::-1]
        elif turn == "transpose":
            turned = labels(image.transpose(1, 0, 2), given.T).T
        else:
            turned = labels(image[..., ::-1], given)
        assert (turned == expected).mean() >= 0.99


# utils


def test_labels_of_any_whole_type_equal_the_int64_ones(random):
    labels = random.randint(0, 4, (6, 7))
    expected = utils.unary_from_labels(labels, 3, 0.7)
    for kind in ("u1", "i1", "u2", "i4"):
        assert np.array_equal(utils.unary_from_labels(labels.astype(kind), 3, 0.7), expected)
    assert np.array_equal(utils.unary_from_labels(labels.tolist(), 3, 0.7), expected)


def test_ignored_labels_are_uniform():
    unary = utils.unary_from_labels(np.array([0, 255, 1], np.uint8), 2, 0.7, zero_unsure=False, ignore_label=255)
    assert np.allclose(unary[:, 1], np.log(2))
    assert unary[0, 0] < unary[1, 0]


def test_old_names_log_a_warning(caplog):
    utils.compute_unary(np.array([0, 1, 2]), 2)
    utils.softmax_to_unary(np.full((2, 3), 0.5))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_helpers_name_what_is_wrong():
    for call, message in [
        (lambda: utils.unary_from_labels(np.array([0, 255]), 2, 0.7, zero_unsure=False), "labels run from 0 to 255"),
        (lambda: utils.unary_from_labels(np.array([0, 3]), 3, 0.7, zero_unsure=False), "labels run from 0 to 3"),
        (lambda: utils.unary_from_labels(np.array([-1, 0]), 3, 0.7, zero_unsure=False), "labels run from -1"),
        (lambda: utils.unary_from_labels(np.array([0.0, 1.0]), 2, 0.7), "labels are float64"),
        (lambda: utils.unary_from_labels(np.array([0, 1]), 1, 0.7), "n_labels is 1"),
        (lambda: utils.unary_from_labels(np.array([0, 1]), 2, 1.0), "gt_prob is 1.0"),
        (lambda: utils.unary_from_softmax(np.array([[np.nan], [1]])), "softmax holds NaN"),
        (lambda: utils.unary_from_softmax(np.array([[-0.5], [1]]), clip=None), "negative"),
        (lambda: utils.unary_from_softmax(np.array([[0.5], [0.5]]), scale=1.5), "scale is 1.5"),
        (lambda: utils.create_pairwise_gaussian((0, 1), (2, 3)), "sdims is"),
        (lambda: utils.create_pairwise_gaussian((1,), (2, 3)), "sdims has 1 numbers, expected 2"),
        (lambda: utils.create_pairwise_gaussian((1, 2, 3), (2, 3)), "sdims has 3 numbers"),
        (lambda: utils.create_pairwise_bilateral((1, -1), 3, np.zeros((2, 3), "u1")), "sdims is"),
        (lambda: utils.create_pairwise_bilateral((1, 1), np.nan, np.zeros((2, 3), "u1")), "schan is nan"),
        (lambda: utils.create_pairwise_bilateral((1, 1), (3, 3), np.zeros((2, 3), "u1")), "schan has 2 numbers"),
        (lambda: utils.create_pairwise_bilateral((1, 1), 3, np.zeros((2, 3), "u1"), 2), "chdim is 2"),
        (lambda: utils.create_pairwise_bilateral((1, 1), 3, np.zeros((2, 3), complex)), "img is complex"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


# Clear errors


def test_impossible_sizes_are_named():
    for make, message in [
        (lambda: dcrf.DenseCRF2D(0, 3, 2), "w is 0"),
        (lambda: dcrf.DenseCRF2D(3, -1, 2), "h is -1"),
        (lambda: dcrf.DenseCRF2D(3, 3, 0), "nlabels is 0"),
        (lambda: dcrf.DenseCRF(0, 2), "nvar is 0"),
        (lambda: dcrf.DenseCRF(float("nan"), 2), "nvar is nan"),
        (lambda: dcrf.DenseCRF("12", 2), "nvar is '12'"),
    ]:
        with pytest.raises(InputError, match=message):
            make()


def test_wrong_images_are_named_with_the_remedy():
    for shape, kind, message in [
        ((H, W), "u1", "repeat a grey"),
        ((H, W, 1), "u1", "repeat a grey"),
        ((H, W, 4), "u1", "create_pairwise_bilateral"),
        ((W, H, 3), "u1", "takes the width first"),
        ((3, H, W), "u1", r"transpose\(1, 2, 0\)"),
        ((H, W + 1, 3), "u1", rf"expected \({H}, {W}, 3\)"),
        ((H, W, 3), "f4", "scale and convert"),
        ((H, W, 3), "i4", "scale and convert"),
        ((H, W, 3), "u2", "scale and convert"),
    ]:
        d = dcrf.DenseCRF2D(W, H, 3)
        with pytest.raises(InputError, match=message):
            d.addPairwiseBilateral(50, 5, np.zeros(shape, kind), 10)


def test_wrong_unaries_are_named():
    for shape, message in [
        ((3, H * W - 1), "unary has shape"),
        ((4, H * W), rf"expected \(3, {H * W}\) or \(3, {H}, {W}\)"),
        ((H * W, 3), "transpose it"),
        ((3, W, H), rf"expected \(3, {H * W}\) or \(3, {H}, {W}\)"),
        ((H, W, 3), "unary has shape"),
        ((3 * H * W,), "expected"),
        ((3, 1, H, W), "expected"),
    ]:
        d = dcrf.DenseCRF2D(W, H, 3)
        with pytest.raises(InputError, match=message):
            d.setUnaryEnergy(np.zeros(shape, np.float32))
        assert (d.inference(1) == np.float32(1 / 3)).all()  # nothing was taken


def test_a_volume_checks_the_number_of_points():
    d = dcrf.DenseCRF(4 * 5 * 6, 2)
    d.setUnaryEnergy(np.zeros((2, 20, 6)))
    with pytest.raises(InputError, match=r"expected \(2, 120\)"):
        d.setUnaryEnergy(np.zeros((2, 4 * 5 * 7)))
    with pytest.raises(InputError, match=r"features have shape \(3, 119\), expected \(d, 120\)"):
        d.addPairwiseEnergy(np.zeros((3, 119)), 3)


def test_energies_that_are_no_numbers_are_refused(unary, image):
    for row, value in [(1, np.nan), (1, -np.inf), (slice(None), np.inf)]:
        wrong = unary.copy()
        wrong[row, 7] = value
        d = crf_of(wrong, image)
        for call in (lambda d=d: d.inference(2), d.startInference):
            with pytest.raises(InputError, match="unary holds NaN or -inf"):
                call()


def test_impossible_deviations_are_named(unary, image):
    for sxy, srgb, message in [
        (0, 5, "sxy is 0"),
        ((3, 0), 5, r"sxy\[1\] is 0"),
        (-3, 5, "sxy is -3"),
        (np.nan, 5, "sxy is nan"),
        (np.inf, 5, "sxy is inf"),
        (50, 0, "srgb is 0"),
        (50, (5, 5), "srgb is"),
        (50, -1, "srgb is -1"),
        ("wide", 5, "sxy"),
        (50, 1e-40, "srgb is 1e-40"),
    ]:
        with pytest.raises(InputError, match=message):
            crf_of(unary, image, sxy, srgb)


def finite_marginals_or_error(unary, method, *arguments):
    """The error's text, or "" where there is an answer, which then has to be finite."""
    d = dcrf.DenseCRF2D(W, H, 3)
    d.setUnaryEnergy(unary)
    try:
        getattr(d, method)(*arguments)
    except InputError as error:
        return str(error)
    assert np.isfinite(d.inference(3)).all()
    return ""


def test_tiny_deviations_give_an_answer_or_an_error(unary, random):
    for srgb, refused in [(1e-2, False), (1e-3, False), (1e-6, True), (1e-8, True), (1e-20, True)]:
        noise = (random.rand(H, W, 3) * 256).astype(np.uint8)
        error = finite_marginals_or_error(unary, "addPairwiseBilateral", 50, srgb, noise, 10)
        assert ("sigmas" in error) == refused


def test_wild_features_give_an_answer_or_an_error(unary, random):
    for value, refused in [(1e3, False), (1e5, False), (1e6, True), (3e38, True), (np.nan, True), (np.inf, True)]:
        features = random.rand(3, H * W).astype(np.float32)
        features[1, 5] = value
        error = finite_marginals_or_error(unary, "addPairwiseEnergy", features, 3)
        assert ("features" in error) == refused


def test_wrong_compatibilities_are_named(image):
    for compat, message in [
        (np.eye(2), r"compat has shape \(2, 2\)"),
        (np.ones(2), r"compat has shape \(2,\)"),
        (np.ones((3, 3, 3)), "compat has shape"),
        (np.ones((3, 1)), "compat has shape"),
        (np.nan, "compat holds NaN"),
        (np.full(3, np.inf), "compat holds NaN"),
        ("strong", "compat has dtype"),
        (3 + 1j, "compat has dtype complex"),
        (None, "compat has dtype object"),
    ]:
        for method, *arguments in (
            ("addPairwiseGaussian", 3, compat),
            ("addPairwiseBilateral", 50, 5, image, compat),
            ("addPairwiseEnergy", np.zeros((1, H * W)), compat),
        ):
            with pytest.raises(InputError, match=message):
                getattr(dcrf.DenseCRF2D(W, H, 3), method)(*arguments)


def test_unknown_kernels_and_normalizations_are_named():
    d = dcrf.DenseCRF2D(W, H, 3)
    with pytest.raises(InputError, match="kernel is 7"):
        d.addPairwiseGaussian(3, 3, kernel=7)
    with pytest.raises(InputError, match="normalization is 9"):
        d.addPairwiseGaussian(3, 3, normalization=9)


def test_unary_objects_are_checked(unary, image):
    d = crf_of(unary, image)
    with pytest.raises(InputError, match="unary has shape"):
        d.setUnary(dcrf.ConstUnary(unary[:, :-1]))
    with pytest.raises(InputError, match="u is a ndarray, expected a ConstUnary"):
        d.setUnary(unary)
    with pytest.raises(InputError, match=r"L has shape \(3, 4\) and f \(5, 9\)"):
        dcrf.LogisticUnary(np.ones((3, 4)), np.ones((5, 9)))
    with pytest.raises(InputError, match="expected"):
        dcrf.ConstUnary(np.ones(3))


def test_marginals_handed_in_are_checked(unary, image):
    d = crf_of(unary, image)
    Q, tmp1, tmp2 = d.startInference()
    for call in (lambda q: d.stepInference(q, tmp1, tmp2), d.klDivergence):
        with pytest.raises(InputError, match="Q has shape"):
            call(Q[:, 1:])
        with pytest.raises(InputError, match="Q holds NaN"):
            call(np.full_like(Q, np.nan))
    with pytest.raises(InputError, match="Q is a list"):
        d.stepInference(Q.tolist(), tmp1, tmp2)


def test_huge_pictures_do_not_overflow(monkeypatch):
    for side in (20_000, 50_000):  # w * h of the latter does not fit 32 bits
        d = dcrf.DenseCRF2D(side, side, 3)
        with pytest.raises(InputError, match=rf"expected \(3, {side * side}\)"):
            d.setUnaryEnergy(np.zeros((3, 10), np.float32))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 4096}.__getitem__)
    with pytest.raises(MemoryError, match="inference needs at least"):
        d.inference(1)
    with pytest.raises(MemoryError, match="lattice of 2500000000 points"):
        d.addPairwiseGaussian(3, 3)


# Installing

USER_CODE = """
import pydensecrf.densecrf as dcrf
import pydensecrf.utils as utils
from pydensecrf.densecrf import DenseCRF2D, DIAG_KERNEL
from pydensecrf.utils import unary_from_softmax, create_pairwise_bilateral
import importlib.util, pydensecrf, sys
assert importlib.util.find_spec("pydensecrf") is not None
assert pydensecrf.densecrf is dcrf and dcrf.DenseCRF2D is DenseCRF2D
assert "torch" not in sys.modules
print(DenseCRF2D.__module__, *sys.argv[1:])
"""
CHILDREN = """
import multiprocessing, subprocess, sys
import pydensecrf.densecrf as dcrf

def where(_):
    return dcrf.DenseCRF.__module__

if __name__ == "__main__":
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(pool.map(where, [0])[0])
    code = "import pydensecrf.densecrf as d; print(d.DenseCRF.__module__)"
    print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
"""
OURS = "amn_fast.compat.pydensecrf.densecrf"


def python(*arguments, cwd=None):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120)


def test_install_answers_imports_without_torch():
    code = f"from amn_fast.compat.pydensecrf import install; install(); {USER_CODE.strip()!r} and exec({USER_CODE!r})"
    result = python("-c", code)
    assert result.stdout.split() == [OURS], result.stderr


def test_install_replaces_another_pydensecrf(monkeypatch):
    for name in ("pydensecrf", "pydensecrf.densecrf", "pydensecrf.utils", "pydensecrf.eigen"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    pydensecrf.install()
    import pydensecrf as installed
    import pydensecrf.densecrf as installed_crf

    assert installed is pydensecrf
    assert installed_crf is dcrf


AS_PYTHON = """
import atexit, os, pickle, sys
import pydensecrf
class Thing: pass
atexit.register(lambda: print(len(pickle.dumps(Thing())) > 0))
sys.excepthook = lambda kind, error, trace: print("hook", kind.__name__)
print(__name__, globals().get("__file__"), sys.argv, sys.path[0], "amn_fast" in pydensecrf.__file__)
raise ValueError
"""


def test_shim_runs_a_program_as_python_would(tmp_path, monkeypatch):
    """Scripts, modules, folders, standard input, compared with Python itself, which finds the stand-in by its path."""
    monkeypatch.chdir(tmp_path)
    for folder in ("package", "folder"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__main__.py").write_text(AS_PYTHON)
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "user.py").write_text(AS_PYTHON)
    plain = {**os.environ, "PYTHONPATH": str(SHIM)}
    for program in (
        ["user.py", "--help", "a b"],
        ["-m", "package", "-x"],
        ["folder", "1"],
        ["-", "x"],
        ["-c", AS_PYTHON],
    ):
        options = {"input": AS_PYTHON, "capture_output": True, "text": True, "check": False}
        expected = subprocess.run([sys.executable, *program], env=plain, **options)
        ours = subprocess.run([sys.executable, "-m", "amn_fast", "shim", *program], **options)
        assert "True" in expected.stdout, expected.stderr
        assert (ours.returncode, ours.stdout) == (expected.returncode, expected.stdout), (program, ours.stderr)


def test_shim_reaches_child_processes(tmp_path):
    script = tmp_path / "user.py"
    script.write_text(CHILDREN)
    result = python("-m", "amn_fast", "shim", str(script))
    assert result.stdout.split() == [OURS] * 3, result.stderr


def test_shim_shows_the_scripts_traceback_and_names_a_missing_script(tmp_path):
    script = tmp_path / "user.py"
    script.write_text("import pydensecrf.densecrf as dcrf\ndcrf.DenseCRF2D(0, 1, 2)\n")
    result = python("-m", "amn_fast", "shim", str(script))
    assert result.returncode == 1
    assert 'user.py", line 2' in result.stderr
    assert "w is 0" in result.stderr
    result = python("-m", "amn_fast", "shim", str(tmp_path / "none.py"))
    assert result.returncode == 1
    assert "none.py: there is no such script" in result.stderr


def test_shim_works_without_the_command_lines_dependencies(tmp_path):
    script = tmp_path / "user.py"
    script.write_text(USER_CODE)
    hide = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "hidden = ('typer', 'rich', 'pydantic', 'yaml', 'PIL', 'torch')\n"
        "u.find_spec = lambda name, *rest: None if name in hidden else find(name, *rest)\n"
        "for name in hidden: sys.modules[name] = None\n"
        "sys.argv = ['amn-fast', 'shim', *sys.argv[1:]]\n"
        "from amn_fast.__main__ import main; main()"
    )
    script.write_text(USER_CODE.replace('assert "torch" not in sys.modules', ""))
    result = python("-c", hide, str(script), "one")
    assert result.stdout.split() == [OURS, "one"], result.stderr
    result = python("-c", hide, str(tmp_path / "none.py"))
    assert result.returncode == 1
    assert "there is no such script" in result.stderr
