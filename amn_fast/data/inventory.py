"""What a data set on disk holds, beside what it should hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from amn_fast.data.base import Dataset
from amn_fast.data.coco import COCO_CLASSES
from amn_fast.data.voc import VOC_CLASSES
from amn_fast.errors import InputError

_VOC = {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456, "train_aug": 10582, "trainaug": 10582}
_COCO = {"train2014": 82783, "val2014": 40504}


@dataclass(frozen=True)
class Inventory:
    """The images of a data set, and what is wrong with them.

    Attributes:
        images: how many ids the data set has.
        expected: how many the list has in the official release; None for other lists.
        positives: class -> images that show it.
        missing: kind ("image", "labels", and "mask" where masks were looked at) -> ids.
        strays: what lies beside the data set and is not part of it: reason -> names.
        damaged: what cannot be used: id -> reason.
        doubtful: sentences about class names.
    """

    images: int
    expected: int | None
    positives: dict[str, int]
    missing: dict[str, list[str]]
    strays: dict[str, list[str]]
    damaged: dict[str, str]
    doubtful: list[str]

    @property
    def complete(self) -> bool:
        """Whether nothing is wrong."""
        wrong = [*self.missing.values(), *self.strays.values(), self.damaged, self.doubtful]
        return self.expected in (None, self.images) and not any(wrong)


def take_inventory(
    dataset: Dataset,
    expected: int | None = None,
    *,
    images: bool = False,
    masks: bool = False,
    advance: Callable[[], object] = lambda: None,
) -> Inventory:
    """Count what is there, and list what is missing, damaged or doubtful.

    Args:
        dataset: the data set.
        expected: see `expected_images`.
        images: decode every image too.
        masks: read every ground-truth mask too, and compare its size with the image's and its classes with the labels.
        advance: called after each image.
    """
    missing = dataset.missing()
    unlabelled, absent = set(missing["labels"]), set(missing["image"])
    positives = np.zeros(len(dataset.classes), np.int64)
    damaged: dict[str, str] = {}
    if masks:
        missing["mask"] = []
    for id in dataset.ids:
        try:
            labels = None if id in unlabelled else dataset.labels(id)
            positives += 0 if labels is None else labels
            if images and id not in absent:
                dataset.image(id)
            if masks and (ground_truth := dataset.ground_truth(id)) is None:
                missing["mask"].append(id)
            elif masks and labels is not None and (extra := _beyond(ground_truth, labels, dataset.classes)):
                damaged[id] = f"the mask of {id!r} shows {extra}, which the image's labels lack"
        except InputError as error:
            damaged[id] = str(error)
        advance()
    counted = dict(zip(dataset.classes, positives.tolist(), strict=True))
    return Inventory(len(dataset.ids), expected, counted, missing, dataset.strays(), damaged, _doubtful(counted))


def _beyond(ground_truth: Any, labels: Any, classes: tuple[str, ...]) -> str:
    """The classes that a mask shows and the labels lack."""
    shown = np.isin(np.arange(1, len(classes) + 1), ground_truth)
    return ", ".join(classes[index] for index in np.flatnonzero(shown & ~labels))


def _doubtful(positives: Mapping[str, int]) -> list[str]:
    """Classes without an image, and names that differ only in case or blanks."""
    found = [f"class {name!r} has no image" for name, count in positives.items() if not count]
    alike: dict[str, str] = {}
    for name in positives:
        first = alike.setdefault("".join(name.casefold().split()), name)
        if first != name:
            found.append(f"classes {first!r} and {name!r} differ only in case or blanks")
    return found


def expected_images(kind: str, options: Mapping[str, Any], classes: tuple[str, ...]) -> int | None:
    """The number of images in the official list that `open_dataset(kind, root, **options)` names.

    VOC 2012 has train, val, trainval and test, and trainaug (10,582 with the masks of SBD); COCO 2014 train and val.
    None for other lists, and where the classes are not those of the release.
    """
    if kind == "voc" and classes == VOC_CLASSES:
        return _VOC.get(PurePath(str(options.get("ids", "train"))).stem)
    if kind == "coco" and classes == COCO_CLASSES:
        split = str(options.get("split", "train2014"))
        listed = PurePath(str(options.get("ids") or split)).stem
        return _COCO.get({"train14": "train2014", "val14": "val2014"}.get(listed, listed))
    return None
