"""The CRF-RNN layer: recorded logits and gradients, any batch size, gradients in double precision, errors."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import modern_cases  # noqa: E402

from amn_fast import _native, nn  # noqa: E402
from amn_fast.errors import InputError  # noqa: E402
from amn_fast.ops.crf_layer import crf_layer  # noqa: E402

BACKENDS = ["reference"] if _native.missing else ["reference", "cpu"]
GOLDEN = modern_cases.recorded("crfrnn")
NAMES = {
    "spatial": "spatial_ker_weights",
    "bilateral": "bilateral_ker_weights",
    "compatibility": "compatibility_matrix",
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_recorded_answers(backend):
    """In a batch of two: the other image changes nothing."""
    layer = nn.MeanField(3, 5, alpha=40, beta=13, gamma=3, backend=backend)
    layer.load_state_dict({name: torch.tensor(GOLDEN[key]) for key, name in NAMES.items()})
    unary = ((modern_cases.maps("cat_k3", "pot_k3") * 256 - 128) / 32).requires_grad_()
    logits = layer(modern_cases.images("cat", "pot"), unary)
    np.testing.assert_allclose(logits[:1].detach(), GOLDEN["logits"], rtol=0, atol=1e-5)
    (logits[:1] * modern_cases.maps("pot_k3")).sum().backward()
    found = {key: getattr(layer, name).grad for key, name in NAMES.items()} | {"logits": unary.grad[:1]}
    for key, gradient in found.items():
        expected = GOLDEN[f"grad_{key}"]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=key)
    assert not unary.grad[1].any()


def test_gradients_in_double_precision():
    image = modern_cases.images("cat", "pot")[:, :, :4, :5]
    generator = torch.Generator().manual_seed(2)
    shapes = ((2, 2, 4, 5), (2, 2), (2, 2), (2, 2))
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    rule = {"iterations": 2, "alpha": 20, "beta": 20, "gamma": 2, "backend": "reference"}
    assert torch.autograd.gradcheck(lambda *x: crf_layer(image, *x, **rule), inputs)


def test_bad_input():
    image, logits, eye = torch.rand(1, 3, 6, 5), torch.rand(1, 2, 6, 5), torch.eye(2)
    cases = [
        ((image[0], logits, eye, eye, eye), {}, "image is"),
        ((image, logits[..., 1:], eye, eye, eye), {}, r"logits is \(1, 2, 6, 4\)"),
        ((image, logits.long(), eye, eye, eye), {}, "logits is .*int64"),
        ((image, logits, torch.eye(3), eye, eye), {}, r"spatial is \(3, 3\), expected \(2, 2\)"),
        ((image, logits, eye, eye, eye[:1]), {}, "compatibility is"),
        ((image, logits.to("meta"), eye, eye, eye), {}, "logits on meta"),
        ((image, logits, eye, eye, eye), {"iterations": -1}, "iterations is -1"),
        ((image, logits, eye, eye, eye), {"alpha": 0}, "alpha is 0"),
        ((image * float("nan"), logits, eye, eye, eye), {}, "NaN"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(InputError, match=message):
            crf_layer(*arguments, **options)
    assert torch.equal(crf_layer(image, logits, eye, eye, eye, iterations=0), logits)
