"""Draw the pictures of README.md and docs/pipeline.md from a finished run: python docs/make_pictures.py RUN_CONFIG.

The argument is the run folder's config.yaml. Each strip shows one picture through all stages.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from amn_fast.config import read_config
from amn_fast.data.masks import voc_palette
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.inference import read_edge
from amn_fast.pipeline.reporting import RunImages

HEIGHT, GAP = 180, 6
IMAGES = Path(__file__).parent / "images"
Rgb = NDArray[np.uint8]


def heat(values: NDArray[np.float32], picture: Rgb) -> Rgb:
    """Activations in [0, 1] as a colour map over the picture."""
    colours = cv2.applyColorMap((np.clip(values, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return cv2.addWeighted(
        colours, 0.75, cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), 0.25, 0
    )


def coloured(labels: NDArray[np.uint8], picture: Rgb) -> Rgb:
    """A label map in VOC's colours over the picture; unknown pixels are white."""
    colours = voc_palette()[labels]
    colours[labels == 255] = 255
    blended = cv2.addWeighted(colours, 0.65, picture, 0.35, 0)
    return np.where((labels == 0)[..., None], (picture * 0.45).astype(np.uint8), blended)


def strip(work: Workspace, id: str, panels: list[str]) -> Rgb:
    """The panels of one picture side by side."""
    pictures = RunImages(work)
    picture = pictures.image(id)
    size = picture.shape[1::-1]
    made = {
        "picture": lambda: picture,
        "cam": lambda: heat(pictures.cam(id), picture),
        "seed": lambda: coloured(pictures.seed(id), picture),
        "amn": lambda: heat(pictures.amn(id), picture),
        "amn_seed": lambda: coloured(pictures.amn_seed(id), picture),
        "edge": lambda: heat(cv2.resize(read_edge(work.item("edge", id)), size), np.zeros_like(picture)),
        "mask": lambda: coloured(pictures.mask(id), picture),
        "truth": lambda: coloured(pictures.truth(id), picture),
    }
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    squares = [made[name]()[top : top + side, left : left + side] for name in panels]
    tiles = [cv2.resize(square, (HEIGHT, HEIGHT), interpolation=cv2.INTER_AREA) for square in squares]
    gap = np.full((HEIGHT, GAP, 3), 255, np.uint8)
    return np.hstack([piece for tile in tiles for piece in (tile, gap)][:-1])


def stack(strips: list[Rgb]) -> Rgb:
    """Strips above one another, on white."""
    return np.vstack([np.pad(s, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for s in strips])[:-GAP]


def main(config: str) -> None:
    work = Workspace(read_config(config))
    several = [id for id in work.dataset.ids if work.dataset.labels(id).sum() > 1]
    single = [id for id in work.dataset.ids if work.dataset.labels(id).sum() == 1]
    shown = [single[0], several[0], several[1], single[2]]
    everything = ["picture", "cam", "seed", "amn", "amn_seed", "edge", "mask", "truth"]
    IMAGES.mkdir(exist_ok=True)

    def write(name: str, image: Rgb) -> None:
        cv2.imwrite(str(IMAGES / name), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])

    write("demo.jpg", stack([strip(work, id, ["picture", "cam", "amn", "mask", "truth"]) for id in shown[:3]]))
    for name, panels in {
        "cam": ["picture", "cam"],
        "seed": ["picture", "cam", "seed"],
        "amn": ["cam", "amn", "amn_seed"],
        "edge": ["amn_seed", "edge"],
        "mask": ["amn", "edge", "mask", "truth"],
    }.items():
        write(f"stage_{name}.jpg", stack([strip(work, id, panels) for id in shown[1:3]]))
    write("stages.jpg", stack([strip(work, id, everything) for id in shown]))


if __name__ == "__main__":
    main(*sys.argv[1:])
