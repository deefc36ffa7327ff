"""Training pictures: one random piece of each picture per epoch, with its image label and perhaps its seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from amn_fast.data.augment import Normalize, flip_and_crop, item_generator, rescale, resize_image
from amn_fast.data.base import Dataset
from amn_fast.data.image import read_mask
from amn_fast.errors import InputError
from amn_fast.stages._stage import naming_picture


class Pictures(TorchDataset[Any]):
    """One picture's part of a batch, by (epoch, index).

    A picture that cannot be used gives its error, for the trainer to raise: a process that loads pictures would bury
    the sentence in a traceback.
    """

    dataset: Dataset
    seed: int

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, ...] | InputError:
        epoch, index = key
        id = self.dataset.ids[index]
        try:
            with naming_picture(id):
                return self.item(id, item_generator(self.seed, epoch, index))
        except InputError as error:
            return error

    def item(self, id: str, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """One picture's part of a batch."""
        raise NotImplementedError


class ClassifierPictures(Pictures):
    """(normalised crop (3, S, S), image label (C,) float), for the classifier: the long side is drawn from a range."""

    def __init__(
        self, dataset: Dataset, normalize: Normalize, crop: int, long_side: tuple[int, int], seed: int
    ) -> None:
        self.dataset, self.normalize, self.crop, self.long_side, self.seed = dataset, normalize, crop, long_side, seed

    def item(self, id: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        image = self.dataset.image(id)
        factor = rng.integers(self.long_side[0], self.long_side[1] + 1) / max(image.shape[:2])
        image = resize_image(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))
        square, _ = flip_and_crop(self.normalize(image), None, self.crop, rng)
        return square, label_tensor(self.dataset, id)


class SeedPictures(Pictures):
    """(normalised crop (3, S, S), seed (S, S) uint8, image label (C,) float), for AMN and IRN: randomly rescaled."""

    def __init__(
        self, dataset: Dataset, seeds: Path, normalize: Normalize, crop: int, factors: tuple[float, float], seed: int
    ) -> None:
        self.dataset, self.seeds, self.normalize, self.crop, self.factors, self.seed = (
            dataset, seeds, normalize, crop, factors, seed,
        )  # fmt: skip

    def item(self, id: str, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        image = self.dataset.image(id)
        labels = read_seed(self.seeds / f"{id}.png", image.shape[:2], len(self.dataset.classes))
        image, scaled = rescale(image, labels, rng.uniform(*self.factors))
        square, label_square = flip_and_crop(self.normalize(image), scaled, self.crop, rng)
        assert label_square is not None
        return square, label_square, label_tensor(self.dataset, id)


class MaskPictures(Pictures):
    """(normalised crop (3, S, S), mask (S, S) uint8), for the segmentation network: the factor is drawn from a list."""

    def __init__(
        self, dataset: Dataset, masks: Path, normalize: Normalize, crop: int, factors: Sequence[float], seed: int
    ) -> None:
        self.dataset, self.masks, self.normalize, self.crop, self.factors, self.seed = (
            dataset, masks, normalize, crop, tuple(factors), seed,
        )  # fmt: skip

    def item(self, id: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        image = self.dataset.image(id)
        labels = read_seed(self.masks / f"{id}.png", image.shape[:2], len(self.dataset.classes), "mask")
        image, scaled = rescale(image, labels, self.factors[rng.integers(len(self.factors))])
        square, label_square = flip_and_crop(self.normalize(image), scaled, self.crop, rng)
        assert label_square is not None
        return square, label_square


def read_seed(path: Path, size: tuple[int, ...], n_classes: int, kind: str = "seed") -> NDArray[np.uint8]:
    """A seed's or another `kind` of label map, checked against its picture.

    Raises:
        InputError: it has another size or a label outside 0..C and 255.
    """
    labels = read_mask(path)
    if labels.shape != size:
        found = f"{labels.shape[0]} x {labels.shape[1]}"
        raise InputError(f"{kind} {path} is {found}, its picture {size[0]} x {size[1]} (height x width)")
    known = labels[labels != 255]
    if known.size and known.max() > n_classes:
        raise InputError(f"{kind} {path} holds label {known.max()}, expected 0..{n_classes} or 255")
    return labels


def label_tensor(dataset: Dataset, id: str) -> Tensor:
    """Image-level label of picture `id`, (C,) float 0 or 1."""
    return torch.from_numpy(dataset.labels(id).astype(np.float32))
