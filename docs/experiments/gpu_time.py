"""Estimate how long a configuration takes on one GPU, from counted operations and an assumed rate.

    python docs/experiments/gpu_time.py voc12 --images 10582 --size 375 500
    python docs/experiments/gpu_time.py coco14 --images 82783 --size 480 640 --classes 80

Counts the floating-point operations of the networks (PyTorch's counter on the meta device, nothing is computed), three
times the forward pass for a training step, and divides by a rate. Reading images, the CRF and the random walk are not
in this estimate.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from amn_fast.config import read_config
from amn_fast.models import AmnNet, CamNet, DeepLabV2, IrnNet

TRAINING = 3  # a backward pass costs about two forward passes


def forward(net: nn.Module, height: float, width: float, *further: Tensor) -> float:
    """Floating-point operations of one image's forward pass."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net(torch.empty(1, 3, round(height), round(width), device="meta"), *further)
    return float(counter.get_total_flops())


def count(name: str, images: int, size: tuple[int, int], classes: int) -> dict[str, float]:
    """Floating-point operations of each stage with a network.

    Args:
        name: the configuration.
        images: images of the data set.
        size: height and width of an image.
        classes: without background.
    """
    config = read_config(name)
    label = torch.empty(1, classes, device="meta")
    with torch.device("meta"):
        cam, irn = CamNet(classes, config.backbone), IrnNet(config.backbone)
        amn, seg = AmnNet(classes, config.backbone), DeepLabV2(classes + 1, config.train_seg.backbone)

    def crops(training, net: nn.Module, *further: Tensor) -> float:
        return TRAINING * images * training.epochs * forward(net, training.crop, training.crop, *further)

    def inference(net: nn.Module, scales, *further: Tensor) -> float:
        return 2 * images * sum(forward(net, size[0] * scale, size[1] * scale, *further) for scale in scales)

    found = {
        "train-cam": crops(config.train_cam, cam),
        "make-cam": inference(cam, config.cam.scales),
        "train-amn": crops(config.train_amn, amn, label),
        "make-amn-cam": inference(amn, config.amn.scales, label),
        "train-irn": crops(config.train_irn, irn),
        "make-mask": inference(irn, [1.0]),
    }
    if config.segmentation:
        settings = config.train_seg
        step = settings.batch * settings.accumulate
        sides = [settings.crop * scale for scale in (1.0, *settings.scales)]
        found["train-seg"] = TRAINING * settings.iterations * step * sum(forward(seg, side, side) for side in sides)
    return found


def main() -> None:
    """Print operations and hours of each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(375, 500))
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--rate", type=float, default=20.0, help="assumed operations per second, in units of 10^12")
    arguments = parser.parse_args()
    found = count(arguments.config, arguments.images, tuple(arguments.size), arguments.classes)
    for stage, operations in {**found, "together": sum(found.values())}.items():
        hours = operations / (arguments.rate * 1e12) / 3600
        print(f"{stage:12} {operations / 1e15:8.1f} * 10^15 operations, {hours:5.1f} h")


if __name__ == "__main__":
    main()
