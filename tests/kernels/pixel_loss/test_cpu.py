"""The C++ kernel as PyTorch sees it: schema, autograd, compilation; the same bits for any number of threads."""

import pytest

torch = pytest.importorskip("torch")

from amn_fast import _native  # noqa: E402
from amn_fast.errors import BackendError, InputError  # noqa: E402
from amn_fast.ops import pixel_loss as module  # noqa: E402
from amn_fast.ops.pixel_loss import pixel_loss  # noqa: E402
from case_table import each  # noqa: E402

pytestmark = pytest.mark.skipif(_native.native is None, reason=_native.missing)


def case(shape=(2, 5, 9, 33), label_size=(36, 66), dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(shape, generator=generator).to(dtype)
    labels = torch.randint(0, shape[1], (shape[0], *label_size), generator=generator).to(torch.uint8)
    labels[:, ::5] = 255
    return logits, labels


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@each({"dtype": [torch.float32, torch.float64, torch.bfloat16]})
def test_opcheck(dtype):
    logits, labels = case(dtype=dtype)
    torch.library.opcheck(module._pixel_sums, (logits.requires_grad_(), labels, 0.4, 255, "cpu"))
    sums, _, normaliser = module._pixel_sums(logits.detach(), labels, 0.4, 255, "cpu")
    torch.library.opcheck(module._pixel_sums_backward, (sums, logits.detach(), labels, normaliser, 0.4, 255, "cpu"))


@each({"compiler": ["aot_eager", "inductor"]})
def test_compiles_to_one_graph(compiler):
    logits, labels = case()
    compiled = torch.compile(pixel_loss, fullgraph=True, backend=compiler)
    answers = []
    for function in (pixel_loss, compiled):
        x = logits.clone().requires_grad_()
        loss = function(2 * x, labels)
        loss.backward()
        answers.append((loss.detach(), x.grad))
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-6, atol=0)
    labels[0] = 5
    with pytest.raises(InputError, match="labels hold 5"):
        compiled(logits, labels)


@each({"layout": [torch.contiguous_format, torch.channels_last], "dtype": [torch.float32, torch.bfloat16]})
def test_same_bits_for_any_number_of_threads(threads, layout, dtype):
    logits, labels = case((3, 21, 31, 45), (124, 180), dtype)
    answers = []
    for count in (1, 2, 3, 7):
        threads(count)
        x = logits.clone(memory_format=layout).requires_grad_()
        loss = pixel_loss(x, labels, backend="cpu")
        loss.backward()
        answers.append((loss.detach(), x.grad))
    for loss, gradient in answers[1:]:
        assert torch.equal(loss, answers[0][0])
        assert torch.equal(gradient, answers[0][1])


def test_gradient_keeps_the_layout():
    logits, labels = case()
    for layout in (torch.contiguous_format, torch.channels_last):
        x = logits.clone(memory_format=layout).requires_grad_()
        pixel_loss(x, labels, backend="cpu").backward()
        assert x.grad.is_contiguous(memory_format=layout)


def test_every_half_survives_the_kernel():
    """Widening is exact and rounding goes to the nearest even, on all 65,536 patterns."""
    for dtype in (torch.float16, torch.bfloat16):
        bits = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
        logits = bits[bits.isfinite()][None, None, None].repeat(1, 2, 1, 1)
        logits[:, 1] = 0
        labels = torch.zeros(1, 1, logits.shape[3], dtype=torch.uint8)
        x = logits.clone().requires_grad_()
        module.pixel_sums(x, labels, backend="cpu", eps=0)[0].sum().backward()
        y = logits.float().requires_grad_()
        module.pixel_sums(y, labels, backend="cpu", eps=0)[0].sum().backward()
        assert torch.equal(x.grad, y.grad.to(dtype))


def test_retained_graphs_and_scaled_losses():
    logits, labels = case()
    x = logits.clone().requires_grad_()
    loss = pixel_loss(x, labels, backend="cpu")
    (one,) = torch.autograd.grad(loss, x, retain_graph=True)
    (again,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(one, again)
    (scaled,) = torch.autograd.grad(loss * 1024, x)
    torch.testing.assert_close(scaled, one * 1024, rtol=1e-6, atol=0)


def test_without_the_kernels_a_named_backend_says_why(monkeypatch):
    monkeypatch.setattr(_native, "missing", "not built")
    logits, labels = case()
    with pytest.raises(BackendError, match="not built"):
        pixel_loss(logits, labels, backend="cpu")
    assert pixel_loss(logits, labels).isfinite()  # auto falls back on the reference


def test_autocast():
    logits, labels = case()
    layer = torch.nn.Conv2d(5, 5, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pixel_loss(layer(logits), labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad.isfinite().all()
