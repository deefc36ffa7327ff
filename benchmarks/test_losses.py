"""The losses, forward and backward: ours, the reference implementations' arrangement in eager PyTorch, and compiled."""

import numpy as np
import pytest
import torch
from PIL import Image
from racing import Method
from torch import Tensor

from amn_fast.kernels.common.paths import half_plane, path
from amn_fast.ops.pair_loss import PairLossTerms, pair_loss
from amn_fast.ops.pixel_loss import pixel_loss

EPS, RADIUS, TINY = 0.4, 10, 1e-5


def gradients(loss, *inputs: Tensor) -> list[Tensor]:
    """The loss and its gradients with respect to `inputs`."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    value = loss(*leaves)
    value.backward()
    return [value.detach().reshape(1), *(leaf.grad for leaf in leaves)]


# ---------------------------------------------------------------------------------------------------------- pixel_loss


def published_pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """AMN's arrangement: a one-hot target times a log-softmax."""
    background, foreground = labels == 0, (labels > 0) & (labels != 255)
    one_hot = torch.nn.functional.one_hot(labels.where(labels != 255, 0), logits.shape[1]).movedim(3, 1)
    target = (1 - EPS) * one_hot + EPS / (logits.shape[1] - 1) * (1 - one_hot)
    loss = -(target * logits.log_softmax(1)).sum(1)
    return (loss * background).sum() / background.sum() / 2 + (loss * foreground).sum() / foreground.sum() / 2


def through_pillow(labels: Tensor, size: int) -> Tensor:
    """AMN's code samples the labels on the host, with Pillow, at every step."""
    nearest = Image.Resampling.NEAREST
    small = [np.asarray(Image.fromarray(one).resize((size, size), nearest)) for one in labels.cpu().numpy()]
    return torch.from_numpy(np.stack(small)).long().to(labels.device)


def labelled_logits(batch: int, channels: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, channels, size, size, generator=generator)
    labels = torch.randint(0, channels, (batch, 8, 8), generator=generator)
    labels[:, ::2] = 0
    labels = labels.repeat_interleave(64, 1).repeat_interleave(64, 2).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return logits.to(device), labels.to(device)


@pytest.mark.parametrize(
    ("batch", "channels", "size"),
    [
        (16, 21, 32),
        (16, 81, 128),
        *(pytest.param(*case, marks=pytest.mark.full) for case in ((16, 81, 32), (16, 21, 128), (2, 81, 512))),
    ],
)
def test_pixel_loss(race, profile, device, batch, channels, size):
    batch, size = (2, 16) if profile == "quick" else (batch, size)
    logits, labels = labelled_logits(batch, channels, size, device)

    def ours() -> list[Tensor]:
        return gradients(lambda x: pixel_loss(x, labels, eps=EPS), logits)

    def others(form):
        return lambda: gradients(lambda x: form(x, through_pillow(labels, size)), logits)

    expected = gradients(lambda x: pixel_loss(x, labels, eps=EPS, backend="reference"), logits.double())
    race.parity(expected, ours(), 1e-5)
    race.same_task(expected, others(published_pixel_loss)(), 1e-5)
    threads = torch.get_num_threads()
    peers = [Method("eager PyTorch", others(published_pixel_loss), threads)]
    if profile != "quick":
        compiled = torch.compile(published_pixel_loss, dynamic=False)
        peers.append(Method("torch.compile", others(compiled), threads))
    case = f"{batch}x{channels}x{size}x{size}, forward and backward"
    moved = 3 * logits.numel() * logits.element_size()  # read twice, the gradient written
    race.run("pixel_loss", case, Method("ours", ours, threads), *peers, moved=moved)


# ----------------------------------------------------------------------------------------------------------- pair_loss


class PublishedPairLoss(torch.nn.Module):
    """IRN's arrangement: index tables of all pairs and of their paths; the pair labels come from the data loader."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, reach = size, RADIUS - 1
        y, x = np.mgrid[: size - reach, reach : size - reach]
        source = (y * size + x).ravel()
        by_length: dict[int, list] = {}
        for offset in half_plane(RADIUS):
            by_length.setdefault(len(path(offset)), []).append(offset)
        for i, offsets in enumerate(by_length.values()):
            table = np.stack([[source + y * size + x for y, x in path(offset)] for offset in offsets])
            self.register_buffer(f"path{i}", torch.from_numpy(table))
        self.n_paths = len(by_length)
        offsets = [offset for group in by_length.values() for offset in group]
        self.register_buffer("source", torch.from_numpy(source))
        self.register_buffer("target", torch.from_numpy(np.stack([source + y * size + x for y, x in offsets])))
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.float32).T[None, :, :, None])

    def pair_labels(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = labels.flatten(1).long()
        one, other = flat[:, None, self.source], flat[:, self.target]
        valid, same = (one != 255) & (other != 255), one == other
        return (valid & same & (one == 0)).float(), (valid & same & (one > 0)).float(), (valid & ~same).float()

    def forward(self, edge: Tensor, displacement: Tensor, kinds: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        background, foreground, negative = kinds
        flat = torch.sigmoid(edge).flatten(1)
        tables = [getattr(self, f"path{i}") for i in range(self.n_paths)]
        affinity = 1 - torch.cat([flat[:, table].amax(2) for table in tables], 1)
        together, apart = -torch.log(affinity + TINY), -torch.log(1 + TINY - affinity)
        moved = displacement.flatten(2)
        difference = moved[:, :, None, self.source] - moved[:, :, self.target]
        n_background, n_foreground, n_negative = (kind.sum() + TINY for kind in kinds)
        return PairLossTerms(
            (background * together).sum() / n_background,
            (foreground * together).sum() / n_foreground,
            (negative * apart).sum() / n_negative,
            (foreground[:, None] * (difference - self.offsets).abs()).sum() / (2 * n_foreground),
            (background[:, None] * difference.abs()).sum() / (2 * n_background),
        ).total


@pytest.mark.parametrize("batch", [1, pytest.param(8, marks=pytest.mark.full)])
def test_pair_loss(race, profile, device, batch):
    size = 32 if profile == "quick" else 128
    generator = torch.Generator().manual_seed(0)
    edge = torch.randn(batch, 1, size, size, generator=generator).to(device)
    # Sixteenths: at the kink of |difference - offset| single and double precision agree.
    displacement = (48 * torch.randn(batch, 2, size, size, generator=generator)).round() / 16
    displacement = displacement.to(device)
    labels = torch.randint(0, 3, (batch, 8, 8), generator=generator).to(torch.uint8)
    labels = labels.repeat_interleave(size // 8, 1).repeat_interleave(size // 8, 2)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    labels = labels.to(device)
    form = PublishedPairLoss(size).to(device)
    kinds = form.pair_labels(labels)

    def ours() -> list[Tensor]:
        return gradients(lambda e, d: pair_loss(e, d, labels, radius=RADIUS).total, edge, displacement)

    def others(module):
        return lambda: gradients(lambda e, d: module(e, d, kinds), edge, displacement)

    expected = gradients(
        lambda e, d: pair_loss(e, d, labels, radius=RADIUS, backend="reference").total,
        edge.double(),
        displacement.double(),
    )
    race.parity(expected, ours(), 1e-4)
    race.same_task(expected, others(form)(), 1e-3)
    threads = torch.get_num_threads()
    peers = [Method("eager PyTorch", others(form), threads)]
    if profile == "full":
        peers.append(Method("torch.compile", others(torch.compile(form, dynamic=False)), threads))
    case = f"{batch}x{size}x{size}, radius {RADIUS}, forward and backward"
    race.run("pair_loss", case, Method("ours", ours, threads), *peers, moved=5 * edge.numel() * 4)
