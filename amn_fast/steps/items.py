"""Training items: one random crop of each image per epoch, with its image label and, where there is one, its seed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from amn_fast.data.augment import Normalize, flip_and_crop, item_generator, rescale, resize_image
from amn_fast.data.base import Dataset
from amn_fast.errors import BackendError, InputError, MissingExtra

LabelMap = Callable[[str], NDArray[np.uint8]]
"""Reads the label map (H, W) of an id."""


class ItemDataset(TorchDataset[Any]):
    """One image's part of a batch, by (epoch, index).

    An image that cannot be used gives its error, for the trainer to raise: a process that loads images would bury the
    sentence in a traceback.
    """

    dataset: Dataset
    random_seed: int

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, ...] | InputError:
        epoch, index = key
        id = self.dataset.ids[index]
        try:
            with naming_image(id):
                return self.item(id, item_generator(self.random_seed, epoch, index))
        except InputError as error:
            return error

    def item(self, id: str, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """One image's part of a batch."""
        raise NotImplementedError


class ClassifierDataset(ItemDataset):
    """(normalised crop (3, S, S), image label (C,) float), for the classifier: the long side is drawn from a range."""

    def __init__(
        self, dataset: Dataset, normalize: Normalize, crop: int, long_side: tuple[int, int], random_seed: int
    ) -> None:
        self.dataset, self.normalize, self.crop, self.long_side, self.random_seed = (
            dataset, normalize, crop, long_side, random_seed,
        )  # fmt: skip

    def item(self, id: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        image = self.dataset.image(id)
        factor = rng.integers(self.long_side[0], self.long_side[1] + 1) / max(image.shape[:2])
        image = resize_image(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))
        square, _ = flip_and_crop(self.normalize(image), None, self.crop, rng)
        return square, label_tensor(self.dataset, id)


class SeedDataset(ItemDataset):
    """(normalised crop (3, S, S), seed (S, S) uint8, image label (C,) float), for AMN and IRN: randomly resized."""

    def __init__(
        self,
        dataset: Dataset,
        seeds: LabelMap,
        normalize: Normalize,
        crop: int,
        factors: tuple[float, float],
        random_seed: int,
    ) -> None:
        self.dataset, self.seeds, self.normalize, self.crop, self.factors, self.random_seed = (
            dataset, seeds, normalize, crop, factors, random_seed,
        )  # fmt: skip

    def item(self, id: str, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        image = self.dataset.image(id)
        labels = checked_labels(self.seeds(id), image.shape[:2], len(self.dataset.classes), f"seed of image {id!r}")
        image, scaled = rescale(image, labels, rng.uniform(*self.factors))
        square, label_square = flip_and_crop(self.normalize(image), scaled, self.crop, rng)
        assert label_square is not None
        return square, label_square, label_tensor(self.dataset, id)


class MaskDataset(ItemDataset):
    """(normalised crop (3, S, S), mask (S, S) uint8), for the segmentation network: the factor is drawn from a list."""

    def __init__(
        self,
        dataset: Dataset,
        masks: LabelMap,
        normalize: Normalize,
        crop: int,
        factors: Sequence[float],
        random_seed: int,
    ) -> None:
        self.dataset, self.masks, self.normalize, self.crop, self.factors, self.random_seed = (
            dataset, masks, normalize, crop, tuple(factors), random_seed,
        )  # fmt: skip

    def item(self, id: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        image = self.dataset.image(id)
        labels = checked_labels(self.masks(id), image.shape[:2], len(self.dataset.classes), f"mask of image {id!r}")
        image, scaled = rescale(image, labels, self.factors[rng.integers(len(self.factors))])
        square, label_square = flip_and_crop(self.normalize(image), scaled, self.crop, rng)
        assert label_square is not None
        return square, label_square


def checked_labels(labels: NDArray[np.uint8], size: tuple[int, ...], n_classes: int, name: str) -> NDArray[np.uint8]:
    """A label map, checked against its image.

    Raises:
        InputError: it has another size or a label outside 0..C and 255.
    """
    if labels.shape != size:
        raise InputError(f"{name}: found {labels.shape}, expected the size of the image, {size} (height, width)")
    known = labels[labels != 255]
    if known.size and known.max() > n_classes:
        raise InputError(f"{name}: holds label {known.max()}, expected 0..{n_classes} or 255")
    return labels


def label_tensor(dataset: Dataset, id: str) -> Tensor:
    """Image-level label of image `id`, (C,) float 0 or 1."""
    return torch.from_numpy(dataset.labels(id).astype(np.float32))


@contextmanager
def naming_image(id: str) -> Iterator[None]:
    """Make every error name the image it came from, on whatever thread or process it happens."""
    try:
        yield
    except InputError as error:
        if id in str(error):
            raise
        raise InputError(f"image {id!r}: {error}") from error
    except (BackendError, MissingExtra, OSError):
        raise  # the installation or the disk, not the image
    except Exception as error:
        raise RuntimeError(f"image {id!r}: {type(error).__name__}: {error}") from error
