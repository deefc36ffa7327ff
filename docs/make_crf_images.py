"""Refines scribbled photographs with pydensecrf and with amn_fast.compat.pydensecrf, and draws both side by side.

    python docs/make_crf_images.py DATA docs/images

DATA is the folder `examples` of pydensecrf's repository: im1.png .. im3.png and the scribbles anno1.png .. anno3.png
(black is unknown). Needs the extras `pipeline` and `bench` of amn_fast; prints the table of
docs/guides/replace-pydensecrf.md.
"""

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydensecrf.densecrf
import pydensecrf.utils
from matplotlib.figure import Figure
from PIL import Image

from amn_fast.compat.pydensecrf import densecrf, utils


def scribbles(path):
    """Label map (H, W) with 0 for unknown, and the colours (n, 3) of the labels 1..n."""
    pixels = np.array(Image.open(path).convert("RGB"))
    colours, labels = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    assert not colours[0].any(), f"{path}: expected black for unknown"
    return labels.reshape(pixels.shape[:2]), colours[1:]


def refine(dcrf, utils, image, labels, n):
    """The users' call, (n, H * W) marginals."""
    d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], n)
    d.setUnaryEnergy(utils.unary_from_labels(labels, n, gt_prob=0.7, zero_unsure=True))
    d.addPairwiseGaussian(sxy=(3, 3), compat=3)
    d.addPairwiseBilateral(sxy=(80, 80), srgb=(13, 13, 13), rgbim=image, compat=10)
    return np.array(d.inference(5))


def draw(path, image, panels, difference):
    height, width = image.shape[:2]
    figure = Figure(figsize=(15, 3 * height / width + 0.45), dpi=80, layout="constrained")
    axes = figure.subplots(1, 5)
    for axis, (title, panel) in zip(axes, [("photograph", image), *panels], strict=False):
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(title, fontsize=10)
    shown = axes[4].imshow(difference, cmap="magma", vmin=0, vmax=1e-6, interpolation="nearest")
    axes[4].set_title("largest difference of Q", fontsize=10)
    figure.colorbar(shown, ax=axes[4], format="%.0e", shrink=0.8)
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path, pil_kwargs={"quality": 85})


def main(data, out):
    print(f"pydensecrf2 {version('pydensecrf2')}, amn-fast {version('amn-fast')}, {platform.machine()}")
    print("| image | size | labels | pixels with another argmax | largest difference of Q |\n|---|---|---|---|---|")
    for number in (1, 2, 3):
        image = np.array(Image.open(data / f"im{number}.png").convert("RGB"))
        labels, colours = scribbles(data / f"anno{number}.png")
        theirs = refine(pydensecrf.densecrf, pydensecrf.utils, image, labels, len(colours))
        ours = refine(densecrf, utils, image, labels, len(colours))
        size = image.shape[:2]
        difference = np.abs(ours - theirs).max(axis=0).reshape(size)
        other = int((ours.argmax(0) != theirs.argmax(0)).sum())
        print(f"| im{number} | {size[1]} x {size[0]} | {len(colours)} | {other} | {difference.max():.1e} |")
        panels = [
            ("scribbles", np.concatenate([[[0, 0, 0]], colours]).astype(np.uint8)[labels]),
            ("pydensecrf", colours[theirs.argmax(0)].reshape(*size, 3)),
            ("amn_fast", colours[ours.argmax(0)].reshape(*size, 3)),
        ]
        draw(out / f"crf_{number}.jpg", image, panels, difference)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
