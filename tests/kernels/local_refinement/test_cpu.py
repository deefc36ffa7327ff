"""The C++ kernels as PyTorch sees them; bit-identical for any thread count."""

import pytest

torch = pytest.importorskip("torch")

import modern_cases  # noqa: E402

from amn_fast import _native  # noqa: E402
from amn_fast.ops import local_affinity as module  # noqa: E402

pytestmark = pytest.mark.skipif(_native.native is None, reason=_native.missing)


def case(dtype=torch.float32):
    image, mask = modern_cases.images("cat", "pot") / 255, modern_cases.maps("cat_k3", "pot_k3")
    return image[:, :, :30, :37].to(dtype), mask[:, :, :30, :37].to(dtype).requires_grad_()


def both(image, mask):
    affinity = module.local_affinity(image, kind="pamr")
    return module.propagate(mask, affinity, iterations=2), module.pixel_adaptive_refinement(image, mask, iterations=2)


def test_pytorch_contract():
    image, mask = case(torch.float64)
    affinity = module.local_affinity(image, dilations=[2])
    for dtype in (torch.float32, torch.float64):
        image, mask = (x.detach().to(dtype) for x in (image, mask))
        mask.requires_grad_()
        torch.library.opcheck(module._local_affinity, (image, [2], "pamr", True, "cpu"))
        torch.library.opcheck(module._propagate, (mask, affinity.to(dtype), [2], 2, False, "cpu"))
        torch.library.opcheck(module._refine, (image, mask, [2], 2, "par", False, False, "cpu"))
    image, mask, affinity = image[:1, :, :4, :5], mask[:1, :, :4, :5].detach().requires_grad_(), affinity[:1, :, :4, :5]
    steps = (
        lambda x: module.propagate(x, affinity, dilations=[2], iterations=2),
        lambda x: module.pixel_adaptive_refinement(image, x, dilations=[1, 9], iterations=2),
    )
    for step in steps:
        torch.autograd.gradcheck(step, mask)
        torch.autograd.gradgradcheck(step, mask)


def test_compiles_to_one_graph():
    image, mask = case()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (both, compiled):
        outputs = function(image, mask)
        gradients.append((*outputs, torch.autograd.grad(sum(out.square().sum() for out in outputs), mask)[0]))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_same_bits_for_any_number_of_threads():
    image, mask = case()
    before, answers = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            outputs = both(image, mask)
            answers.append((*outputs, torch.autograd.grad(sum(out.square().sum() for out in outputs), mask)[0]))
    finally:
        torch.set_num_threads(before)
    for answer in answers[1:]:
        assert all(torch.equal(one, other) for one, other in zip(answer, answers[0], strict=True))
