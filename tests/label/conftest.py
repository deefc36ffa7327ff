"""A finished run of a tiny network with random weights, and images for it."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

NEEDED = ("torch", "timm", "pydantic", "yaml", "typer", "rich", "pyarrow", "fsspec")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []  # the extras 'pipeline' and 'label'

CLASSES = ("cat", "cup", "dog")
CONFIG = """
name: tiny
data: {kind: folder, root: data}
run: .
device: cpu
backbone: test_efficientnet
weights: null
cam: {scales: [1.0, 1.5]}
cam_seed: {fg: 0.6, bg: 0.3}
amn: {scales: [1.0], softmax: image}
edge: {pad: 0}
mask: {exp_times: 3, background: 0.4}
"""


def write_run(folder: Path, config: str = CONFIG, seed: int = 0) -> Path:
    """A run folder with all that labelling new images needs, and nothing else."""
    import torch

    from amn_fast.data.legend import write_legend
    from amn_fast.models import AmnNet, CamNet, IrnNet
    from amn_fast.pipeline.training import save_weights

    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    write_legend(folder, CLASSES)
    nets = {"cam": CamNet(3, "test_efficientnet"), "amn": AmnNet(3, "test_efficientnet")}
    for name, net in {**nets, "irn": IrnNet("test_efficientnet")}.items():
        save_weights(folder / "weights" / f"{name}.safetensors", net)
    return folder


def write_images(folder: Path, count: int, seed: int = 0) -> dict[str, list[str]]:
    """`count` small images of blobs in different sizes, every ninth without a class; labels by id."""
    import cv2
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random, labels = np.random.default_rng(seed), {}
    for number in range(count):
        id = f"image_{number:05d}"
        size = (int(random.integers(24, 40)), int(random.integers(24, 40)))
        coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
        pixels = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        Image.fromarray(pixels).save(folder / f"{id}.png")
        labels[id] = [] if number % 9 == 8 else sorted({CLASSES[i] for i in random.integers(0, 3, 2)})
    return labels


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("label") / "run")


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of 30 images beside their labels.json."""
    labels = write_images(tmp_path / "images", 30)
    (tmp_path / "labels.json").write_text(json.dumps({"classes": list(CLASSES), "labels": labels}))
    return tmp_path / "images"
