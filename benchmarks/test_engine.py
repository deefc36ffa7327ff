"""The networks of the stages as they run now against the plain networks: class activations and a training step of AMN.

`make-cam` takes several images at once, each on one thread, with a prepared network; before, PyTorch's threads shared
one image. Without the writing of files, which `make-cam` does in the same threads.
"""

import threading

import numpy as np
import torch
from problems import VOC, name_of, photo
from racing import Method

from amn_fast.models import AmnNet, CamNet, prepare
from amn_fast.ops._arrays import thread_count
from amn_fast.ops.pixel_loss import pixel_loss
from amn_fast.pipeline.engine import for_each
from amn_fast.steps import cam

BACKBONE, CLASSES, PRESENT, SCALES = "efficientnet_lite0", 6, (1, 4), (1.0, 0.5, 1.5)
LABEL = np.isin(np.arange(CLASSES), PRESENT)
CPU = torch.device("cpu")


def activations(net: CamNet, images: list[np.ndarray], threads: int | None) -> list[np.ndarray]:
    """Activations at full size of all images: on so many threads at once, or (None) one after the other."""
    found, lock = {}, threading.Lock()

    def one(number: str) -> None:
        maps = cam.activate(net, images[int(number)], LABEL, SCALES, CPU).full
        with lock:
            found[number] = maps

    numbers = [str(number) for number in range(len(images))]
    if threads is None:
        for number in numbers:
            one(number)
    else:
        for_each("class activations", numbers, one, threads)
    return [found[number] for number in numbers]


def test_class_activations_of_several_images(race, profile):
    torch.manual_seed(0)
    plain = CamNet(CLASSES, BACKBONE).eval()
    size, threads = (48, 64) if profile == "quick" else VOC, thread_count(None)
    images = [photo(*size) for _ in range(2 * threads)]
    prepared, half = prepare(plain), prepare(plain, "bfloat16")
    found = activations(prepared, images, threads)
    race.parity(np.stack(activations(plain, images, None)), np.stack(found), 1e-5)
    assert np.array_equal(np.stack(found), np.stack(activations(prepared, images, 1)))
    race.run(
        "class activations, images at once",
        f"{len(images)} x {name_of(size)}, {len(SCALES)} scales, {BACKBONE}",
        Method("ours", lambda: activations(prepared, images, threads), threads),
        Method("ours, one thread", lambda: activations(prepared, images, 1), 1),
        Method("ours, bfloat16", lambda: activations(half, images, threads), threads),
        Method("plain network, image by image", lambda: activations(plain, images, None), threads),
        rounds=3,
    )


def test_a_training_step_of_amn(race, profile):
    side, batch = (64, 2) if profile == "quick" else (320, 8)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.normal(size=(batch, 3, side, side)).astype(np.float32))
    seeds = torch.from_numpy(rng.integers(0, CLASSES + 1, (batch, side, side), np.uint8))
    labels = torch.ones(batch, CLASSES)

    def step(layout: torch.memory_format) -> list[np.ndarray]:
        torch.manual_seed(0)
        net = AmnNet(CLASSES, BACKBONE).to(memory_format=layout).train()
        net.classifier[0].p = 0.0
        pixel_loss(net(images.to(memory_format=layout), labels), seeds).backward()
        return [p.grad.numpy() for p in net.new_parameters()]

    for expected, gradient in zip(step(torch.contiguous_format), step(torch.channels_last), strict=True):
        race.parity(expected, gradient, 1e-4)
    threads = torch.get_num_threads()
    race.run(
        "training step of AMN, channels last",
        f"batch {batch} of {name_of((side, side))}, {BACKBONE}",
        Method("ours", lambda: step(torch.channels_last), threads),
        Method("contiguous", lambda: step(torch.contiguous_format), threads),
        rounds=3,
    )
