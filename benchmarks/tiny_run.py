"""A run folder of a tiny network with random weights, and images for it: labelling jobs without training."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from amn_fast.data.legend import write_legend
from amn_fast.models import AmnNet, CamNet, IrnNet
from amn_fast.pipeline.training import save_weights

CLASSES = ("cat", "cup", "dog")
BACKBONE = "test_efficientnet"
CONFIG = f"""
name: tiny
data: {{kind: folder, root: data, options: {{labels: labels.json}}}}
run: .
device: cpu
backbone: {BACKBONE}
weights: null
cam: {{scales: [1.0]}}
cam_seed: {{fg: 0.6, bg: 0.3}}
amn: {{scales: [1.0], softmax: image}}
edge: {{pad: 0}}
mask: {{exp_times: 3, background: 0.4}}
"""


def write_run(folder: Path, config: str = CONFIG, backbone: str = BACKBONE) -> Path:
    """Write all that labelling new images needs of a run."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    write_legend(folder, CLASSES)
    nets = {"cam": CamNet(len(CLASSES), backbone), "amn": AmnNet(len(CLASSES), backbone), "irn": IrnNet(backbone)}
    for name, net in nets.items():
        save_weights(folder / "weights" / f"{name}.safetensors", net)
    return folder


def write_images(folder: Path, count: int, sides: tuple[int, int] = (24, 40)) -> Path:
    """Write images of blobs in different sizes, every ninth without a class, and labels.json beside the folder.

    Returns:
        the label file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random, labels = np.random.default_rng(0), {}
    for number in range(count):
        id = f"image_{number:05d}"
        width, height = random.integers(*sides, 2).tolist()
        coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)).save(folder / f"{id}.png")
        labels[id] = [] if number % 9 == 8 else sorted({CLASSES[i] for i in random.integers(0, 3, 2)})
    file = folder.parent / "labels.json"
    file.write_text(json.dumps({"classes": list(CLASSES), "labels": labels}))
    return file
