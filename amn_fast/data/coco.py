"""COCO 2014 as it lies on disk: instance annotations become image-level labels and semantic masks."""

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import IGNORE
from amn_fast.data.folder import FileDataset, MaskFiles, Truth, unique_ids
from amn_fast.data.image import image_size
from amn_fast.data.labels import Labels, check_classes, label_vector, open_labels, read_json, read_text
from amn_fast.data.masks import describe_size
from amn_fast.errors import InputError, MissingExtra

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
) -> FileDataset:
    """The pictures of one split of COCO, in the folder `root`; paths are in it, absolute ones stand for themselves.

    An id is the number of a picture with 12 digits, `000000000009`. The classes are the categories of the instances
    file in the order of their ids.

    Args:
        split: the folder of pictures, and the middle part of the name of the instances file.
        ids: a text file of ids (numbers or file names), one a line; without it all pictures of the split.
        instances: the instances file; without it `annotations/instances_SPLIT.json`.
        labels: a source of labels, see `amn_fast.data.labels.open_labels`; without it the instances.
        masks: a folder of ground-truth masks `ID.png`; without it masks are drawn from the instances when asked for.

    Raises:
        InputError: a path is missing, or a file in it is not what it has to be.
    """
    root = Path(root)
    path = root / (instances or f"annotations/instances_{split}.json")
    found = Instances(read_json(path), path)
    folder = root / split
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of pictures")
    present = set(os.listdir(folder))
    pictures = {id: folder / name for id, name in found.file_names.items() if name in present}
    chosen = _read_list(root / ids, found.file_names) if ids else tuple(sorted(found.file_names))
    table = open_labels(root / labels, found.classes) if labels else found.labels()
    truth: Truth = MaskFiles(root / masks, pictures, len(found.classes)) if masks else InstanceMasks(found, pictures)
    return CocoDataset(f"{root.name}-{split}", chosen, pictures, table, truth, found.category_ids)


class CocoDataset(FileDataset):
    """Pictures of COCO.

    Attributes:
        category_ids: COCO's ids by the categories' names; with its 80 classes they lie in 1..90.
    """

    def __init__(
        self,
        name: str,
        ids: Sequence[str],
        images: Mapping[str, Path],
        labels: Labels,
        truth: Truth,
        category_ids: dict[str, int],
    ) -> None:
        super().__init__(name, ids, images, labels, truth)
        self.category_ids = category_ids


class Instances:
    """An instances file: its classes, its pictures' file names, and the annotated objects of each picture."""

    def __init__(self, value: Any, path: Path) -> None:
        """`value` is the JSON read from `path`. Raises InputError when it has not the form of COCO's files."""
        self.path = path
        try:
            categories = sorted(value["categories"], key=lambda category: category["id"])
            self.classes = check_classes([category["name"] for category in categories], path)
            self.category_ids: dict[str, int] = {category["name"]: category["id"] for category in categories}
            self._label_of = {category["id"]: label for label, category in enumerate(categories, 1)}
            self.file_names = {coco_id(image["id"]): str(image["file_name"]) for image in value["images"]}
            self.sizes = {
                coco_id(image["id"]): (int(image["height"]), int(image["width"])) for image in value["images"]
            }
            self._objects: dict[str, list[dict[str, Any]]] = {id: [] for id in self.file_names}
            for annotation in value["annotations"]:
                kept = {key: annotation.get(key) for key in ("category_id", "iscrowd", "segmentation")}
                self._objects[coco_id(annotation["image_id"])].append(kept)
                if annotation["category_id"] not in self._label_of:
                    raise InputError(
                        f"{path}: picture {coco_id(annotation['image_id'])} has the unknown category "
                        f"{annotation['category_id']!r}"
                    )
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: is no instances file; it lacks or damages {error} in images, categories or annotations"
            ) from error

    def labels(self, classes: tuple[str, ...] | None = None) -> Labels:
        """The classes of the objects in each picture, crowds included; `classes` may give another order of names."""
        classes = classes or self.classes
        return Labels(classes, self.file_names, partial(self._vector, classes))

    def _vector(self, classes: tuple[str, ...], id: str) -> NDArray[np.bool_]:
        names = [self.classes[self._label_of[item["category_id"]] - 1] for item in self._objects[id]]
        return label_vector(names, classes, self.path, id)

    def mask(self, id: str) -> NDArray[np.uint8]:
        """The semantic mask of a picture: smaller objects lie on larger ones, crowds (255) below all objects.

        Raises:
            InputError: an outline or run-length code does not fit the picture.
        """
        size = self.sizes[id]
        mask = np.zeros(size, np.uint8)
        drawn = [(item, _decode(item, size, f"{self.path}: an object of {id}")) for item in self._objects[id]]
        drawn.sort(key=lambda pair: (not pair[0].get("iscrowd"), -int(np.count_nonzero(pair[1]))))
        for item, region in drawn:
            mask[region] = IGNORE if item.get("iscrowd") else self._label_of[item["category_id"]]
        return mask


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


def coco_id(number: Any) -> str:
    """The id of a picture: its number, 12 digits."""
    return f"{int(number):012d}"


def _read_list(path: Path, file_names: Mapping[str, str]) -> tuple[str, ...]:
    by_stem = {Path(name).stem: id for id, name in file_names.items()}
    return unique_ids((_id_in(line.strip(), by_stem) for line in read_text(path).splitlines()), path)


def _id_in(line: str, by_stem: Mapping[str, str]) -> str:
    """The id that a line of a list means: the number, or the file name with or without folder and ending."""
    stem = re.sub(r"\.(jpe?g|png)$", "", line.rsplit("/", 1)[-1], flags=re.IGNORECASE)
    if stem in by_stem:
        return by_stem[stem]
    return coco_id(stem) if stem.isascii() and stem.isdigit() else stem


def _decode(item: Mapping[str, Any], size: tuple[int, int], what: str) -> NDArray[np.bool_]:
    """The pixels of one object, (H, W) bool, from polygons, runs, or COCO's compressed runs."""
    try:
        from faster_coco_eval.core import mask as coder
    except ImportError as error:
        raise MissingExtra("COCO's outlines need faster-coco-eval: pip install 'amn-fast[pipeline]'") from error
    height, width = size
    code: Any = item.get("segmentation")
    if code == []:
        return np.zeros(size, bool)
    try:
        runs: Any = code
        if isinstance(code, list):
            _check_polygons(code, size)
            runs = coder.merge(coder.frPyObjects(code, height, width))
        else:
            if list(code["size"]) != [height, width]:
                raise ValueError(f"a run-length code for another size, {code['size']}")
            if isinstance(code["counts"], list):
                runs = coder.frPyObjects(code, height, width)
        return coder.decode(runs).astype(bool)
    except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        raise InputError(f"{what}, {describe_size(size)}, has a damaged outline: {error}") from error


def _check_polygons(polygons: list[Any], size: tuple[int, int]) -> None:
    """Raise ValueError for what would send the decoder astray: odd lists, or corners more than a picture outside."""
    for polygon in polygons:
        corners = np.asarray(polygon, float)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2:
            raise ValueError("a polygon that is not a list of x, y of at least three corners")
        corners = corners.reshape(-1, 2) / size[::-1]
        if not ((corners >= -1) & (corners <= 2)).all():
            raise ValueError("a corner far outside the picture")
