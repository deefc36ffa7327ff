"""COCO 2014 in its own file layout: instance annotations become image-level labels and semantic masks."""

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.classes import Labels
from amn_fast.data.folder import FileDataset, GroundTruth, MaskFiles
from amn_fast.data.image import image_size
from amn_fast.data.instances import Instances, coco_id
from amn_fast.data.labels import open_labels
from amn_fast.data.masks import describe_size
from amn_fast.data.names import unique_ids
from amn_fast.data.text import read_json, read_text
from amn_fast.errors import InputError

COCO_CLASSES = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)
"""The 80 classes in the order of their category ids."""


def open_coco(
    root: Path | str,
    *,
    split: str = "train2014",
    ids: str | None = None,
    instances: str | None = None,
    labels: str | None = None,
    masks: str | None = None,
    foreground: int | None = None,
) -> FileDataset:
    """Open the images of one split of COCO, in the folder `root`; relative paths are below it.

    An id is the number of an image with 12 digits, `000000000009`. The classes are the categories of the instances
    file in the order of their ids. A `file_name` may hold folders, below the split's folder or below `root`.

    Args:
        root: the folder of the data set.
        split: the folder of images, and the middle part of the name of the instances file.
        ids: a text file of ids (numbers or file names), one a line; without it all images of the split.
        instances: the instances file; without it `annotations/instances_SPLIT.json`.
        labels: a source of labels, see `amn_fast.data.labels.open_labels`; without it the instances.
        masks: a folder of ground-truth masks `ID.png`; without it masks are drawn from the instances when asked for.
        foreground: the value of the foreground in binary masks, see `amn_fast.data.image.read_mask`.

    Raises:
        InputError: a path is missing, or a file is not as expected.
    """
    root = Path(root)
    path = root / (instances or f"annotations/instances_{split}.json")
    found = Instances(read_json(path), path)
    folder = root / split
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of images")
    images = _find_images(root, folder, found.file_names)
    chosen = _read_list(root / ids, found.file_names) if ids else tuple(sorted(found.file_names))
    table = open_labels(root / labels, found.classes, foreground=foreground) if labels else found.labels()
    ground_truth: GroundTruth = InstanceMasks(found, images)
    if masks:
        ground_truth = MaskFiles(root / masks, images, len(found.classes), foreground)
    return CocoDataset(f"{root.name}-{split}", chosen, images, table, ground_truth, found.category_ids)


class CocoDataset(FileDataset):
    """Images of COCO.

    Attributes:
        category_ids: COCO's ids by the categories' names; with its 80 classes they lie in 1..90.
    """

    def __init__(
        self,
        name: str,
        ids: Sequence[str],
        images: Mapping[str, Path],
        labels: Labels,
        ground_truth: GroundTruth,
        category_ids: dict[str, int],
    ) -> None:
        super().__init__(name, ids, images, labels, ground_truth)
        self.category_ids = category_ids


class InstanceMasks:
    """Ground truth drawn from instances when asked for."""

    def __init__(self, instances: Instances, images: Mapping[str, Path]) -> None:
        self._instances, self._images = instances, images

    def file(self, id: str) -> Path | None:
        return self._instances.path if id in self._instances.file_names else None

    def __call__(self, id: str) -> NDArray[np.uint8] | None:
        if id not in self._instances.file_names:
            return None
        size = self._instances.sizes[id]
        if id in self._images and (stored := image_size(self._images[id])) != size:
            raise InputError(
                f"{self._images[id]}: {describe_size(stored)}, but {self._instances.path} says {describe_size(size)}"
            )
        return self._instances.mask(id)


def _find_images(root: Path, folder: Path, file_names: Mapping[str, str]) -> dict[str, Path]:
    """The image files that are there, by id."""
    present = set(os.listdir(folder))
    found: dict[str, Path] = {}
    for id, name in file_names.items():
        name = posixpath.normpath(name.replace("\\", "/"))
        if name in present:
            found[id] = folder / name
        elif "/" in name and not name.startswith(("../", "/")):
            place = next((place for place in (folder, root) if (place / name).is_file()), None)
            if place is not None:
                found[id] = place / name
    return found


def _read_list(path: Path, file_names: Mapping[str, str]) -> tuple[str, ...]:
    by_stem = {Path(name).stem: id for id, name in file_names.items()}
    return unique_ids((_id_in(line.strip(), by_stem) for line in read_text(path).splitlines()), path)


def _id_in(line: str, by_stem: Mapping[str, str]) -> str:
    """The id that a line of a list means: the number, or the file name with or without folder and ending."""
    stem = re.sub(r"\.(jpe?g|png)$", "", line.rsplit("/", 1)[-1], flags=re.IGNORECASE)
    if stem in by_stem:
        return by_stem[stem]
    return coco_id(stem) if stem.isascii() and stem.isdigit() and len(stem) <= 18 else stem
