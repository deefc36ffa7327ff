"""Random changes of training images, with their label maps where there are some.

All randomness comes from the generator that is passed in, so that an image's crop depends on the random seed, the
epoch and the image alone — not on workers, order or a resumed run.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from amn_fast.data.base import IGNORE


@dataclass(frozen=True)
class Normalize:
    """(H, W, 3) uint8 RGB -> (3, H, W) float: (image / 255 - mean) / std."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (tensor - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)


def item_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one image in one epoch."""
    return np.random.default_rng([seed, epoch, index])


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 -> bicubic resize to `size` = (height, width), each at least one pixel."""
    height, width = max(1, size[0]), max(1, size[1])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_labels(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W) uint8 -> nearest resize to `size` = (height, width) by Pillow's rule."""
    height, width = max(1, size[0]), max(1, size[1])
    return np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def rescale(
    image: NDArray[np.uint8], labels: NDArray[np.uint8] | None, factor: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Resize image and labels by the same factor."""
    size = (round(image.shape[0] * factor), round(image.shape[1] * factor))
    return resize_image(image, size), None if labels is None else resize_labels(labels, size)


def flip_and_crop(
    image: Tensor, labels: NDArray[np.uint8] | None, crop: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """Flip with probability one half and crop a random square of side `crop`.

    Args:
        image: (3, H, W) normalised; zeros (the mean colour) pad what is smaller than the square.
        labels: (H, W) labels of the same size or None, padded with 255.
    """
    flipped = bool(rng.integers(2))
    height, width = image.shape[1:]
    (top, y, h), (left, x, w) = (_place(side, crop, rng) for side in (height, width))
    piece = image[:, y : y + h, x : x + w]
    square = torch.zeros(3, crop, crop)
    square[:, top : top + h, left : left + w] = piece.flip(-1) if flipped else piece
    if labels is None:
        return square, None
    assert labels.shape == (height, width)
    part = torch.from_numpy(np.array(labels[y : y + h, x : x + w]))
    label_square = torch.full((crop, crop), IGNORE, dtype=torch.uint8)
    label_square[top : top + h, left : left + w] = part.flip(-1) if flipped else part
    return square, label_square


def _place(side: int, crop: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Offset in the square, offset in the image, and length of what is copied along one axis."""
    room = crop - side
    if room >= 0:
        return int(rng.integers(room + 1)), 0, side
    return 0, int(rng.integers(-room + 1)), crop


def flipped_pair(image: NDArray[np.uint8], factor: float, normalize: Normalize) -> Tensor:
    """An image at one scale and its horizontal flip, (2, 3, H * factor, W * factor), normalised."""
    if factor != 1:
        image = resize_image(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))
    tensor = normalize(image)
    return torch.stack([tensor, tensor.flip(-1)])


mirrored_pair = flipped_pair
"""Old name."""
