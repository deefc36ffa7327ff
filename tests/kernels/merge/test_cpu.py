"""The C++ kernels as PyTorch sees them; the same bits for any number of threads."""

import pytest

torch = pytest.importorskip("torch")

from amn_fast import _native  # noqa: E402
from amn_fast.errors import InputError  # noqa: E402
from amn_fast.ops import merge as module  # noqa: E402
from amn_fast.ops.merge import merge_amn, merge_cam  # noqa: E402
from case_table import each  # noqa: E402

pytestmark = pytest.mark.skipif(_native.native is None, reason=_native.missing)

SIZE, VALID = (37, 50), [4, 0]


def case(dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    maps = [torch.randn(21, h, w, generator=generator).to(dtype) for h, w in ((3, 4), (2, 2), (4, 5), (5, 7))]
    return maps, torch.randint(0, 3, SIZE, generator=generator).to(torch.uint8)


@each({"dtype": [torch.float32, torch.float64]})
def test_opcheck(dtype):
    maps, seed = case(dtype)
    torch.library.opcheck(module._merge_cam, (maps, *SIZE, VALID, "cpu"))
    torch.library.opcheck(module._merge_amn, (maps, *SIZE, VALID, seed, "cpu"))


def test_compiles_to_one_graph():
    maps, seed = case()

    def both(maps, seed):
        return *merge_cam(maps, SIZE, VALID), *merge_amn(maps, SIZE, VALID, seed)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(one, other) for one, other in zip(compiled(maps, seed), both(maps, seed), strict=True))
    maps[1][3, 1, 1] = float("inf")
    with pytest.raises(InputError, match=r"maps\[1\] holds NaN"):
        compiled(maps, seed)


def test_same_bits_for_any_number_of_threads():
    maps, seed = case()
    before, answers = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            answers.append((*merge_cam(maps, SIZE, VALID), *merge_amn(maps, SIZE, VALID, seed)))
    finally:
        torch.set_num_threads(before)
    for answer in answers[1:]:
        assert all(torch.equal(one, other) for one, other in zip(answer, answers[0], strict=True))
