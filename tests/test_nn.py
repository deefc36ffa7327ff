"""The losses as modules: the global batch over processes, training with the kernels."""

import os

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

from amn_fast.nn import PairLoss, PixelLoss  # noqa: E402
from amn_fast.ops.pair_loss import pair_loss  # noqa: E402
from amn_fast.ops.pixel_loss import pixel_loss  # noqa: E402


def batch():
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(4, 3, 12, 20, generator=generator)
    labels = torch.randint(0, 3, (4, 12, 20), generator=generator).to(torch.uint8)
    labels[0] = 0  # the first process sees far more background than the second
    labels[1, :9] = 0
    labels[2] = 255
    return features, labels


def network():
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 6, 3, padding=1)


def losses(features, labels, group=None):
    """Both losses on one small network: three channels of classes, an edge, a displacement."""
    model = network()
    if group is not None:
        model = torch.nn.parallel.DistributedDataParallel(model)
    out = model(features)
    pixel = PixelLoss(group=group)(out[:, :3], labels)
    pair = PairLoss(radius=5, group=group)(out[:, 3:4], out[:, 4:], labels)
    (pixel + pair.total).backward()
    return pixel.item(), [t.item() for t in pair], next(model.parameters()).grad


def process(rank, folder):
    torch.set_num_threads(1)
    # A file, not a port: nobody else can take it before the processes meet.
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    features, labels = batch()
    answer = losses(features[2 * rank : 2 * rank + 2], labels[2 * rank : 2 * rank + 2], dist.group.WORLD)
    torch.save(answer, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # DistributedDataParallel keeps gloo's threads, which may abort the interpreter as it ends


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without torch.distributed")
def test_two_processes_give_the_loss_and_gradient_of_the_global_batch(tmp_path):
    torch.multiprocessing.start_processes(process, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    features, labels = batch()
    pixel, pair, gradient = losses(features, labels)
    for rank in range(2):
        theirs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert theirs[0] == pytest.approx(pixel, rel=1e-6)
        assert theirs[1] == pytest.approx(pair, rel=1e-6)
        torch.testing.assert_close(theirs[2], gradient, rtol=1e-5, atol=1e-7)


def test_modules_are_the_operations():
    features, labels = batch()
    assert torch.equal(PixelLoss(eps=0.1)(features, labels), pixel_loss(features, labels, eps=0.1))
    edge, displacement = features[:, :1], features[:, 1:]
    terms = PairLoss(radius=4)(edge, displacement, labels)
    assert all(torch.equal(a, b) for a, b in zip(terms, pair_loss(edge, displacement, labels, radius=4), strict=True))


def train(backend, steps=80):
    """A small network learns to segment; returns the loss of every step."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 4 + 3, 3, padding=1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    pixel, pair = PixelLoss(backend=backend), PairLoss(radius=4, backend=backend)
    curve = []
    for _ in range(steps):
        labels = torch.randint(0, 4, (2, 4, 5)).repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.uint8)
        labels[torch.rand(labels.shape) < 0.1] = 255
        images = labels[:, None].float() * torch.tensor([1.0, -1.0, 0.5])[:, None, None] + torch.randn(2, 3, 16, 20)
        out = model(images / 4)
        loss = pixel(out[:, :4], labels) + pair(out[:, 4:5], out[:, 5:], labels).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def test_training_follows_the_reference_and_repeats_bit_by_bit():
    curve = train("auto")
    assert curve == train("auto")
    assert sum(curve[-20:]) < 0.8 * sum(curve[:20])
    assert curve == pytest.approx(train("reference"), rel=1e-4)
