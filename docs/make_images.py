"""Draw the images of README.md and docs/ from a finished run of the demo.

    python docs/make_images.py runs/demo/full/config.yaml
    python docs/make_images.py runs/demo/config.yaml

Each strip shows one image through the stages, of the full or the fast mode.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from amn_fast.config import Config, read_config
from amn_fast.data import open_dataset, read_activations
from amn_fast.data.base import Dataset
from amn_fast.data.image import read_mask
from amn_fast.data.masks import voc_palette

HEIGHT, GAP = 180, 6
IMAGES = Path(__file__).parent / "images"
STRIPS = {
    "demo": ["image", "cam", "amn", "mask", "truth"],
    "stages": ["image", "cam", "cam_seed", "amn", "amn_seed", "edge", "mask", "truth"],
    "stage_cam": ["image", "cam"],
    "stage_seed": ["image", "cam", "cam_seed"],
    "stage_amn": ["cam", "amn", "amn_seed"],
    "stage_edge": ["amn_seed", "edge"],
    "stage_mask": ["amn", "edge", "mask", "truth"],
}
FAST_STRIPS = {"fast": ["image", "cam", "cam_seed", "amn", "mask", "truth"]}
Rgb = NDArray[np.uint8]


def heat(values: NDArray[np.float32], image: Rgb) -> Rgb:
    """Values in [0, 1] as a colour map over the grey image."""
    colours = cv2.applyColorMap((np.clip(values, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return cv2.addWeighted(
        colours, 0.75, cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), 0.25, 0
    )


def coloured(labels: NDArray[np.uint8], image: Rgb) -> Rgb:
    """A label map in VOC's colours over the image; unknown pixels are white."""
    colours = voc_palette()[labels]
    colours[labels == 255] = 255
    blended = cv2.addWeighted(colours, 0.65, image, 0.35, 0)
    return np.where((labels == 0)[..., None], (image * 0.45).astype(np.uint8), blended)


def panel(name: str, config: Config, dataset: Dataset, id: str) -> Rgb:
    """What stage `name` made of an image."""
    image = dataset.image(id)
    if name == "image":
        return image
    if name in ("cam", "amn"):
        activations = read_activations(config.run / name / f"{id}.npz")
        return heat(activations.full.max(axis=0, initial=0), image)
    if name == "edge":
        with np.load(config.run / "edge" / f"{id}.npz") as file:
            return heat(cv2.resize(file["edge"], image.shape[1::-1]), np.zeros_like(image))
    folder = {"mask": "masks"}.get(name, name)
    labels = dataset.ground_truth(id) if name == "truth" else read_mask(config.run / folder / f"{id}.png")
    return coloured(labels, image)


def square(image: Rgb) -> Rgb:
    """The middle of an image, HEIGHT pixels on a side."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return cv2.resize(image[top : top + side, left : left + side], (HEIGHT, HEIGHT), interpolation=cv2.INTER_AREA)


def grid(rows: list[list[Rgb]]) -> Rgb:
    """Squares in rows, with white gaps."""
    padded = [
        [np.pad(square(image), ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for image in row] for row in rows
    ]
    return np.vstack([np.hstack(row) for row in padded])[:-GAP, :-GAP]


def main(path: str) -> None:
    config = read_config(path)
    dataset = open_dataset(config.data.kind, config.data.root, **config.data.options)
    several = [id for id in dataset.ids if dataset.labels(id).sum() > 1]
    single = [id for id in dataset.ids if dataset.labels(id).sum() == 1]
    shown = [single[0], several[0], several[1], single[2]]
    chosen = {"demo": shown[:3], "stages": shown, "fast": shown}
    IMAGES.mkdir(exist_ok=True)
    for name, panels in (STRIPS if config.mask.kind == "walk" else FAST_STRIPS).items():
        rows = [[panel(what, config, dataset, id) for what in panels] for id in chosen.get(name, shown[1:3])]
        cv2.imwrite(str(IMAGES / f"{name}.jpg"), grid(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    sample = [[dataset.image(id) for id in dataset.ids[first : first + 6]] for first in (0, 6)]
    cv2.imwrite(str(IMAGES / "tutorial_images.jpg"), grid(sample)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main(sys.argv[1])
