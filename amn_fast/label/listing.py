"""What a listing of images is, and what its kinds share."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from amn_fast.data.base import quote
from amn_fast.data.image import Source
from amn_fast.errors import InputError
from amn_fast.label.places import filesystem_of, is_url

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


def without_suffix(name: str) -> str:
    return os.path.splitext(name)[0]


def opened(location: str) -> Any:
    try:
        if not is_url(location):
            return open(location, "rb")
        files, path = filesystem_of(location)
        return files.open(path, "rb")
    except FileNotFoundError as error:
        raise InputError(f"{location}: there is no such file") from error
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {error.strerror or error}") from error


WRONG_ID = re.compile(r"(^|/)(\.\.?)?(/|$)|[\0\ud800-\udfff]")


def check_ids(source: str, ids: Sequence[str], locations: Sequence[str]) -> None:
    for place, id in enumerate(ids):
        if place and id == ids[place - 1]:
            both = f"{locations[place - 1]} and {locations[place]}"
            raise InputError(
                f"{source}: two images have the id {quote(id)}, {both}; a list may give ids in a column id"
            )
        if WRONG_ID.search(id) or max(len(part.encode()) for part in id.split("/")) > MOST_NAME_BYTES:
            raise InputError(f"{source}: the id {id!a:.100} is no name of a file inside a folder")
