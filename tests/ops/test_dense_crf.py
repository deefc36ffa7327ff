import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from amn_fast._native import native
from amn_fast.ops.dense_crf import DenseCRF, dense_crf, refine_seed, unary_from_labels, unary_from_softmax
from amn_fast.ops.lattice import Lattice, Pairwise, kl_divergence, mean_field

GOLDEN = Path(__file__).parents[1] / "golden"
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(native is None, reason="kernels not built"))]
IMAGE_CASES = sorted(
    path.stem
    for path in (GOLDEN / "crf").glob("*.npz")
    if path.stem not in ("steps_kl", "unaries") and not path.stem.startswith(("features_", "grey_", "volume_"))
)
FEATURE_CASES = ["features_1d", "features_3d", "features_6d", "grey_features", "volume_gaussian"]
SLOW_IN_NUMPY = ("coco_full_81labels", "voc_full_21labels", "voc_full_3labels", "irn_21labels")


def load(name):
    case = dict(np.load(GOLDEN / "crf" / f"{name}.npz", allow_pickle=False))
    if "call" in case:
        case["call"] = json.loads(str(case["call"]))
    return case


def unary_of(case):
    call = case["call"]
    if call["unary"] == "softmax":
        return unary_from_softmax(case["softmax"])
    return unary_from_labels(case["labels"], call["labels"], call["gt_prob"], zero_unsure=False)


@pytest.fixture(scope="module")
def photo():
    return np.load(GOLDEN / "amn" / "merge_cam.npz")["image"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", IMAGE_CASES)
def test_marginals_equal_the_recorded_ones(name, backend):
    if backend == "reference" and name in SLOW_IN_NUMPY:
        pytest.skip("minutes in NumPy; the C++ backend is held to this case")
    case = load(name)
    call = case["call"]
    q = dense_crf(
        case["image"],
        unary_of(case),
        gaussian=call["gaussian"],
        bilateral=call["bilateral"],
        iterations=call["iterations"],
        normalization=call["normalization"],
        backend=backend,
    )
    assert q.dtype == np.float32
    assert q.shape == (call["labels"], call["h"], call["w"])
    q = q.reshape(len(q), -1)
    assert np.abs(q.sum(axis=0, dtype=np.float64) - 1).max() <= 1e-6
    if "q" in case:
        expected, labels = case["q"], case["q"].argmax(0)
        assert np.abs(q - expected).max() <= 1e-4
    else:
        labels = case["argmax"]
        assert np.abs(q[:, ::97] - case["q_every_97th"]).max() <= 1e-4
    different = (q.argmax(0) != labels).mean()
    assert different == 0 if name.startswith(("irn", "voc_full", "coco_full")) else different <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FEATURE_CASES)
def test_any_features_equal_the_recorded_answers(name, backend):
    case = load(name)
    call = case["call"]
    unary = unary_from_labels(case["labels"].ravel(), call["labels"], call["gt_prob"], zero_unsure=False)
    terms = [Pairwise(Lattice(case["features"], backend=backend), call["compat"])]
    q = mean_field(unary, terms, call["iterations"])
    assert np.abs(q - case["q"]).max() <= 1e-4
    assert (q.argmax(0) == case["q"].argmax(0)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_steps_equal_inference_and_the_recorded_divergence(backend):
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "fg", "bg"), [("merge_cam", 0.30, 0.05), ("merge_amn", 0.45, 0.15)])
def test_refined_seed_equals_the_recorded_one(name, fg, bg, backend):
    case = np.load(GOLDEN / "amn" / f"{name}.npz")
    activations, expected = case["high_res"], case["refined_seed"]
    if name == "merge_amn":  # its channel 0 is the background's activation, which the refinement leaves out
        activations = activations[1:]
    keys = [4, 15]
    seed = refine_seed(case["image"], activations, keys, fg=fg, bg=bg, backend=backend)
    assert seed.dtype == np.uint8
    assert (seed == expected).all()


def test_import_needs_neither_torch_nor_other_stages():
    code = "import sys, amn_fast.ops.dense_crf; assert not {'torch', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
