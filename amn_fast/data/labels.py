"""Image-level labels: the text files they are kept in, and the annotations they can be taken from.

A label file is CSV, one row a picture and one 0/1 column a class,

    id,cat,cup
    2007_000032,1,0

or JSON, `{"classes": ["cat", "cup"], "labels": {"2007_000032": ["cat"]}}`. A picture without any class has a row of
zeros or an empty list; a picture that is not listed has no label. Two more forms are read: CSV with the two columns
`id,labels`, the names separated by `;`, and JSON without the classes, `{"2007_000032": ["cat"]}`.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import IGNORE
from amn_fast.data.legacy import read_legacy, write_legacy
from amn_fast.errors import InputError
from amn_fast.files import write_json, write_text

Vector = NDArray[np.bool_]
_BACKGROUND = frozenset({"background", "_background_", "__background__"})


class Labels(Mapping[str, Vector]):
    """Labels by id, (C,) bool each, computed when first asked for."""

    def __init__(self, classes: tuple[str, ...], ids: Iterable[str], of: Callable[[str], Vector]) -> None:
        self.classes = classes
        self._known: dict[str, Vector | None] = dict.fromkeys(ids)
        self._of = of

    def __getitem__(self, id: str) -> Vector:
        vector = self._known[id]
        if vector is None:
            vector = self._known[id] = self._of(id)
        return vector

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, id: object) -> bool:
        return id in self._known


def read_classes(path: Path | str) -> tuple[str, ...]:
    """The class names in a text file, one a line; a first line `background` is not a class and left out.

    Raises:
        InputError: the file is missing or empty, or a name stands twice.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if names and names[0].lower() in _BACKGROUND:
        names = names[1:]
    return check_classes(names, path)


def check_classes(names: Iterable[str], where: Path | str) -> tuple[str, ...]:
    """`names` as a tuple, checked: 1 to 254 different names, none of them the background."""
    names = tuple(names)
    if not 1 <= len(names) < IGNORE:
        raise InputError(f"{where}: names {len(names)} classes, expected 1 to {IGNORE - 1}")
    for name in names:
        if not isinstance(name, str) or not name or names.count(name) > 1:
            raise InputError(f"{where}: the class {name!r} is empty, no text, or named twice")
        if name.lower() in _BACKGROUND:
            raise InputError(f"{where}: {name!r} is not a class; it may only be the first line of a list of names")
    return names


def open_labels(source: Path | str, classes: tuple[str, ...] | None = None) -> Labels:
    """The labels in `source`: a label file (`.csv`, `.json`), COCO's instances (`.json`), the published code's
    `cls_labels.npy`, a folder of VOC annotations (`.xml`), or a folder of masks (`.png`).

    `classes` are the names, in the order of the vectors; without them a file's own names count, in its order.

    Raises:
        InputError: the source is missing or damaged, names a class outside `classes`, or needs `classes`.
    """
    source = Path(source)
    if source.is_dir():
        if any(source.glob("*.xml")):
            return _from_xml(source, classes)
        return _from_masks(source, classes)
    if source.suffix.lower() == ".csv":
        return _from_names(source, *_read_csv(source), classes)
    if source.suffix.lower() == ".json":
        value = read_json(source)
        if isinstance(value, dict) and "annotations" in value:
            from amn_fast.data.coco import Instances

            return Instances(value, source).labels(classes)
        return _from_names(source, *_parse_json(value, source), classes)
    if source.suffix.lower() == ".npy":
        return _from_npy(source, classes)
    raise InputError(f"{source}: is no source of labels; expected .csv, .json, .npy, a folder of .xml or of masks")


def write_labels(path: Path | str, labels: Mapping[str, Vector], classes: Sequence[str], ids: Iterable[str]) -> None:
    """Write the labels of `ids` to a label file, atomically: CSV, JSON or `cls_labels.npy` by the suffix of `path`.

    The last is the published code's, a pickled dictionary from the id as a number to a float32 vector, without names.

    Raises:
        InputError: another suffix, or a class name or an id that the format cannot hold.
    """
    path = Path(path)
    classes = check_classes(classes, path)
    if path.suffix.lower() == ".json":
        named = {id: [name for name, on in zip(classes, labels[id], strict=True) if on] for id in ids}
        write_json(path, {"classes": list(classes), "labels": named})
    elif path.suffix.lower() == ".csv":
        if classes == ("labels",):
            raise InputError(f"{path}: a single class called 'labels' cannot be told from the column of that name")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", *classes])
        writer.writerows([id, *map(int, labels[id])] for id in ids)
        write_text(path, text.getvalue())
    elif path.suffix.lower() == ".npy":
        _write_npy(path, labels, ids)
    else:
        raise InputError(f"{path}: a label file ends in .csv, .json or .npy")


def _write_npy(path: Path, labels: Mapping[str, Vector], ids: Iterable[str]) -> None:
    table: dict[int, NDArray[np.float32]] = {}
    for id in ids:
        number = _number(id)
        if number is None or number in table:
            problem = "is no number" if number is None else f"stands for {number}, as another id does"
            raise InputError(f"{path}: the id {id!r} {problem}; this form names pictures by different numbers")
        table[number] = labels[id].astype(np.float32)
    write_legacy(path, table)


def join(keys: Iterable[str], ids: Sequence[str]) -> dict[str, str]:
    """Which of `keys` belongs to which of `ids`: the same text, or else the same number.

    Label files name `2007_000032` also `2007000032`, and `000000000009` also `9`.

    Raises:
        InputError: two keys, or two ids, that no exact match tells apart are the same number.
    """
    keys = set(keys)
    joined = {id: id for id in ids if id in keys}
    numbered: dict[int, str] = {}
    for key in keys.difference(joined):
        number = _number(key)
        if number is not None and numbered.setdefault(number, key) != key:
            raise InputError(f"the labels name the number {number} twice, as {numbered[number]!r} and {key!r}")
    used: dict[str, str] = {}
    for id in ids:
        number = _number(id)
        if id in joined or number is None or number not in numbered:
            continue
        joined[id] = numbered[number]
        if used.setdefault(joined[id], id) != id:
            raise InputError(f"the label {joined[id]!r} fits two pictures, {used[joined[id]]!r} and {id!r}")
    return joined


def _number(id: str) -> int | None:
    digits = id.replace("_", "")
    return int(digits) if digits.isascii() and digits.isdigit() else None


def read_text(path: Path | str) -> str:
    """The UTF-8 text in `path`, without a byte-order mark.

    Raises:
        InputError: the file is missing or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text") from error


def read_json(path: Path | str) -> Any:
    """The JSON value in `path`.

    Raises:
        InputError: the file is missing or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from error


def label_vector(names: Iterable[str], classes: tuple[str, ...], path: Path | str, id: str) -> Vector:
    """`names` as (C,) bool; InputError, naming file, id and name, when one is not in `classes`."""
    vector = np.zeros(len(classes), bool)
    for name in names:
        if name not in classes:
            raise InputError(f"{path}: {id!r} has the unknown class {name!r}; the classes are {', '.join(classes)}")
        vector[classes.index(name)] = True
    return vector


def _from_names(path: Path, own: tuple[str, ...], rows: dict[str, list[str]], given: tuple[str, ...] | None) -> Labels:
    classes = given or check_classes(own, path)
    vectors = {id: label_vector(names, classes, path, id) for id, names in rows.items()}
    return Labels(classes, vectors, vectors.__getitem__)


def _names_in(rows: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(sorted({name for names in rows.values() for name in names}))


def _read_csv(path: Path) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """The classes and the names by id."""
    try:
        table = list(csv.reader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise InputError(f"{path}: is not CSV: {error}") from error
    lines = [row for row in table if any(cell.strip() for cell in row)]
    if not lines or len(lines[0]) < 2 or lines[0][0].strip().lower() != "id":
        raise InputError(f"{path}: the first line has to be 'id,' and the names of the classes, or 'id,labels'")
    header = tuple(cell.strip() for cell in lines[0][1:])
    rows: dict[str, list[str]] = {}
    for line in lines[1:]:
        id, cells = line[0].strip(), [cell.strip() for cell in line[1:]]
        if len(cells) != len(header):
            raise InputError(f"{path}: the line of {id!r} has {len(cells)} values, expected {len(header)}")
        if id in rows:
            raise InputError(f"{path}: the id {id!r} stands twice")
        if header == ("labels",):
            rows[id] = [name.strip() for name in cells[0].split(";") if name.strip()]
            continue
        if not set(cells) <= {"0", "1"}:
            strange = next(cell for cell in cells if cell not in ("0", "1"))
            raise InputError(f"{path}: {id!r} has the value {strange!r}, expected 0 or 1")
        rows[id] = [name for name, cell in zip(header, cells, strict=True) if cell == "1"]
    return (_names_in(rows) if header == ("labels",) else header), rows


def _parse_json(value: Any, path: Path) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """The classes and the names by id."""
    full = isinstance(value, dict) and isinstance(value.get("labels"), dict) and isinstance(value.get("classes"), list)
    rows = value["labels"] if full else value
    if not isinstance(rows, dict):
        raise InputError(f'{path}: has to be {{"classes": [names], "labels": {{id: [names]}}}}')
    for id, names in rows.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{path}: the label of {id!r} is {names!r}, expected a list of class names")
    return (tuple(value["classes"]) if full else _names_in(rows)), rows


def _from_npy(path: Path, classes: tuple[str, ...] | None) -> Labels:
    """The published code's `cls_labels.npy`: a pickled dictionary from id, often a number, to a 0/1 vector."""
    if classes is None:
        raise InputError(f"{path}: holds no class names, so the names of the classes have to be given")
    table = read_legacy(path)
    if not isinstance(table, dict):
        raise InputError(f"{path}: holds a {type(table).__name__}, expected a dictionary from id to 0/1 vector")
    vectors: dict[str, Vector] = {}
    for key, value in table.items():
        vector = np.asarray(value)
        if vector.shape != (len(classes),):
            raise InputError(
                f"{path}: the label of {key} has shape {vector.shape}, expected one value for each of "
                f"{len(classes)} classes"
            )
        if not np.isin(vector, (0, 1)).all():
            raise InputError(f"{path}: the label of {key} has values other than 0 and 1")
        vectors[str(key)] = vector.astype(bool)
    return Labels(classes, vectors, vectors.__getitem__)


def _from_xml(folder: Path, classes: tuple[str, ...] | None) -> Labels:
    """The names of the objects in VOC annotations, `difficult` ones included as in the published labels."""
    if classes is None:
        names = {name for path in folder.glob("*.xml") for name in _objects(path)}
        classes = check_classes(sorted(names), folder)
    return Labels(classes, (path.stem for path in sorted(folder.glob("*.xml"))), partial(_xml_vector, folder, classes))


def _xml_vector(folder: Path, classes: tuple[str, ...], id: str) -> Vector:
    path = folder / f"{id}.xml"
    return label_vector(_objects(path), classes, path, id)


def _objects(path: Path) -> list[str]:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: is not XML: {error}") from error
    return [(item.findtext("name") or "").strip() for item in root.findall("object")]


def _from_masks(folder: Path, classes: tuple[str, ...] | None) -> Labels:
    """The classes that have a pixel in a mask."""
    ids = sorted(path.stem for path in folder.glob("*.png"))
    if not ids:
        raise InputError(f"{folder}: holds neither .xml annotations nor .png masks to take labels from")
    if classes is None:
        raise InputError(f"{folder}: masks hold no class names, so the names of the classes have to be given")
    return Labels(classes, ids, partial(_mask_vector, folder, classes))


def _mask_vector(folder: Path, classes: tuple[str, ...], id: str) -> Vector:
    from amn_fast.data.image import read_mask
    from amn_fast.data.masks import check_ids

    path = folder / f"{id}.png"
    mask = read_mask(path)
    check_ids(path, mask, len(classes))
    return np.isin(np.arange(1, len(classes) + 1), mask)
