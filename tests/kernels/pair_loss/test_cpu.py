"""The C++ kernel as PyTorch sees it: schema, autograd, compilation; the same bits for any number of threads."""

import pytest

torch = pytest.importorskip("torch")

from amn_fast import _native  # noqa: E402
from amn_fast.ops import pair_loss as module  # noqa: E402
from amn_fast.ops.pair_loss import pair_loss  # noqa: E402
from case_table import each  # noqa: E402

pytestmark = pytest.mark.skipif(_native.native is None, reason=_native.missing)


def case(batch=2, height=14, width=21, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    edge = torch.randn(batch, 1, height, width, generator=generator).to(dtype)
    displacement = 3 * torch.randn(batch, 2, height, width, generator=generator).to(dtype)
    labels = torch.randint(0, 3, (batch, height, width), generator=generator).to(torch.uint8)
    labels[:, ::5] = 255
    return edge, displacement, labels


@each({"dtype": [torch.float32, torch.float64, torch.bfloat16]})
def test_opcheck(dtype):
    edge, displacement, labels = case(dtype=dtype)
    arguments = (edge.requires_grad_(), displacement.requires_grad_(), labels, 5, 255, "cpu")
    torch.library.opcheck(module._pair_sums, arguments)
    edge, displacement = edge.detach(), displacement.detach()
    sums, _, tallies = module._pair_sums(edge, displacement, labels, 5, 255, "cpu")
    torch.library.opcheck(module._pair_sums_backward, (sums, edge, displacement, tallies, "cpu"))


def test_compiles_to_one_graph():
    edge, displacement, labels = case()
    compiled = torch.compile(lambda *maps: pair_loss(*maps, radius=5).total, fullgraph=True, backend="aot_eager")
    answers = []
    for function in (lambda *maps: pair_loss(*maps, radius=5).total, compiled):
        e, d = edge.clone().requires_grad_(), displacement.clone().requires_grad_()
        total = function(e, d, labels)
        total.backward()
        answers.append((total.detach(), e.grad, d.grad))
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-6, atol=0)


@each({"batch": [1, 3], "dtype": [torch.float32, torch.float64]})
def test_same_bits_for_any_number_of_threads(batch, dtype):
    before, answers = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            edge, displacement, labels = case(batch, dtype=dtype)
            terms = pair_loss(edge.requires_grad_(), displacement.requires_grad_(), labels, radius=5, backend="cpu")
            terms.total.backward()
            answers.append((torch.stack(terms).detach(), edge.grad, displacement.grad))
    finally:
        torch.set_num_threads(before)
    for answer in answers[1:]:
        assert all(torch.equal(one, other) for one, other in zip(answer, answers[0], strict=True))


def test_tallies_count_every_pair_once():
    edge, displacement, labels = case()
    _, counts, tallies = module._pair_sums(edge, displacement, labels, 5, 255, "cpu")
    assert tallies[:, :3].sum((0, 2, 3)).tolist() == counts.tolist()
    assert not tallies[:, 3:].sum((2, 3)).any()  # what one end gains the other loses
