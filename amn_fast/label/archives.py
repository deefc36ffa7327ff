"""Images in WebDataset archives."""

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import quote
from amn_fast.data.image import ImageBytes, Source
from amn_fast.data.labels import open_labels
from amn_fast.data.names import IMAGE_SUFFIXES, clean_id
from amn_fast.errors import InputError
from amn_fast.label.listing import SIDECARS, WRONG_ID, Given, Names, check_ids, opened, without_suffix
from amn_fast.label.places import filesystem_of, is_url, read_location
from amn_fast.label.sidecars import parse_sidecar


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
            with _Tail(opened(self.location)) as tail, tarfile.open(fileobj=tail, mode="r|") as archive:
                for key, members in _samples(archive):
                    if key in seen or WRONG_ID.search(key):
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
        pairs = sorted((without_suffix(location.rpartition("/")[2]), location) for location in locations)
        prefixes, places = [prefix for prefix, _ in pairs], [location for _, location in pairs]
        check_ids("archives", prefixes, places)
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


def expand(location: str) -> list[str]:
    """The archives that a location names: `{000..127}` stands for numbers, `*` and `?` for what is there."""
    if found := _BRACES.search(location):
        first, last = found["first"], found["last"]
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        parts = (f"{location[: found.start()]}{number}{location[found.end() :]}" for number in numbers)
        return [each for part in parts for each in expand(part)]
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
