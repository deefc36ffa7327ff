"""Images in folders and lists."""

import csv
import hashlib
import io
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast._extras import require
from amn_fast.data.base import quote
from amn_fast.data.image import ImageBytes, Source
from amn_fast.data.labels import open_labels
from amn_fast.data.names import IMAGE_SUFFIXES, clean_id, join
from amn_fast.errors import InputError
from amn_fast.label.listing import Given, Names, check_ids, opened, without_suffix
from amn_fast.label.places import filesystem, is_url, read_location
from amn_fast.label.sidecars import read_sidecar

LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
IMAGE_COLUMNS = ("image", "path", "file", "url", "filename", "file_name", "image_path")


@dataclass(frozen=True)
class FilesPart:
    """Images in files of their own.

    Attributes:
        ids, locations: of each image.
        labels: (n, C) bool, of the images that are `labelled`, (n,) bool; None where labels come from elsewhere.
    """

    ids: Sequence[str]
    locations: Sequence[str]
    labels: NDArray[np.bool_] | None
    labelled: NDArray[np.bool_] | None

    def images(self, classes: tuple[str, ...], sidecars: bool) -> Iterator[Given]:
        for place, (id, location) in enumerate(zip(self.ids, self.locations, strict=True)):
            yield Given(id, self._reader(location), self._names(place, location, classes, sidecars))

    @staticmethod
    def _reader(location: str) -> Callable[[], Source]:
        return lambda: ImageBytes(location, read_location(location)) if is_url(location) else location

    def _names(self, place: int, location: str, classes: tuple[str, ...], sidecars: bool) -> Callable[[], Names]:
        def names() -> Names:
            if sidecars:
                return read_sidecar(location, classes)
            if self.labels is None or self.labelled is None or not self.labelled[place]:
                raise InputError(f"the label file has no label of {quote(self.ids[place])}")
            return [name for name, on in zip(classes, self.labels[place], strict=True) if on]

        return names


@dataclass(frozen=True)
class Files:
    """Images in files of their own, in the order of their ids."""

    ids: Sequence[str]
    locations: Sequence[str]
    shard_size: int
    packed: NDArray[np.uint8] | None
    labelled: NDArray[np.bool_] | None
    n_classes: int
    identity: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        source: str,
        found: Iterable[tuple[str, str]],
        shard_size: int,
        labels: Path | None,
        classes: tuple[str, ...],
    ) -> "Files":
        """Sort and check what was found: pairs of id and location."""
        table = None if labels is None else _Table(labels, classes)  # before the list: reading it takes much memory
        pairs = sorted(found)
        if not pairs:
            raise InputError(f"{source}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        ids, locations = [id for id, _ in pairs], [location for _, location in pairs]
        del pairs
        check_ids(source, ids, locations)
        digest = hashlib.blake2b(digest_size=16)
        for id in ids:
            digest.update(id.encode() + b"\0")
        identity = {"images": len(ids), "ids": digest.hexdigest(), "shard_size": shard_size}
        packed, labelled = (None, None) if table is None else table.of(ids)
        if packed is not None and labelled is not None:
            identity["labels"] = hashlib.blake2b(packed.tobytes() + labelled.tobytes(), digest_size=16).hexdigest()
        return cls(ids, locations, shard_size, packed, labelled, len(classes), identity)

    @property
    def images(self) -> int:
        return len(self.ids)

    @property
    def shards(self) -> int:
        return -(-len(self.ids) // self.shard_size)

    def size(self, shard: int) -> int:
        return min(self.shard_size, len(self.ids) - shard * self.shard_size)

    def part(self, shard: int) -> FilesPart:
        place = slice(shard * self.shard_size, (shard + 1) * self.shard_size)
        labels = labelled = None
        if self.packed is not None and self.labelled is not None:
            labels = np.unpackbits(self.packed[place], axis=1, count=self.n_classes).astype(bool)
            labelled = self.labelled[place]
        return FilesPart(self.ids[place], self.locations[place], labels, labelled)


class _Table:
    """The labels of a file, as packed bits."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        labels = open_labels(path, classes)
        self.path, self._row = path, {key: row for row, key in enumerate(labels)}
        self._packed = np.zeros((len(labels), (len(classes) + 7) // 8), np.uint8)
        for row, key in enumerate(labels):
            self._packed[row] = np.packbits(labels[key])

    def of(self, ids: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The labels of `ids`, and which of them the file has."""
        key_of = {} if all(id in self._row for id in ids) else join(self._row, ids)
        rows = np.array([self._row.get(key_of.get(id, id), -1) for id in ids])
        labelled = rows >= 0
        if not labelled.any():
            raise InputError(f"{self.path}: has a label of none of the images, such as {ids[0]!r}")
        packed = np.zeros((len(ids), self._packed.shape[1]), np.uint8)
        packed[labelled] = self._packed[rows[labelled]]
        return packed, labelled


def walk(location: str) -> Iterator[str]:
    """The image files and archives of a folder and its subfolders; hidden ones do not count."""
    if is_url(location):
        files, root = filesystem(location.rstrip("/"))
        try:
            below = files.find(root)
        except Exception as error:  # each file system of fsspec has its own
            raise InputError(f"{location}: cannot be listed: {' '.join(str(error).split())[:200]}") from error
        prefix = location.rstrip("/")
        names = (f"{prefix}/{path[len(root) :].lstrip('/')}" for path in below)
    else:
        if not os.path.isdir(location):
            raise InputError(f"{location}: there is no such folder, expected a folder, a list or a .tar")
        names = (os.path.join(place, name) for place, folders, files in _folders(location) for name in files)
    wanted = IMAGE_SUFFIXES | {".tar"}
    for name in names:
        if os.path.splitext(name)[1].lower() in wanted and "/." not in f"/{relative(name, location)}":
            yield name


def _folders(location: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for place, folders, files in os.walk(location):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield place, folders, [name for name in files if not name.startswith(".")]


def relative(name: str, folder: str) -> str:
    return name.removeprefix(f"{folder.rstrip('/')}/")


_PARENTS = re.compile(r"^(\.\./)+")


def read_list(location: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Pairs of id and location from a list."""
    folder = location.rpartition("/")[0]
    rows = _parquet_rows(location) if suffix == ".parquet" else _text_rows(location, suffix)
    for number, (id, image) in enumerate(rows, 1):
        if not isinstance(image, str) or not image.strip():
            raise InputError(f"{location}: row {number} names no image")
        image = image.strip()
        relative = not (is_url(image) or os.path.isabs(image))
        own = without_suffix(_PARENTS.sub("", posixpath.normpath(image)) if relative else image.rpartition("/")[2])
        yield (
            clean_id(own if id is None else str(id)),
            (f"{folder}/{image}" if folder else image) if relative else image,
        )


def _text_rows(location: str, suffix: str) -> Iterator[tuple[str | None, str]]:
    with opened(location) as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="") as text:
        try:
            if suffix == ".txt":
                yield from ((None, line) for line in text if line.strip())
                return
            rows = csv.reader(text, delimiter="\t" if suffix == ".tsv" else ",")
            header = [cell.strip().lower() for cell in next(rows, [])]
            image, id = _columns(location, header)
            for row in rows:
                if row:
                    yield (row[id] if id is not None else None), row[image] if image < len(row) else ""
        except (UnicodeDecodeError, csv.Error, IndexError) as error:
            raise InputError(f"{location}: is no table of UTF-8 text with the cells of its header") from error


def _parquet_rows(location: str) -> Iterator[tuple[str | None, str]]:
    require("pyarrow", "label")
    import pyarrow.parquet

    with opened(location) as binary:
        try:
            table = pyarrow.parquet.ParquetFile(binary)
        except (ValueError, OSError) as error:
            raise InputError(f"{location}: is no Parquet file") from error
        names = list(table.schema_arrow.names)
        image, id = _columns(location, [name.lower() for name in names])
        columns = [names[image]] if id is None else [names[image], names[id]]
        for batch in table.iter_batches(columns=columns):
            images = batch.column(names[image]).to_pylist()
            yield from zip(
                [None] * len(images) if id is None else batch.column(names[id]).to_pylist(), images, strict=True
            )


def _columns(location: str, header: list[str]) -> tuple[int, int | None]:
    """The columns of the image and of the id, if there is one."""
    image = next((header.index(name) for name in IMAGE_COLUMNS if name in header), None)
    if image is None:
        shown = ", ".join(header)[:200] or "nothing"
        raise InputError(f"{location}: has the columns {shown}, expected one of {', '.join(IMAGE_COLUMNS)}")
    return image, header.index("id") if "id" in header else None
