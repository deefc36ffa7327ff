"""What a data set on disk holds, beside what it should hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from amn_fast.data.base import Dataset
from amn_fast.data.coco import COCO_CLASSES
from amn_fast.data.voc import VOC_CLASSES

_VOC = {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456, "train_aug": 10582, "trainaug": 10582}
_COCO = {"train2014": 82783, "val2014": 40504}


@dataclass(frozen=True)
class Inventory:
    """The pictures of a data set, and what they lack.

    Attributes:
        pictures: how many ids the data set has.
        expected: how many the list has in the official release; None for other lists.
        positives: class -> pictures that show it.
        missing: kind ("image", "labels", and "mask" where masks were looked at) -> ids.
    """

    pictures: int
    expected: int | None
    positives: dict[str, int]
    missing: dict[str, list[str]]

    @property
    def complete(self) -> bool:
        return self.expected in (None, self.pictures) and not any(self.missing.values())


def take_inventory(
    dataset: Dataset, expected: int | None = None, *, masks: bool = False, advance: Callable[[], object] = lambda: None
) -> Inventory:
    """Count what is there and list what is not.

    Args:
        expected: see `expected_pictures`.
        masks: read every ground-truth mask too, which also checks its size and labels.
        advance: called after each mask.

    Raises:
        InputError: a mask cannot be used.
    """
    missing = dataset.missing()
    unlabelled = set(missing["labels"])
    positives = np.zeros(len(dataset.classes), np.int64)
    for id in dataset.ids:
        if id not in unlabelled:
            positives += dataset.labels(id)
    if masks:
        missing["mask"] = []
        for id in dataset.ids:
            if dataset.truth(id) is None:
                missing["mask"].append(id)
            advance()
    counted = dict(zip(dataset.classes, positives.tolist(), strict=True))
    return Inventory(len(dataset.ids), expected, counted, missing)


def expected_pictures(kind: str, options: Mapping[str, Any], classes: tuple[str, ...]) -> int | None:
    """How many pictures the official list has that `open_dataset(kind, root, **options)` names.

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
