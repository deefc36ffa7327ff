"""Speed up a single-stage training loop (ToCo, AFA, SeCo) by changing two imports.

Before:                                                After:
    from model.PAR import PAR                              from amn_fast.nn import PAR, DenseEnergyLoss
    from model.losses import (                             from amn_fast import energy_loss as get_energy_loss
        DenseEnergyLoss, get_energy_loss)

This loop stands in for them: a small network, image-level labels, PAR on its activations, and the dense energy loss. It
runs on amn_fast's kernels and on its reference implementations, which compute what the code of the papers computes.
"""

import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from amn_fast import energy_loss
from amn_fast.data.demo import DEMO_CLASSES, compose
from amn_fast.nn import PAR, DenseEnergyLoss
from amn_fast.ops.energy_loss import MEAN, STD

ITERATIONS, SIDE, BATCH = 50, 64, 2
CLASSES = len(DEMO_CLASSES)


def load(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images (count, 3, SIDE, SIDE) and image-level labels (count, CLASSES)."""
    pairs = [compose(index) for index in range(count)]
    images = [torch.from_numpy(image).permute(2, 0, 1)[None].float() for image, _ in pairs]
    images = torch.cat([F.interpolate(image, size=(SIDE, SIDE), mode="area") for image in images])
    labels = torch.tensor(np.array([[(mask == k + 1).any() for k in range(CLASSES)] for _, mask in pairs])).float()
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), labels


def network() -> nn.Module:
    """A stand-in for a backbone with two heads: class activations and segmentation logits."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inside, out, stride in ((3, 16, 2), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(inside, out, 3, stride, 1), nn.GroupNorm(4, out), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(32, 2 * CLASSES + 1, 1))


def train(backend: str) -> tuple[list[float], float]:
    """The losses of all iterations, and the seconds they took."""
    par = PAR(num_iter=10, dilations=[1, 2, 4, 8, 12, 24], backend=backend)
    loss_layer = DenseEnergyLoss(weight=1e-7, sigma_rgb=15, sigma_xy=100, scale_factor=0.5, backend=backend)
    images, labels = load(8)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    start = time.perf_counter()
    for iteration in range(ITERATIONS):
        chosen = torch.arange(iteration * BATCH, (iteration + 1) * BATCH) % len(images)
        image, label = images[chosen], labels[chosen]
        cams, logits = model(image).split([CLASSES, CLASSES + 1], dim=1)
        logits = F.interpolate(logits, size=image.shape[2:], mode="bilinear")
        with torch.no_grad():  # the labels of the segmentation head: activations, refined along the image's edges
            scores = cams.sigmoid() * label[:, :, None, None]
            refined = par(image, torch.cat([1 - scores.amax(1, keepdim=True), scores], 1))
            target = refined / refined.sum(1, keepdim=True)
        classification = F.multilabel_soft_margin_loss(cams.amax((2, 3)), label)
        segmentation = F.cross_entropy(logits, target)
        hard = target.argmax(1).byte()
        hard[target.amax(1) < 0.4] = 255
        energy = energy_loss(image, logits, hard, [[0, SIDE, 0, SIDE]] * BATCH, loss_layer)
        loss = classification + 0.1 * segmentation + energy.squeeze()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, time.perf_counter() - start


def main() -> None:
    """Train on both, and compare."""
    (fast, fast_seconds), (slow, slow_seconds) = train("auto"), train("reference")
    difference = max(abs(a - b) / abs(b) for a, b in zip(fast, slow, strict=True))
    print(f"{ITERATIONS} iterations, loss {slow[0]:.4f} -> {slow[-1]:.4f}")
    print(f"kernels {fast_seconds:.1f} s, references {slow_seconds:.1f} s, {slow_seconds / fast_seconds:.0f} times")
    print(f"largest relative difference of the losses {difference:.1e}, below 1e-4: {difference < 1e-4}")


if __name__ == "__main__":
    main()
