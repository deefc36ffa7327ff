"""amn_fast.compat.pydensecrf against pydensecrf's recorded answers, and its interface."""

import json
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from amn_fast.compat import pydensecrf
from amn_fast.compat.pydensecrf import densecrf as dcrf
from amn_fast.compat.pydensecrf import utils
from amn_fast.errors import InputError
from pydensecrf_cases import RECORDER, H, W, crf_of

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = np.load(GOLDEN / "compat" / "pydensecrf.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def marginals():
    return RECORDER["marginals"](dcrf, utils)


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
