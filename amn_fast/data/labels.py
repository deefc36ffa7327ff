"""Image-level labels: the text files that hold them, and the annotations that they are taken from.

A label file is CSV in one of two forms. The wide one has a row for each image and a 0/1 column for each class, the long
one has the names:

    id,cat,cup             id,labels              filename,label
    2007_000032,1,0        2007_000032,cat;cup    2007_000032.jpg,cat

The first column may also be called image or file, the second one of the long form class, category or tag, or their
plural; case does not count. Columns are separated by a comma, a semicolon, a tab or `|`, names within a
cell by a semicolon, a tab, `|` or a comma. In the long form an image has one row, or, under a heading in the singular,
one row for each label. Ids may be file names.

A JSON file is `{"classes": ["cat", "cup"], "labels": {"2007_000032": ["cat"]}}` or, without the classes,
`{"2007_000032": ["cat"]}`. An image without any class has a row of zeros, an empty cell or an empty list; an image that
is not listed has no label.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import quote
from amn_fast.data.classes import Labels, Vector, check_classes, label_vector, read_classes
from amn_fast.data.instances import Instances
from amn_fast.data.legacy import read_legacy, write_legacy
from amn_fast.data.names import clean_id, find_files, join, number_of
from amn_fast.data.text import describe_content, describe_json, read_bytes, read_json, read_text, read_xml
from amn_fast.errors import InputError
from amn_fast.files import write_json, write_text

__all__ = [
    "Labels", "Vector", "check_classes", "join", "label_vector", "open_labels", "read_classes", "read_json",
    "read_text", "write_labels",
]  # fmt: skip

_ID_NAMES = frozenset({"id", "ids", "image", "images", "img", "image_id", "imageid", "file", "filename", "file_name",
                       "name", "path", "image_path"})  # fmt: skip
_NAMES_NEEDED = "expected a file of them, one a line: data.options.classes of a run, --classes FILE of build-labels"
_ONE_LABEL = frozenset({"label", "class", "category", "tag", "class_name"})
_ALL_LABELS = frozenset({"labels", "classes", "categories", "tags", "class_names"})


def open_labels(source: Path | str, classes: tuple[str, ...] | None = None, *, foreground: int | None = None) -> Labels:
    """Open a source of image-level labels.

    Args:
        source: a label file (`.csv`, `.tsv`, `.txt`, `.json`), COCO's instances (`.json`), IRN's and AMN's
            `cls_labels.npy`, a folder of VOC annotations (`.xml`), or a folder of masks (`.png`).
        classes: the names, in the order of the vectors; without them a file's own names count, in its order.
        foreground: the value of the foreground in binary masks, see `amn_fast.data.image.read_mask`.

    Raises:
        InputError: the source is missing or damaged, names a class outside `classes`, or needs `classes`.
    """
    source = Path(source)
    if source.is_dir():
        annotations = find_files(source, {".xml"}, "annotations")
        return _from_xml(source, annotations, classes) if annotations else _from_masks(source, classes, foreground)
    suffix = source.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt"):
        return _from_names(source, *_read_table(source), classes)
    if suffix == ".json":
        value = read_json(source)
        if isinstance(value, dict) and "annotations" in value and "images" in value:
            return Instances(value, source).labels(classes)
        return _from_names(source, *_parse_json(value, source), classes)
    if suffix == ".npy":
        return _from_npy(source, classes)
    found = describe_content(read_bytes(source)[:512]) if source.is_file() else "missing"
    raise InputError(
        f"{source}: is {found}, no source of labels; expected .csv, .json, .npy, a folder of .xml or of masks"
    )


def describe_labels(labels: Labels) -> str:
    """Say what was understood: "150 images, 2 classes: cat 117, dog 33, none 2"."""
    counts = np.zeros(len(labels.classes), np.int64)
    empty = several = 0
    for vector in labels.values():
        counts += vector
        empty += not vector.any()
        several += int(vector.sum() > 1)
    each = [f"{name} {count}" for name, count in zip(labels.classes, counts.tolist(), strict=True)]
    rest = [f"{several} with several"] if several else []
    rest += [f"{empty} with none"] if empty else []
    plural = "" if len(labels.classes) == 1 else "es"
    listed = f"{len(labels)} images, {len(labels.classes)} class{plural}: {', '.join(each)}"
    return f"{listed} ({', '.join(rest)})" if rest else listed


def write_labels(path: Path | str, labels: Mapping[str, Vector], classes: Sequence[str], ids: Iterable[str]) -> None:
    """Write the labels of `ids` to a label file, atomically: CSV, JSON or `cls_labels.npy` by the suffix of `path`.

    The last is the form of IRN's and AMN's code, a pickled dictionary from the id as a number to a float32 vector,
    without names.

    Raises:
        InputError: another suffix, or a class name or an id that the format cannot hold.
    """
    path = Path(path)
    classes = check_classes(classes, path)
    if path.suffix.lower() == ".json":
        named = {id: [name for name, on in zip(classes, labels[id], strict=True) if on] for id in ids}
        write_json(path, {"classes": list(classes), "labels": named})
    elif path.suffix.lower() == ".csv":
        if len(classes) == 1 and classes[0].lower() in _ONE_LABEL | _ALL_LABELS:
            raise InputError(
                f"{path}: a single class called {classes[0]!r} cannot be told from the column of that name"
            )
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
        number = number_of(id)
        if number is None or number in table:
            problem = "is no number" if number is None else f"stands for {number}, as another id does"
            raise InputError(f"{path}: the id {id!r} {problem}; this form names images by different numbers")
        table[number] = labels[id].astype(np.float32)
    write_legacy(path, table)


def _from_names(path: Path, own: tuple[str, ...], rows: dict[str, list[str]], given: tuple[str, ...] | None) -> Labels:
    classes = given or check_classes(own, path)
    vectors: dict[str, Vector] = {}
    for key, names in rows.items():
        id = clean_id(key)
        if id in vectors:
            raise InputError(f"{path}: two ids are {quote(id)} and differ only in their Unicode form or in blanks")
        vectors[id] = label_vector(names, classes, path, id)
    return Labels(classes, vectors, vectors.__getitem__)


def _names_in(rows: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(sorted({clean_id(name) for names in rows.values() for name in names}))


def _read_table(path: Path) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """The classes and the names by id."""
    text = read_text(path)
    heading = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((mark for mark in heading if mark in "\t,;|"), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [[cell.strip() for cell in row] for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{path}: is no table of text, it has a cell of more than 131072 characters") from error
    nameless = next((number for number, line in enumerate(lines, 1) if not line[0]), None)
    if nameless:
        raise InputError(f"{path}: row {nameless} has no id")
    header = [cell.lower() for cell in lines[0]] if lines else []
    if len(header) < 2 or header[0] not in _ID_NAMES:
        raise InputError(
            f"{path}: is {describe_content(text[:512].encode())}; the first line of a label file has to be 'id,' and "
            "the names of the classes, or 'id,labels'"
        )
    if len(header) == 2 and header[1] in _ONE_LABEL | _ALL_LABELS:
        rows = _long_rows(path, lines[1:], header[1] in _ONE_LABEL)
        return _names_in(rows), rows
    names = check_classes(lines[0][1:], path)
    return names, _wide_rows(path, lines[1:], names)


def _long_rows(path: Path, lines: list[list[str]], repeated: bool) -> dict[str, list[str]]:
    """Names by id; an id may have several rows if `repeated`."""
    rows: dict[str, list[str]] = {}
    for line in lines:
        id, cells = line[0], line[1:]
        names = [name.strip() for cell in cells for name in re.split(r"[;|\t,]", cell) if name.strip()]
        if id in rows and not repeated:
            raise _duplicate(path, id, rows[id], names)
        rows.setdefault(id, []).extend(names)
    return rows


def _wide_rows(path: Path, lines: list[list[str]], names: tuple[str, ...]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for line in lines:
        id, cells = line[0], line[1:]
        if len(cells) != len(names):
            raise InputError(f"{path}: the line of {quote(id)} has {len(cells)} values, expected {len(names)}")
        strange = [cell for cell in cells if cell not in ("0", "1")]
        if strange:
            raise InputError(f"{path}: {quote(id)} has the value {quote(strange[0])}, expected 0 or 1")
        shown = [name for name, cell in zip(names, cells, strict=True) if cell == "1"]
        if id in rows:
            raise _duplicate(path, id, rows[id], shown)
        rows[id] = shown
    return rows


def _duplicate(path: Path, id: str, first: Sequence[str], second: Sequence[str]) -> InputError:
    both = " and ".join(f"({', '.join(names)[:60] or 'no class'})" for names in (first, second))
    return InputError(f"{path}: the id {quote(id)} is a duplicate, with the labels {both}")


def _parse_json(value: Any, path: Path) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """The classes and the names by id."""
    full = isinstance(value, dict) and isinstance(value.get("labels"), dict) and isinstance(value.get("classes"), list)
    rows = value["labels"] if full else value
    if not isinstance(rows, dict) or not all(isinstance(names, list) for names in rows.values()):
        found = describe_json(value)
        if isinstance(rows, dict) and (
            wrong := next((id for id, names in rows.items() if not isinstance(names, list)), None)
        ):
            found += f", where {wrong[:30]!r} is {describe_json(rows[wrong])}"
        raise InputError(f'{path}: is {found}; expected {{"classes": [names], "labels": {{id: [names]}}}}')
    for id, names in rows.items():
        if not all(isinstance(name, str) for name in names):
            raise InputError(f"{path}: the label of {quote(id)} is a list of other things than class names")
    return (tuple(value["classes"]) if full else _names_in(rows)), rows


def _from_npy(path: Path, classes: tuple[str, ...] | None) -> Labels:
    """`cls_labels.npy` of IRN's and AMN's code: a pickled dictionary from id, often a number, to a 0/1 vector."""
    if classes is None:
        raise InputError(f"{path}: holds no class names, {_NAMES_NEEDED}")
    table = read_legacy(path)
    if not isinstance(table, dict):
        raise InputError(f"{path}: holds a {type(table).__name__}, expected a dictionary from id to 0/1 vector")
    vectors: dict[str, Vector] = {}
    for key, value in table.items():
        if not isinstance(key, str | int | np.integer) or (isinstance(key, int) and abs(key) >= 10**18):
            raise InputError(f"{path}: an id is a {type(key).__name__}, expected text or a number of at most 18 digits")
        id = clean_id(str(key))
        if id in vectors:
            raise InputError(f"{path}: the id {quote(id)} is a duplicate, as text and as a number")
        if not isinstance(value, np.ndarray | list) or np.shape(value) != (len(classes),):
            found = f"shape {value.shape}" if isinstance(value, np.ndarray) else f"type {type(value).__name__}"
            raise InputError(
                f"{path}: the label of {quote(id)} has {found}, expected one value for each of {len(classes)} classes"
            )
        if not np.isin(np.asarray(value), (0, 1)).all():
            raise InputError(f"{path}: the label of {quote(id)} has values other than 0 and 1")
        vectors[id] = np.asarray(value).astype(bool)
    return Labels(classes, vectors, vectors.__getitem__)


def _from_xml(folder: Path, files: dict[str, Path], classes: tuple[str, ...] | None) -> Labels:
    """The names of the objects in VOC annotations, `difficult` ones included, as in IRN's and AMN's labels."""
    if classes is None:
        classes = check_classes(sorted({name for path in files.values() for name in _objects(path)}), folder)
    return Labels(classes, files, partial(_xml_vector, files, classes))


def _xml_vector(files: dict[str, Path], classes: tuple[str, ...], id: str) -> Vector:
    return label_vector(_objects(files[id]), classes, files[id], id)


def _objects(path: Path) -> list[str]:
    root = read_xml(path)
    if root.tag != "annotation":
        found = describe_content(read_bytes(path)[:512])
        raise InputError(f"{path}: is {found}, expected a VOC annotation with the root <annotation>")
    names = [clean_id(item.findtext("name") or "") for item in root.findall("object")]
    if not all(names):
        raise InputError(f"{path}: object {names.index('') + 1} has no name")
    return names


def _from_masks(folder: Path, classes: tuple[str, ...] | None, foreground: int | None) -> Labels:
    """The classes that have a pixel in a mask."""
    from amn_fast.data.masks import check_foreground, find_masks, require_class_ids

    files = find_masks(folder)
    if not files:
        raise InputError(f"{folder}: holds neither .xml annotations nor .png masks to take labels from")
    if classes is None:
        raise InputError(f"{folder}: masks hold no class names, {_NAMES_NEEDED}")
    check_foreground(foreground, len(classes))
    if foreground is None:
        require_class_ids(files.values(), len(classes))
    return Labels(classes, files, partial(_mask_vector, files, classes, foreground))


def _mask_vector(files: dict[str, Path], classes: tuple[str, ...], foreground: int | None, id: str) -> Vector:
    from amn_fast.data.image import read_mask
    from amn_fast.data.masks import check_ids

    mask = read_mask(files[id], foreground)
    check_ids(files[id], mask, len(classes))
    return np.isin(np.arange(1, len(classes) + 1), mask)
