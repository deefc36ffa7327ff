"""The dense CRF's recorded answers, and what every backend is held to on them."""

import json
from pathlib import Path

import numpy as np

from amn_fast.ops.dense_crf import dense_crf, unary_from_labels, unary_from_softmax

GOLDEN = Path(__file__).parent / "golden"
FEATURE_CASES = ("features_1d", "features_3d", "features_6d", "grey_features", "volume_gaussian")
IMAGE_CASES = sorted(
    path.stem for path in (GOLDEN / "crf").glob("*.npz") if path.stem not in ("steps_kl", "unaries", *FEATURE_CASES)
)


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


def answer_to(case, image, unary, backend="auto"):
    """The marginals of a case with the recorded settings."""
    settings = {name: case["call"][name] for name in ("gaussian", "bilateral", "iterations", "normalization")}
    return dense_crf(image, unary, backend=backend, **settings)


def check_marginals(name, case, q):
    """Marginals (labels, H, W) of an image case are the recorded ones; labels equal ones on the seeds' settings."""
    call = case["call"]
    assert q.dtype == np.float32
    assert q.shape == (call["labels"], call["h"], call["w"])
    q = q.reshape(len(q), -1)
    assert np.abs(q.sum(axis=0, dtype=np.float64) - 1).max() <= 1e-6
    if "q" in case:
        assert np.abs(q - case["q"]).max() <= 1e-4
        labels = case["q"].argmax(0)
    else:
        assert np.abs(q[:, ::97] - case["q_every_97th"]).max() <= 1e-4
        labels = case["argmax"]
    different = (q.argmax(0) != labels).mean()
    assert different == 0 if name.startswith(("irn", "voc_full", "coco_full")) else different <= 1e-4


def seed_case(name):
    """Arguments of `refine_seed` for a recorded seed, "merge_cam" or "merge_amn", and the seed."""
    case = np.load(GOLDEN / "amn" / f"{name}.npz")
    # AMN's channel 0 is the background's activation, which the refinement leaves out.
    activations = case["high_res"][1:] if name == "merge_amn" else case["high_res"]
    return (case["image"], activations, [4, 15]), case["refined_seed"]


def smooth_unary(labels, height, width, seed=0):
    """Energies of blobs: random numbers on a coarse grid, enlarged."""
    coarse = np.random.default_rng(seed).random((labels, -(-height // 8), -(-width // 8)))
    return (4 * coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]).astype(np.float32)
