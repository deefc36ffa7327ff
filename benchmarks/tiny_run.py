"""Labelling jobs without training: a run of a tiny network with random weights, images, an undisturbed process."""

import json
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from amn_fast.data.legend import write_legend
from amn_fast.label.engines import Computed, Event, Started
from amn_fast.label.labeler import Labeler
from amn_fast.label.worker import Ended, Setup, Task, compute
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


def write_images(folder: Path, count: int, sides: tuple[int, int] = (24, 40), labelled: float = 8 / 9) -> Path:
    """Write images of blobs in different sizes, and labels.json beside the folder.

    Args:
        sides: bounds of heights and widths, in pixels.
        labelled: share of the images that have classes; no network runs for the others.

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
        labels[id] = [] if number % 18 >= 18 * labelled else sorted({CLASSES[i] for i in random.integers(0, 3, 2)})
    file = folder.parent / "labels.json"
    file.write_text(json.dumps({"classes": list(CLASSES), "labels": labels}))
    return file


class InThisProcess:
    """Stands for a crew: computes the shards here, one after the other, undisturbed."""

    failures = types.MappingProxyType({})

    def __init__(self, setup: Setup, size: int, timeout: float | None) -> None:
        self.setup, self.labeler = setup, Labeler(setup.run, thresholds=setup.thresholds)

    def run(self, tasks: Iterator[Task]) -> Iterator[Event]:
        for task in tasks:
            task = replace(task, failures=dict(self.failures))
            yield Started(task.shard)
            seen: list[object] = []
            outcome = compute(self.setup, self.labeler, task, seen.append)
            yield from (Computed(task.shard, message.ok) for message in seen if isinstance(message, Ended))
            yield outcome

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def outputs(folder: Path) -> dict[str, bytes]:
    """All bytes that a job has written, but for its logs."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.relative_to(folder).parts[0] != "logs"}
