"""IRN's function under its published name: recorded answers, published shape, no layout restriction."""

from pathlib import Path

import numpy as np
import pytest

from case_table import each

torch = pytest.importorskip("torch")

from amn_fast import dense_crf, unary_from_labels, unary_from_softmax  # noqa: E402
from amn_fast.compat.irn import crf_inference, crf_inference_label, propagate_to_edge  # noqa: E402
from amn_fast.errors import InputError  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "amn"


@each({"case": ["walk_small", "walk_radius10"]})
def test_recorded_answers_in_the_published_shape(case):
    golden = np.load(GOLDEN / f"{case}.npz")
    x, edge = torch.from_numpy(golden["x"]), torch.from_numpy(golden["edge"])
    found = propagate_to_edge(x, edge, int(golden["radius"]), int(golden["beta"]), int(golden["exp_times"]))
    exact = golden["rw_exact"]
    assert found.shape == (len(x), 1, *x.shape[1:])
    assert np.abs(found[:, 0].numpy() - exact).max() < 5e-6 * exact.max()


def test_views_and_defaults():
    x, edge = torch.rand(20, 3, 10).transpose(0, 1), torch.rand(1, 20, 10)
    torch.testing.assert_close(
        propagate_to_edge(x, edge), propagate_to_edge(x.contiguous(), edge, radius=5, beta=10, exp_times=8)
    )


def test_defaults_are_the_published_ones():
    x, edge = torch.rand(2, 8, 9), torch.rand(1, 8, 9)
    torch.testing.assert_close(propagate_to_edge(x, edge), propagate_to_edge(x, edge, 5, 10, 8), rtol=0, atol=0)


def test_the_crf_functions_are_the_dense_crf_with_irns_settings():
    rng = np.random.default_rng(0)
    img = rng.integers(0, 256, (20, 24, 3), np.uint8)
    labels = np.kron(rng.integers(0, 3, (5, 6)), np.ones((4, 4), int))
    found = crf_inference_label(img, labels, 5, 3, 0.6)
    unary = unary_from_labels(labels, 3, 0.6, zero_unsure=False)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, dense_crf(img, unary, iterations=5).argmax(0))
    probs = rng.dirichlet(np.ones(3), (20, 24)).transpose(2, 0, 1).astype(np.float32)
    marginals = crf_inference(img, probs, 4, scale_factor=2, labels=3)
    expected = dense_crf(img, unary_from_softmax(probs), gaussian=(1.5, 3), bilateral=(40, 13, 10), iterations=4)
    np.testing.assert_array_equal(marginals, expected)
    for bad, message in (({"labels": 4}, "probs have shape"), ({"labels": 3, "scale_factor": 0}, "scale_factor is 0")):
        with pytest.raises(InputError, match=f"^{message}"):
            crf_inference(img, probs, **bad)
