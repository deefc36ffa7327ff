"""The bilateral filter on tensors: recorded answers, transposed gradients, PyTorch's contract, errors."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import modern_cases  # noqa: E402

from amn_fast import _native  # noqa: E402
from amn_fast.errors import BackendError, InputError  # noqa: E402
from amn_fast.ops import bilateral_filter as module  # noqa: E402
from amn_fast.ops.bilateral_filter import bilateral_filter  # noqa: E402

BACKENDS = ["reference"] if _native.missing else ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_recorded_answers(backend):
    golden = modern_cases.recorded("bilateralfilter")
    for key in golden.files:
        names, sigmas = key.split("__")
        parts = names.split("_")
        image = modern_cases.images(*parts[::2])
        values = modern_cases.maps(*("_".join(pair) for pair in zip(parts[::2], parts[1::2], strict=True)))
        found = bilateral_filter(image, values, *map(int, sigmas.split("_")), backend=backend)
        assert np.abs(found.numpy() - golden[key]).max() <= 2e-6 * np.abs(golden[key]).max(), key


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_is_the_transposed_filter(backend):
    image = modern_cases.images("cat", "pot")[:, :, :7, :9].byte()
    values = torch.rand(2, 1, 3, 4, dtype=torch.float64).requires_grad_()
    exact = backend == "reference"  # double precision; the kernel's values are float32, and the filter linear
    tolerance = {} if exact else {"eps": 0.5, "atol": 1e-3, "nondet_tol": 0.0}
    check = lambda x: bilateral_filter(image[:, :, :3, :4], x, 15, 20, backend=backend)  # noqa: E731
    torch.autograd.gradcheck(check, values, **tolerance)
    torch.autograd.gradgradcheck(check, values, **tolerance)
    # The transpose as a matrix, column by column, on one image.
    basis = torch.eye(63).view(63, 1, 7, 9)
    matrix, transposed = (
        module._bilateral_filter(image[:1].float(), basis.view(1, 63, 7, 9), 15.0, 20.0, flag, backend).view(63, 63)
        for flag in (False, True)
    )
    torch.testing.assert_close(matrix, transposed.T, rtol=0, atol=1e-6)
    assert (matrix - transposed).abs().max() > 1e-3


@pytest.mark.skipif(_native.native is None, reason=_native.missing)
def test_pytorch_contract():
    image = modern_cases.images("cat", "pot")[..., :20, :30]
    values = modern_cases.maps("cat_k3", "pot_k3")[..., :20, :30].clone().requires_grad_()
    torch.library.opcheck(module._bilateral_filter, (image, values, 15.0, 50.0, False, "cpu"))

    def step(values):
        out = bilateral_filter(image, values, 15, 50)
        return out, torch.autograd.grad(out.square().sum(), values)[0]

    expected = step(values)
    out = torch.compile(lambda x: bilateral_filter(image, x, 15, 50), fullgraph=True, backend="aot_eager")(values)
    assert torch.equal(out, expected[0])
    assert torch.equal(torch.autograd.grad(out.square().sum(), values)[0], expected[1])
    before = torch.get_num_threads()
    try:
        for count in (2, 3, 16):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(step(values), expected, strict=True))
    finally:
        torch.set_num_threads(before)
    half = bilateral_filter(image, values.detach().half(), 15, 50)
    assert half.dtype == torch.float16
    moved = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(bilateral_filter(moved, values, 15, 50), expected[0])
    assert bilateral_filter(image, values[:, :0], 15, 50).shape == (2, 0, 20, 30)


IMAGE, VALUES = 255 * torch.rand(1, 3, 6, 5), torch.rand(1, 2, 6, 5)
NAN = torch.full((1, 2, 6, 5), float("nan"))
BAD = [
    ((IMAGE[0], VALUES, 15, 50), r"image is \(3, 6, 5\), expected \(B, 3, H, W\)"),
    ((IMAGE[:, :1], VALUES, 15, 50), r"image is \(1, 1, 6, 5\)"),
    ((IMAGE.long(), VALUES, 15, 50), "image is torch.int64"),
    ((IMAGE.clone().requires_grad_(), VALUES, 15, 50), "image requires a gradient"),
    ((IMAGE, VALUES[:, :, :5], 15, 50), r"values is \(1, 2, 5, 5\), expected \(1, K, 6, 5\)"),
    ((IMAGE, VALUES[0], 15, 50), "values is"),
    ((IMAGE, VALUES.long(), 15, 50), "values is torch.int64, expected a floating type"),
    ((IMAGE, VALUES.to("meta"), 15, 50), "values are on meta, expected cpu"),
    ((IMAGE, VALUES, 0, 50), "sigma_rgb is 0"),
    ((IMAGE, VALUES, 15, float("inf")), "sigma_xy is inf"),
    ((IMAGE, NAN, 15, 50), "values hold NaN or infinity"),
    ((IMAGE + NAN[:, :1], VALUES, 15, 50), "hold NaN or infinity"),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_input(backend):
    for arguments, message in BAD:
        with pytest.raises(InputError, match=message):
            bilateral_filter(*arguments, backend=backend)
    with pytest.raises(BackendError, match="backend 'cuda' cannot run here"):
        bilateral_filter(IMAGE, VALUES, 15, 50, backend="cuda")
