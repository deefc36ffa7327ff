"""COCO's instances files: their categories, images and annotated objects, as image-level labels and semantic masks."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import IGNORE, quote
from amn_fast.data.classes import Labels, check_classes, is_background, label_vector
from amn_fast.data.text import describe_json
from amn_fast.errors import InputError, MissingExtra

_MOST_DIGITS = 18
_MOST_PIXELS = 1 << 28
_MOST_PERIMETER = 1000
"""The longest outline that is drawn, in multiples of the image's height plus width."""


class Instances:
    """An instances file.

    A category called `_background_` or the like, as labelme's files begin with, is no class.

    Attributes:
        path: the file.
        classes: the categories' names in the order of their ids.
        category_ids: COCO's ids by the categories' names.
        file_names: the images' file names by id.
        sizes: the images' (height, width) by id.
    """

    def __init__(self, value: Any, path: Path) -> None:
        """Take the JSON `value` read from `path`.

        Raises:
            InputError: it has not the form of COCO's instances files, or an id is a duplicate.
        """
        self.path = path
        categories = self._categories(_rows(value, "categories", path))
        self.classes = check_classes([name for _, name in categories], path)
        self.category_ids = {name: number for (number, _), name in zip(categories, self.classes, strict=True)}
        self._label_of = {number: label for label, (number, _) in enumerate(categories, 1)}
        self.file_names: dict[str, str] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self._read_images(_rows(value, "images", path))
        self._objects: dict[str, list[dict[str, Any]]] = {id: [] for id in self.file_names}
        self._read_annotations(_rows(value, "annotations", path))

    def _categories(self, rows: Iterable[dict[str, Any]]) -> list[tuple[int, str]]:
        """The categories' ids and names in the order of their ids, without the background."""
        self._background_ids = set()
        named: dict[int, Any] = {}
        for row in rows:
            number = _number(row.get("id"), f"{self.path}: a category's id")
            name = row.get("name")
            if number in named:
                raise InputError(
                    f"{self.path}: the categories {quote(named[number])} and {quote(name)} have the same id {number}"
                )
            named[number] = name
            if is_background(name):
                self._background_ids.add(number)
        return [(number, named[number]) for number in sorted(named) if number not in self._background_ids]

    def _read_images(self, rows: Iterable[dict[str, Any]]) -> None:
        id_of: dict[str, str] = {}
        for row in rows:
            id = coco_id(row.get("id"), f"{self.path}: an image's id")
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                raise InputError(f"{self.path}: image {id} has no file_name")
            if id in self.file_names:
                raise InputError(
                    f"{self.path}: the images {quote(self.file_names[id])} and {quote(name)} have the same id {id}"
                )
            if name in id_of:
                raise InputError(
                    f"{self.path}: the images {id_of[name]} and {id} have the same file_name {quote(name)}"
                )
            height: Any = row.get("height")
            width: Any = row.get("width")
            if not (_is_side(height) and _is_side(width) and height * width <= _MOST_PIXELS):
                found = f"{_shown(height)} and {_shown(width)}"
                raise InputError(
                    f"{self.path}: height and width of image {id} are {found}, expected integers from 1 on"
                )
            id_of[name] = id
            self.file_names[id] = name
            self.sizes[id] = (height, width)

    def _read_annotations(self, rows: Iterable[dict[str, Any]]) -> None:
        image_of: dict[int, str] = {}
        for place, row in enumerate(rows):
            name = f"annotation {_shown(row['id'])}" if "id" in row else f"annotation number {place}"
            what = f"{self.path}: {name}"
            id = coco_id(row.get("image_id"), f"{what}: image_id")
            if "id" in row:
                number = _number(row["id"], f"{self.path}: an annotation's id")
                if number in image_of:
                    raise InputError(f"{what} is a duplicate, of the images {image_of[number]} and {id}")
                image_of[number] = id
            if id not in self._objects:
                raise InputError(f"{what} belongs to image {id}, which is not among the images")
            category = _number(row.get("category_id"), f"{what}: category_id")
            if category in self._background_ids:
                continue
            if category not in self._label_of:
                raise InputError(f"{what} of image {id} has the unknown category {category}")
            kept = {key: row.get(key) for key in ("iscrowd", "segmentation", "bbox")}
            self._objects[id].append({"name": name, "label": self._label_of[category], **kept})

    def labels(self, classes: tuple[str, ...] | None = None) -> Labels:
        """The classes of the objects in each image, crowds included; `classes` may give another order of names."""
        classes = classes or self.classes
        return Labels(classes, self.file_names, partial(self._vector, classes))

    def _vector(self, classes: tuple[str, ...], id: str) -> NDArray[np.bool_]:
        names = [self.classes[item["label"] - 1] for item in self._objects[id]]
        return label_vector(names, classes, self.path, id)

    def mask(self, id: str) -> NDArray[np.uint8]:
        """Draw the semantic mask of an image: smaller objects lie on larger ones.

        Crowds are 255 (unknown) and lie below all objects, and so does the box of an object without an outline
        (`segmentation` missing or empty): what is not annotated is unknown, not background.

        Raises:
            InputError: an outline, box or run-length code does not fit the image; the message names the annotation.
        """
        size = self.sizes[id]
        mask = np.zeros(size, np.uint8)
        drawn = []
        for item in self._objects[id]:
            region, outlined = _region(item, size, f"{self.path}: {item['name']} of image {id}")
            unknown = not outlined or bool(item["iscrowd"])
            drawn.append((not unknown, -int(np.count_nonzero(region)), IGNORE if unknown else item["label"], region))
        for _, _, label, region in sorted(drawn, key=lambda entry: entry[:2]):
            mask[region] = label
        return mask


def coco_id(number: Any, what: str = "an image's id") -> str:
    """The id of an image: its number, 12 digits."""
    return f"{_number(number, what):012d}"


def _number(value: Any, what: str) -> int:
    """An id: a number from 0 on, or its digits as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**_MOST_DIGITS:
        raise InputError(f"{what} is {_shown(value)}, expected a number of at most {_MOST_DIGITS} digits")
    return value


def _shown(value: Any) -> str:
    """A JSON value for a message, cut; Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_MOST_DIGITS:
        return "a number of more digits"
    if value is None:
        return "missing"
    return f"{value!r:.60}" if isinstance(value, str | int | float) else describe_json(value)


def _rows(value: Any, key: str, path: Path) -> list[dict[str, Any]]:
    rows = value.get(key) if isinstance(value, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(
            f"{path}: is {describe_json(value)}, no instances file; expected lists of images, categories, annotations"
        )
    return rows


def _region(item: Mapping[str, Any], size: tuple[int, int], what: str) -> tuple[NDArray[np.bool_], bool]:
    """The pixels of one object, (H, W) bool, and whether they are its outline or only its box."""
    code = item["segmentation"]
    if code is None or code == []:
        return _box(item["bbox"], size, what), False
    if isinstance(code, list):
        return _polygons(code, size, what), True
    if isinstance(code, dict):
        return _runs(code, size, what), True
    raise InputError(f"{what}: segmentation is {_shown(code)}, expected polygons or a run-length code")


def _box(box: Any, size: tuple[int, int], what: str) -> NDArray[np.bool_]:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(side) for side in box) or min(box[2:]) <= 0:
        raise InputError(f"{what} has neither an outline nor a box [x, y, width, height], so its place is unknown")
    region = np.zeros(size, bool)
    x, y, width, height = box
    rows = slice(_clip(math.floor(y), size[0]), _clip(math.ceil(y + height), size[0]))
    region[rows, _clip(math.floor(x), size[1]) : _clip(math.ceil(x + width), size[1])] = True
    return region


def _clip(value: int, most: int) -> int:
    return max(0, min(value, most))


def _is_side(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _polygons(polygons: list[Any], size: tuple[int, int], what: str) -> NDArray[np.bool_]:
    """Rasterise; refused before is what would send the decoder astray."""
    coder = _coder()
    for place, polygon in enumerate(polygons, 1):
        where = f"{what}: polygon {place}"
        if not isinstance(polygon, list) or not all(_is_finite(number) for number in polygon):
            raise InputError(f"{where} is not a list of numbers, expected x, y of each corner")
        if len(polygon) < 6 or len(polygon) % 2:
            raise InputError(f"{where} has {len(polygon)} numbers, expected x, y of at least three corners")
        corners = np.asarray(polygon, float).reshape(-1, 2)
        shares = corners / size[::-1]
        if not ((shares >= -1) & (shares <= 2)).all():
            raise InputError(f"{where} has a corner far outside the image, {size[1]} x {size[0]} pixels")
        if np.abs(np.diff(corners, axis=0)).sum() > _MOST_PERIMETER * sum(size):
            raise InputError(f"{where} is longer than {_MOST_PERIMETER} times the image's height and width")
    try:
        return coder.decode(coder.merge(coder.frPyObjects(polygons, *size))).astype(bool)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise InputError(f"{what}: its polygons cannot be drawn") from error


def _runs(code: dict[str, Any], size: tuple[int, int], what: str) -> NDArray[np.bool_]:
    """Decode run lengths, alternately outside and inside, down the columns; as a list, or in COCO's compressed text."""
    if code.get("size") != list(size):
        raise InputError(f"{what}: its run-length code is for the size {_shown(code.get('size'))}, not {list(size)}")
    counts = code.get("counts")
    lengths = _decompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(type(run) is int and run >= 0 for run in lengths):
        raise InputError(f"{what}: its run-length code holds something other than lengths from 0 on")
    if sum(lengths) != size[0] * size[1]:
        raise InputError(f"{what}: its run-length code has {_shown(sum(lengths))} pixels, expected {size[0] * size[1]}")
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(size, order="F")


def _decompressed(text: str) -> list[int] | None:
    """COCO's compressed runs: groups of five bits, signed, from the third run on as the difference to the last but one.

    None for text that is no such code.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text.encode("utf-8", "replace"):
        group = letter - 48
        if not 0 <= group < 64 or shift > 60:
            return None
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if shift == 0 else None


def _coder() -> Any:
    try:
        from faster_coco_eval.core import mask as coder
    except ImportError as error:
        raise MissingExtra("COCO's outlines need faster-coco-eval: pip install 'amn-fast[pipeline]'") from error
    return coder
