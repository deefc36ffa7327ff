"""Images to label: a folder, a list or WebDataset archives, on a disk or at a URL, and where their labels come from.

What is listed at the start is ids and locations; images and sidecar files are read by the process that labels them.
"""

import csv
import hashlib
import io
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from amn_fast._extras import require
from amn_fast.data.base import quote
from amn_fast.data.image import ImageBytes, Source
from amn_fast.data.labels import open_labels
from amn_fast.data.names import IMAGE_SUFFIXES, clean_id, join
from amn_fast.errors import InputError
from amn_fast.label.places import filesystem, filesystem_of, is_url, read_location

LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
IMAGE_COLUMNS = ("image", "path", "file", "url", "filename", "file_name", "image_path")
SIDECARS = (".json", ".txt", ".cls")
MOST_NAME_BYTES = 251
"""The longest part of an id, so that ID.png is a file name."""

Names = list[str]


@dataclass(frozen=True)
class Given:
    """An image to label.

    Attributes:
        id: names its outputs.
        image: where to read it, or its content.
        labels: gives the names of its classes; an InputError where they are missing.
    """

    id: str
    image: Callable[[], Source]
    labels: Callable[[], Names]


class Part(Protocol):
    """The images of one shard, as a worker gets them."""

    def images(self, classes: tuple[str, ...], sidecars: bool) -> Iterator[Given]:
        """The images; what cannot be read is an error of its image alone."""
        ...


class Listing(Protocol):
    """All images of a job.

    Attributes:
        shards: number of shards.
        images: number of images; None where only the archives are listed.
        identity: what the outputs depend on, as JSON.
    """

    @property
    def shards(self) -> int: ...
    @property
    def images(self) -> int | None: ...
    @property
    def identity(self) -> dict[str, Any]: ...

    def size(self, shard: int) -> int:
        """The number of images in a shard, where `images` is known."""
        ...

    def part(self, shard: int) -> Part:
        """The images of a shard."""
        ...


def open_listing(location: str, shard_size: int, labels: Path | None, classes: tuple[str, ...]) -> Listing:
    """List the images at a location.

    Args:
        location: a folder of images, with its subfolders; a list `.csv`, `.tsv`, `.txt` or `.parquet`; a `.tar` of
            WebDataset, a pattern of them (`data/{000..127}.tar`, `data/*.tar`) or a folder of them. A path or a URL.
        shard_size: images in a shard; an archive is a shard of its own.
        labels: a file of image-level labels, see `amn_fast.data.labels`; None where they come from elsewhere.
        classes: of the run.

    Raises:
        InputError: there is nothing to label, two images have the same id, or an id cannot name a file.
    """
    suffix = PurePosixPath(location).suffix.lower()
    if suffix == ".tar":
        return Archives.of(_expand(location), labels)
    if suffix in LIST_SUFFIXES:
        found = _read_list(location, suffix)
    else:
        names = list(_walk(location))
        archives = [name for name in names if name.lower().endswith(".tar")]
        if archives and len(archives) < len(names):
            raise InputError(f"{location}: holds {len(archives)} archives among images, expected one kind alone")
        if archives:
            return Archives.of(archives, labels)
        found = ((clean_id(_without_suffix(_relative(name, location))), name) for name in names)
    return Files.of(location, found, shard_size, labels, classes)


# -------------------------------------------------------------------------------------------------- folders and lists


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
        _check_ids(source, ids, locations)
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


def _walk(location: str) -> Iterator[str]:
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
        if os.path.splitext(name)[1].lower() in wanted and "/." not in f"/{_relative(name, location)}":
            yield name


def _folders(location: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for place, folders, files in os.walk(location):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield place, folders, [name for name in files if not name.startswith(".")]


def _relative(name: str, folder: str) -> str:
    return name.removeprefix(f"{folder.rstrip('/')}/")


def _without_suffix(name: str) -> str:
    return os.path.splitext(name)[0]


_PARENTS = re.compile(r"^(\.\./)+")


def _read_list(location: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Pairs of id and location from a list."""
    folder = location.rpartition("/")[0]
    rows = _parquet_rows(location) if suffix == ".parquet" else _text_rows(location, suffix)
    for number, (id, image) in enumerate(rows, 1):
        if not isinstance(image, str) or not image.strip():
            raise InputError(f"{location}: row {number} names no image")
        image = image.strip()
        relative = not (is_url(image) or os.path.isabs(image))
        own = _without_suffix(_PARENTS.sub("", posixpath.normpath(image)) if relative else image.rpartition("/")[2])
        yield (
            clean_id(own if id is None else str(id)),
            (f"{folder}/{image}" if folder else image) if relative else image,
        )


def _text_rows(location: str, suffix: str) -> Iterator[tuple[str | None, str]]:
    with _opened(location) as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="") as text:
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

    with _opened(location) as binary:
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


def _opened(location: str) -> Any:
    try:
        if not is_url(location):
            return open(location, "rb")
        files, path = filesystem_of(location)
        return files.open(path, "rb")
    except FileNotFoundError as error:
        raise InputError(f"{location}: there is no such file") from error
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {error.strerror or error}") from error


_WRONG_ID = re.compile(r"(^|/)(\.\.?)?(/|$)|[\0\ud800-\udfff]")


def _check_ids(source: str, ids: Sequence[str], locations: Sequence[str]) -> None:
    for place, id in enumerate(ids):
        if place and id == ids[place - 1]:
            both = f"{locations[place - 1]} and {locations[place]}"
            raise InputError(
                f"{source}: two images have the id {quote(id)}, {both}; a list may give ids in a column id"
            )
        if _WRONG_ID.search(id) or max(len(part.encode()) for part in id.split("/")) > MOST_NAME_BYTES:
            raise InputError(f"{source}: the id {id!a:.100} is no name of a file inside a folder")


# ----------------------------------------------------------------------------------------------------------- archives


@dataclass(frozen=True)
class ArchivePart:
    """The images of one archive in WebDataset's layout: members KEY.jpg, and sidecars such as KEY.json beside them.

    Attributes:
        prefix: the ids are PREFIX/KEY.
        labels: a file of labels by key; each process reads it once.
    """

    location: str
    prefix: str
    labels: Path | None

    def images(self, classes: tuple[str, ...], sidecars: bool) -> Iterator[Given]:
        table = _label_table(self.labels, classes) if self.labels is not None else None
        seen: set[str] = set()
        try:
            tail: Any
            with _Tail(_opened(self.location)) as tail, tarfile.open(fileobj=tail, mode="r|") as archive:
                for key, members in _samples(archive):
                    if key in seen or _WRONG_ID.search(key):
                        problem = "is a duplicate" if key in seen else "is no name of a file inside a folder"
                        raise InputError(f"{self.location}: the key {quote(key)} {problem}")
                    seen.add(key)
                    if given := self._given(key, members, table, classes, sidecars):
                        yield given
                if not tail.is_end():
                    raise tarfile.ReadError
        except (tarfile.TarError, EOFError, OSError, InputError) as error:
            told = str(error) if isinstance(error, InputError) else f"{self.location}: is no tar archive or is damaged"
            yield Given(self.prefix, _raising(told), list)

    def _given(
        self,
        key: str,
        members: dict[str, bytes],
        table: Mapping[str, NDArray[np.bool_]] | None,
        classes: tuple[str, ...],
        sidecars: bool,
    ) -> Given | None:
        image = next((ending for ending in members if f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES), None)
        if image is None:
            return None
        name = f"{self.location}/{key}"
        source = ImageBytes(f"{name}.{image}", members[image])

        def names() -> Names:
            if sidecars:
                for suffix in SIDECARS:
                    if suffix[1:] in members:
                        return parse_sidecar(members[suffix[1:]], f"{name}{suffix}", classes)
                raise InputError(f"{name}: has no sidecar {', '.join(SIDECARS)}")
            if table is None or key not in table:
                raise InputError(f"the label file has no label of {quote(key)}")
            return [name for name, on in zip(classes, table[key], strict=True) if on]

        return Given(f"{self.prefix}/{key}", lambda: source, names)


@dataclass(frozen=True)
class Archives:
    """Archives in WebDataset's layout, each a shard."""

    locations: Sequence[str]
    prefixes: Sequence[str]
    labels: Path | None
    identity: dict[str, Any]
    images: int | None = None

    @classmethod
    def of(cls, locations: Iterable[str], labels: Path | None) -> "Archives":
        pairs = sorted((_without_suffix(location.rpartition("/")[2]), location) for location in locations)
        prefixes, places = [prefix for prefix, _ in pairs], [location for _, location in pairs]
        _check_ids("archives", prefixes, places)
        identity: dict[str, Any] = {"archives": prefixes}
        if labels is not None:
            identity["labels"] = hashlib.blake2b(read_location(str(labels)), digest_size=16).hexdigest()
        return cls(places, prefixes, labels.absolute() if labels is not None else None, identity)

    @property
    def shards(self) -> int:
        return len(self.locations)

    def size(self, shard: int) -> int:
        raise NotImplementedError("the archives are not read beforehand")

    def part(self, shard: int) -> ArchivePart:
        return ArchivePart(self.locations[shard], self.prefixes[shard], self.labels)


_tables: dict[tuple[Path, tuple[str, ...]], Mapping[str, NDArray[np.bool_]]] = {}


def _label_table(path: Path, classes: tuple[str, ...]) -> Mapping[str, NDArray[np.bool_]]:
    if (path, classes) not in _tables:
        _tables[path, classes] = open_labels(path, classes)
    return _tables[path, classes]


class _Tail:
    """A stream that remembers its last bytes: tarfile does not tell an archive that is cut off in front of a header."""

    def __init__(self, binary: Any) -> None:
        self._binary, self._last = binary, b""

    def __enter__(self) -> "_Tail":
        return self

    def __exit__(self, *_: object) -> None:
        self._binary.close()

    def read(self, size: int) -> bytes:
        content: bytes = self._binary.read(size)
        self._last = (self._last + content)[-tarfile.BLOCKSIZE :]
        return content

    def is_end(self) -> bool:
        """Whether the rest ends in the block of zeros that ends an archive."""
        while self.read(1 << 20):
            pass
        return self._last == bytes(tarfile.BLOCKSIZE)


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members, by ending, of each sample: neighbours whose names agree up to the first dot of the file name."""
    current, members = "", dict[str, bytes]()
    for member in archive:
        folder, _, name = member.name.rpartition("/")
        if not member.isfile() or name.startswith("."):
            continue
        stem, _, ending = name.partition(".")
        key = clean_id(f"{folder}/{stem}" if folder else stem).removeprefix("./")
        if key != current and members:
            yield current, members
            members = {}
        content = archive.extractfile(member)
        assert content is not None  # it is a file
        current, members[ending.lower()] = key, content.read()
    if members:
        yield current, members


def _raising(message: str) -> Callable[[], Source]:
    def read() -> Source:
        raise InputError(message)

    return read


_BRACES = re.compile(r"\{(?P<first>\d+)\.\.(?P<last>\d+)\}")


def _expand(location: str) -> list[str]:
    """The archives that a location names: `{000..127}` stands for numbers, `*` and `?` for what is there."""
    if found := _BRACES.search(location):
        first, last = found["first"], found["last"]
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        parts = (f"{location[: found.start()]}{number}{location[found.end() :]}" for number in numbers)
        return [each for part in parts for each in _expand(part)]
    if "*" not in location and "?" not in location:
        return [location]
    if is_url(location):
        files, path = filesystem_of(location)
        names = [files.unstrip_protocol(name) for name in files.glob(path)]
    else:
        import glob

        names = glob.glob(location)
    if not names:
        raise InputError(f"{location}: there is no such file")
    return names


# ----------------------------------------------------------------------------------------------------------- sidecars


def read_sidecar(location: str, classes: tuple[str, ...]) -> Names:
    """The labels in the file beside an image: STEM.json, STEM.txt or STEM.cls.

    Raises:
        InputError: there is none, or it is not as `parse_sidecar` expects.
    """
    stem = _without_suffix(location)
    for suffix in SIDECARS:
        if is_url(location):
            files, path = filesystem_of(stem + suffix)
            there = files.exists(path)
        else:
            there = os.path.isfile(stem + suffix)
        if there:
            return parse_sidecar(read_location(stem + suffix), stem + suffix, classes)
    raise InputError(f"{location}: has no sidecar {', '.join(SIDECARS)}")


def parse_sidecar(content: bytes, name: str, classes: tuple[str, ...]) -> Names:
    """The class names in a sidecar file.

    Args:
        content: JSON, a list of names or {"labels": [names]}; text, names separated by line ends, commas, semicolons,
            tabs or |; or, in a file `.cls`, one name or the number of a class from 0, as WebDataset writes it.
        name: of the file; its ending says which.
        classes: of the run.

    Raises:
        InputError: it is not.
    """
    try:
        text = content.decode("utf-8-sig")
        value = json.loads(text) if name.endswith(".json") else text
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: is not {'JSON' if name.endswith('.json') else 'UTF-8 text'}") from error
    if isinstance(value, dict):
        value = value.get("labels")
    if isinstance(value, str):
        value = [part.strip() for part in re.split(r"[\n;|\t,]", value) if part.strip()]
        if name.endswith(".cls") and len(value) == 1 and value[0].isdecimal() and value[0] not in classes:
            number = int(value[0])
            if number >= len(classes):
                raise InputError(f"{name}: holds class {number}, expected 0..{len(classes) - 1}")
            value = [classes[number]]
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise InputError(f'{name}: holds no list of class names, expected ["name"] or {{"labels": ["name"]}}')
    return value
