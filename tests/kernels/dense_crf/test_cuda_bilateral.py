"""The bilateral filter's GPU path, forward and backward, on the emulator."""

import pytest

torch = pytest.importorskip("torch")

import modern_cases  # noqa: E402

from amn_fast.errors import InputError  # noqa: E402
from amn_fast.ops.bilateral_filter import _bilateral_filter  # noqa: E402


def test_batch_and_gradient_equal_the_reference(tensors_are_on_gpu):
    image = modern_cases.images("cat", "pot")[..., :25, :30]
    answers = []
    for backend in ("reference", "cuda"):
        values = modern_cases.maps("cat_k3", "pot_k3")[..., :25, :30].clone().requires_grad_()
        out = _bilateral_filter(image, values, 15.0, 50.0, False, backend)
        out.square().sum().backward()
        answers.append((out.detach(), values.grad))
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    for bad in ((image * float("nan"), values.detach()), (image, values.detach() / 0)):
        with pytest.raises(InputError, match=r"NaN(,| or) infinity"):
            _bilateral_filter(*bad, 15.0, 50.0, False, "cuda")
