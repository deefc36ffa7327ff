"""Training pictures: one random piece of each picture per epoch, with its image label and perhaps its seed."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from amn_fast.data.augment import Normalize, flip_and_crop, item_generator, rescale, resize_image
from amn_fast.data.base import Dataset
from amn_fast.data.image import read_mask
from amn_fast.errors import InputError


class ClassifierPictures(TorchDataset[tuple[Tensor, Tensor]]):
    """(normalised crop (3, S, S), image label (C,) float), for the classifier: the long side is drawn from a range."""

    def __init__(
        self, dataset: Dataset, normalize: Normalize, crop: int, long_side: tuple[int, int], seed: int
    ) -> None:
        self.dataset, self.normalize, self.crop, self.long_side, self.seed = dataset, normalize, crop, long_side, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        rng = item_generator(self.seed, epoch, index)
        image = self.dataset.image(self.dataset.ids[index])
        factor = rng.integers(self.long_side[0], self.long_side[1] + 1) / max(image.shape[:2])
        image = resize_image(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))
        square, _ = flip_and_crop(self.normalize(image), None, self.crop, rng)
        return square, label_tensor(self.dataset, index)


class SeedPictures(TorchDataset[tuple[Tensor, Tensor, Tensor]]):
    """(normalised crop (3, S, S), seed (S, S) uint8, image label (C,) float), for AMN and IRN: randomly rescaled."""

    def __init__(
        self, dataset: Dataset, seeds: Path, normalize: Normalize, crop: int, factors: tuple[float, float], seed: int
    ) -> None:
        self.dataset, self.seeds, self.normalize, self.crop, self.factors, self.seed = (
            dataset, seeds, normalize, crop, factors, seed,
        )  # fmt: skip

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        epoch, index = key
        rng = item_generator(self.seed, epoch, index)
        id = self.dataset.ids[index]
        image = self.dataset.image(id)
        labels = read_seed(self.seeds / f"{id}.png", image.shape[:2], len(self.dataset.classes))
        image, scaled = rescale(image, labels, rng.uniform(*self.factors))
        square, label_square = flip_and_crop(self.normalize(image), scaled, self.crop, rng)
        assert label_square is not None
        return square, label_square, label_tensor(self.dataset, index)


def read_seed(path: Path, size: tuple[int, ...], n_classes: int) -> NDArray[np.uint8]:
    """A seed's label map, checked against its picture.

    Raises:
        InputError: it has another size or a label outside 0..C and 255.
    """
    labels = read_mask(path)
    if labels.shape != size:
        raise InputError(
            f"seed {path} is {labels.shape[0]} x {labels.shape[1]}, its picture {size[0]} x {size[1]} (height x width)"
        )
    known = labels[labels != 255]
    if known.size and known.max() > n_classes:
        raise InputError(f"seed {path} holds label {known.max()}, expected 0..{n_classes} or 255")
    return labels


def label_tensor(dataset: Dataset, index: int) -> Tensor:
    """Image-level label of picture number `index`, (C,) float 0 or 1."""
    return torch.from_numpy(dataset.labels(dataset.ids[index]).astype(np.float32))
