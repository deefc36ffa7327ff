"""The operations of single-stage methods: ours, and the published arrangements in eager PyTorch.

The compiled `bilateralfilter` of rloss does not build from public packages. Recorded on the machine of
docs/guides/single-stage.md, one thread, CPU time: 42, 49 and 181 ms for K = 2, 3 and 21 at 375 x 500. The peer here is
the lattice in NumPy.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import VOC, name_of, photo, smooth_maps
from racing import Method
from torch import Tensor
from torch.nn import functional as F

from amn_fast.compat.bilateralfilter import bilateralfilter_batch
from amn_fast.kernels.dense_crf.reference import Lattice, bilateral_features
from amn_fast.kernels.local_refinement.reference import local_affinity, neighbours
from amn_fast.nn import DenseEnergyLoss
from amn_fast.ops.local_affinity import DILATIONS, pixel_adaptive_refinement


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_images(count: int, height: int, width: int) -> Tensor:
    """(count, 3, height, width) float32 in 0..255."""
    return torch.stack([torch.from_numpy(photo(height, width, 40 * i)).permute(2, 0, 1).float() for i in range(count)])


@pytest.mark.parametrize("channels", [2, 3, 21])
def test_bilateralfilter(race, profile, channels):
    size = (24, 32) if profile == "quick" else VOC
    image, values = photo(*size), smooth_maps(channels, *size)
    planar, outs = image.transpose(2, 0, 1).astype(np.float32).ravel(), np.empty(values.size, np.float32)

    def ours() -> np.ndarray:
        bilateralfilter_batch(planar, values.ravel(), outs, 1, channels, *size, 15.0, 100.0)
        return outs.reshape(channels, -1)

    def numpy_lattice() -> np.ndarray:
        return Lattice.build(bilateral_features(image, 100, 100, (15, 15, 15))).filter(values.reshape(channels, -1))

    race.parity(numpy_lattice(), ours(), 2e-6)
    case = f"{name_of(size)}, {channels} channels"
    race.run("bilateralfilter", case, Method("ours", ours), Method("NumPy lattice", numpy_lattice), rounds=3)


class PublishedEnergy(torch.autograd.Function):
    """The published autograd function, on NumPy arrays and a `bilateralfilter_batch`."""

    @staticmethod
    def forward(ctx, images, segments, region, free):  # type: ignore[no-untyped-def]
        count, channels, height, width = segments.shape
        gate = (region - segments.amax(1)).clamp(min=0)
        gate[free] = 1
        values = (segments * region[:, None]).numpy().flatten()
        filtered = np.zeros(values.size, np.float32)
        bilateralfilter_batch(images.numpy().flatten(), values, filtered, count, channels, height, width, 15.0, 50.0)
        filtered = filtered * np.repeat(gate.numpy()[:, None], channels, 1).flatten()
        ctx.shape, ctx.filtered, ctx.region = segments.shape, filtered, region
        return torch.tensor([-np.dot(values, filtered) / count], dtype=torch.float32)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        field = torch.from_numpy(-2 * gradient.item() * ctx.filtered / ctx.shape[0]).view(ctx.shape)
        return None, field * ctx.region[:, None], None, None


def published_energy(images: Tensor, maps: Tensor, region: Tensor, labels: Tensor) -> Tensor:
    def small(x: Tensor, mode: str = "nearest") -> Tensor:
        return F.interpolate(x, scale_factor=0.5, mode=mode, recompute_scale_factor=True)

    free = small(labels[:, None].float())[:, 0] == 255
    loss = PublishedEnergy.apply(small(images), small(maps, "bilinear"), small(region[:, None])[:, 0], free)
    return 1e-7 * loss


@pytest.mark.parametrize("channels", [21, pytest.param(81, marks=pytest.mark.full)])
def test_dense_energy_loss(race, profile, channels):
    side = 32 if profile == "quick" else 448
    images = make_images(2, side, side)
    maps = torch.from_numpy(np.stack([smooth_maps(channels, side, side, seed) for seed in (0, 1)])).softmax(1)
    labels = torch.randint(0, channels, (2, side, side), generator=torch.Generator().manual_seed(0))
    labels[:, : side // 4] = 255
    region = torch.ones(2, side, side)
    layer = DenseEnergyLoss(weight=1e-7, sigma_rgb=15, sigma_xy=100, scale_factor=0.5)

    def step(form: Callable[..., Tensor]) -> list[Tensor]:
        given = maps.requires_grad_()
        given.grad = None
        loss = form(images, given, region, labels)
        loss.backward()
        return [loss.detach(), given.grad]

    race.parity(step(published_energy), step(layer), 5e-6)
    case = f"2 x {channels} x {side}², forward + backward"
    ours = Method("ours", lambda: step(layer))
    race.run("DenseEnergyLoss", case, ours, Method("published form on our filter", lambda: step(published_energy)))


def eager_refinement(image: Tensor, mask: Tensor, kind: str, iterations: int) -> Tensor:
    """As published: all neighbours of all channels side by side in memory."""
    affinity = local_affinity(image, DILATIONS, kind, False)
    for _ in range(iterations):
        mask = (torch.stack(list(neighbours(mask, DILATIONS)), 2) * affinity[:, None]).sum(2)
    return mask


CASES = [(2, 21, 128), (1, 3, 224), pytest.param(2, 21, 512, marks=pytest.mark.full)]


@pytest.mark.parametrize("kind", ["par", "pamr"])
@pytest.mark.parametrize(("count", "channels", "side"), CASES)
def test_pixel_adaptive_refinement(race, profile, kind, count, channels, side):
    side = 24 if profile == "quick" else side
    image = make_images(count, side, side) / 255
    mask = torch.from_numpy(np.stack([smooth_maps(channels, side, side, seed) for seed in range(count)]))

    def ours() -> Tensor:
        return pixel_adaptive_refinement(image, mask, kind=kind, iterations=10)

    race.parity(eager_refinement(image, mask, kind, 10), ours(), 5e-6)
    case = f"{count} x {channels} x {side}², 10 iterations"
    eager = Method("eager PyTorch", lambda: eager_refinement(image, mask, kind, 10))
    race.run(kind.upper(), case, Method("ours", ours), eager, rounds=1 if side == 512 else 3)
