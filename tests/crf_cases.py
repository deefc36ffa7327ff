"""The dense CRF's recorded answers, and what every backend is held to on them."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from amn_fast._native import native
from amn_fast.ops.dense_crf import dense_crf, unary_from_labels, unary_from_softmax
from amn_fast.ops.lattice import Lattice
from amn_fast.ops.mean_field import Pairwise, mean_field
from amn_fast.ops.refine_seed import refine_seed

GOLDEN = Path(__file__).parent / "golden"
FEATURE_CASES = ("features_1d", "features_3d", "features_6d", "grey_features", "volume_gaussian")
IMAGE_CASES = sorted(
    path.stem for path in (GOLDEN / "crf").glob("*.npz") if path.stem not in ("steps_kl", "unaries", *FEATURE_CASES)
)
BACKENDS = ["reference", *(["cpu"] if native is not None else [])]
cpu = pytest.mark.skipif(native is None, reason="kernels not built")


def close(ours, reference, tolerance=1e-4):
    assert np.isfinite(ours).all()
    assert np.abs(ours - reference).max() <= tolerance


def reference_of(image, unary):
    return dense_crf(image, unary, backend="reference")


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
    """Energies of blobs: random numbers on a coarse grid, upsampled."""
    coarse = np.random.default_rng(seed).random((labels, -(-height // 8), -(-width // 8)))
    return (4 * coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]).astype(np.float32)


NUMBERS = {"(0, inf)": [0, -1, np.nan, np.inf], "(0, 1)": [0, 1, 1.5, -0.2, np.nan], "[0, 1)": [1, -0.1, np.nan]}
NOT_NUMBERS = ["3", None, [], {}, 1j, True]


def refusals():
    """(description, call): calls of every public function with one bad value each; call(backend) must raise InputError.

    The table of valid values of the dense CRF, from which the tests of all backends are made.
    """
    image, unary = np.zeros((8, 9, 3), np.uint8), np.zeros((3, 8, 9), np.float32)
    scores, features, pair = np.full((1, 8, 9), 0.5), np.zeros((3, 20), np.float32), np.zeros((2, 20))

    def crf(backend, image=image, unary=unary, **settings):
        dense_crf(image, unary, backend=backend, **settings)

    def seed(backend, image=image, activations=scores, keys=(1,), fg=0.3, bg=0.05, **settings):
        refine_seed(image, activations, keys, fg=fg, bg=bg, backend=backend, **settings)

    def grid(backend, height=8, width=9, sx=1.0, sy=1.0, **settings):
        Lattice.of_grid(height, width, sx, sy, backend=backend, **settings)

    def pixels(backend, image=image, sx=1.0, sy=1.0, colours=(5, 5, 5)):
        Lattice.of_image(image, sx, sy, colours, backend=backend)

    def lattice(backend, features=features, **settings):
        Lattice(features, backend=backend, **settings)

    def filtered(backend, values=pair, **settings):
        Lattice(features, backend=backend).filter(values, **settings)

    def field(backend, unary=pair, iterations=1, compat=1.0, normalization="symmetric", **settings):
        terms = [Pairwise(Lattice(features, backend=backend), compat, normalization)]
        mean_field(unary, terms, iterations, **settings)

    sigma, integer = NUMBERS["(0, inf)"] + NOT_NUMBERS, [1.5, np.nan, *NOT_NUMBERS]
    compat = [np.nan, np.inf, 1e21, "3", None, 1j, [1.0, 2.0], np.eye(2), [[[1.0]]]]
    images = [np.zeros(shape, np.uint8) for shape in [(8, 9), (8, 9, 1), (8, 9, 4), (0, 9, 3), (8, 0, 3)]]
    images += [np.zeros((8, 9, 3), kind) for kind in (np.float32, np.int32, np.uint16, bool, complex, object)]
    energies = [np.zeros(shape) for shape in [(3, 8, 8), (3, 72), (0, 8, 9), (8, 9)]]
    energies += [np.full((3, 8, 9), value) for value in (np.nan, -np.inf, np.inf)] + [np.zeros((3, 8, 9), complex), "u"]
    table = [
        (crf, "image", images),
        (crf, "unary", energies),
        (
            crf,
            "gaussian",
            [3, (3,), (3, 3, 3), "33", *[(one, 3) for one in [*sigma, (1, 2, 3)]], *[(3, c) for c in compat]],
        ),
        (
            crf,
            "bilateral",
            [(50, 5), *[(50, one, 10) for one in [*sigma, (5, 5), 1e-8]], *[(50, 5, c) for c in compat]],
        ),
        (crf, "iterations", integer),
        (crf, "normalization", ["both", 1, None, []]),
        (crf, "prune", NUMBERS["[0, 1)"] + NOT_NUMBERS),
        (crf, "threads", [0, -1, 1.5, "2", True]),
        (seed, "image", images),
        (seed, "activations", [np.zeros((1, 8, 8)), np.zeros((8, 9)), np.full((1, 8, 9), np.nan), "a"]),
        (seed, "keys", [[1, 2], [255], [0], [1.5], ["a"], None]),
        (seed, "fg", [np.nan, np.inf, *NOT_NUMBERS]),
        (seed, "bg", [np.nan, np.inf, *NOT_NUMBERS]),
        (seed, "gt_prob", NUMBERS["(0, 1)"] + NOT_NUMBERS),
        (seed, "gaussian", [(0, 3), (3, np.nan)]),
        (seed, "bilateral", [(50, 0, 10)]),
        (seed, "iterations", integer),
        (seed, "threads", [0, "2"]),
        (grid, "height", [0, -1, 2**40, 1.5, "8", None]),
        (grid, "width", [0, -1, 2**40, 1.5, "8", None]),
        (grid, "sx", sigma),
        (grid, "sy", sigma),
        (grid, "threads", [0, "2"]),
        (pixels, "image", images),
        (pixels, "sx", sigma),
        (pixels, "colours", [(5, 5), (5, 5, 0), (5, 5, -5), (5, 5, np.nan), (5, 5, "5")]),
        (
            lattice,
            "features",
            [np.zeros(5), np.zeros((0, 5)), np.zeros((33, 5)), np.zeros((3, 0)), np.full((3, 4), np.nan)],
        ),
        (lattice, "features", [np.full((3, 4), 1e9), np.full((3, 4), 1e300), np.zeros((2, 3), complex), "f", None]),
        (lattice, "threads", [0, "2"]),
        (filtered, "values", [np.zeros((2, 19)), np.zeros(20), np.zeros((2, 20), complex), "v"]),
        (filtered, "transpose", [1, "yes", None]),
        (field, "unary", [np.zeros((2, 19)), np.zeros((0, 20)), np.zeros(20), np.full((2, 20), np.nan)]),
        (field, "iterations", integer),
        (field, "start", [np.zeros((2, 19)), np.full((2, 20), np.nan), "s"]),
        (field, "compat", [one for one in compat if np.shape(one) not in ((2,), (2, 2))]),
        (field, "normalization", ["both", 1, None]),
    ]
    for function, name, values in table:
        for value in values:
            yield f"{function.__name__} {name}={value!r:.60}", functools.partial(function, **{name: value})
