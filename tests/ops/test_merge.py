"""Merging maps over scales: recorded answers, exact answers, edge sizes, errors."""

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from amn_fast.kernels.merge import reference  # noqa: E402
from amn_fast.ops.merge import merge_amn, merge_cam  # noqa: E402
from case_table import each  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "amn"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if INTERPRETED else ["reference", "cpu"]
if INTERPRETED:
    from amn_fast.kernels.merge import triton

    triton.BLOCK = 512  # the interpreter's time goes by operations, not by elements


def random_maps(channels, size, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    sides = [[max(-(-int(side * scale) // 16), 1) for side in size] for scale in (1, 0.5, 1.5, 2)]
    return [3 * torch.randn(channels, *side, generator=generator, dtype=torch.float64).to(dtype) for side in sides]


def random_seed(size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor([0, 2, 255], dtype=torch.uint8)[torch.randint(0, 3, size, generator=generator)]


@each({"backend": BACKENDS})
def test_recorded_cam(backend):
    golden = np.load(GOLDEN / "merge_cam.npz")
    maps = [golden[f"scale{i}"] for i in range(4)]
    strided, full = merge_cam(maps, tuple(golden["size"]), golden["valid"], backend=backend)
    np.testing.assert_allclose(strided, golden["strided"], atol=3e-6)
    np.testing.assert_allclose(full, golden["high_res"], atol=3e-6)


@each({"backend": BACKENDS})
def test_recorded_amn(backend):
    golden = np.load(GOLDEN / "merge_amn.npz")
    maps = [golden[f"scale{i}"] for i in range(4)]
    strided, full = merge_amn(maps, tuple(golden["size"]), golden["valid"], golden["previous_seed"], backend=backend)
    np.testing.assert_allclose(strided, golden["strided"], atol=3e-6)
    np.testing.assert_allclose(full, golden["high_res"], atol=3e-6)


SIZES = [(1, 1), (1, 17), (33, 1), (31, 47), (64, 64), (187, 250)]
if INTERPRETED:  # 64 x 64 takes several programs too
    SIZES = SIZES[:-1]


@each({"backend": BACKENDS, "size": SIZES, "channels, valid": [(20, [3]), (80, [0, 79, 7]), (1, [0]), (5, [])]})
def test_equals_double_precision(size, channels, valid, backend):
    maps = [m.relu() for m in random_maps(channels, size)]
    exact = reference.merge_cam([m.double() for m in maps], size, valid)
    for ours, true in zip(merge_cam(maps, size, valid, backend=backend), exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), true, rtol=1e-5, atol=1e-6)

    maps, seed = random_maps(channels + 1, size), random_seed(size)
    exact = reference.merge_amn([m.double() for m in maps], size, valid, seed)
    for ours, true in zip(merge_amn(maps, size, valid, seed, backend=backend), exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), true, rtol=1e-4, atol=2e-6)


@each({"backend": BACKENDS})
def test_shapes_and_kinds_of_the_answer(backend):
    size, valid = (30, 45), [4, 1]
    maps, seed = random_maps(6, size), random_seed(size)
    strided, full = merge_amn(maps, size, valid, seed, backend=backend)
    assert strided.shape == (3, 8, 12)
    assert full.shape == (3, 30, 45)
    arrays = merge_amn([m.numpy() for m in maps], size, np.array(valid), seed.numpy(), backend=backend)
    assert all(isinstance(a, np.ndarray) for a in arrays)
    np.testing.assert_array_equal(arrays[1], full.numpy())
    doubles = merge_amn([m.double() for m in maps], size, valid, seed, backend=backend)
    assert doubles[0].dtype == torch.float64
    halves = [m.half() for m in maps]
    for ours, same in zip(
        merge_amn(halves, size, valid, seed, backend=backend),
        merge_amn([m.float() for m in halves], size, valid, seed, backend=backend),
        strict=True,
    ):
        torch.testing.assert_close(ours, same, rtol=0, atol=0)


@each({"backend": BACKENDS, "label": [0, 1, 255]})
def test_seeds_of_one_label(label, backend):
    size = (33, 40)
    maps, seed = random_maps(4, size), torch.full(size, label, dtype=torch.uint8)
    for kept in merge_amn(maps, size, [1], seed, backend=backend):
        if label == 0:
            assert kept.max() < 1
            assert (kept.sum(0) < 1).all()
        else:
            assert kept.amin((1, 2)).tolist() == [0, 0]
            assert kept.amax((1, 2)).min() > 0.9999


@each({"backend": BACKENDS})
def test_all_zero_maps_stay_zero(backend):
    strided, full = merge_cam([torch.zeros(3, 2, 2)], (20, 20), [1], backend=backend)
    assert not strided.any()
    assert not full.any()


@each({"backend": BACKENDS})
def test_huge_logits(backend):
    size = (20, 24)
    maps = [m.sign() * 1e4 for m in random_maps(4, size)]
    for kept in merge_amn(maps, size, [0, 2], random_seed(size), backend=backend):
        assert kept.isfinite().all()


@each({"backend": BACKENDS})
def test_strided_maps(backend):
    size = (40, 56)
    maps, seed = random_maps(5, size), random_seed(size)
    plain = merge_amn(maps, size, [1, 3], seed, backend=backend)
    turned = merge_amn(
        [m.permute(1, 2, 0).contiguous().permute(2, 0, 1) for m in maps], size, [1, 3], seed, backend=backend
    )
    for one, other in zip(plain, turned, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@each({"backend": BACKENDS})
def test_gradients(backend):
    maps = [m.requires_grad_() for m in random_maps(4, (20, 24), dtype=torch.float64)[:2]]
    seed = random_seed((20, 24))
    for merge in (
        lambda *maps: merge_cam(list(maps), (20, 24), [2, 0], backend=backend),
        lambda *maps: merge_amn(list(maps), (20, 24), [1], seed, backend=backend),
    ):
        assert torch.autograd.gradcheck(merge, maps, fast_mode=True)


@each({"backend": BACKENDS})
def test_one_look_at_the_values_of_all_scales(backend, monkeypatch):
    """Each look would wait for a GPU."""
    size, looks = (20, 24), []
    maps, seed = random_maps(4, size), random_seed(size)
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: looks.append(tensor.shape) or tolist(tensor))
    for name in ("item", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, name=name: pytest.fail(f"Tensor.{name} was called"))
    merge_amn(maps, size, [0, 2], seed, backend=backend)
    assert looks == [(4,)]
