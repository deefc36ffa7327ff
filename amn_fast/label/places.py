"""Files on a disk or at any URL that fsspec knows: outputs that are whole or absent, and inputs."""

import contextlib
import os
import secrets
from functools import cache
from pathlib import Path
from typing import Any

from amn_fast._extras import require
from amn_fast.errors import InputError

TEMPORARY = "tmp"
"""Folder of a local place for files that are not whole yet."""


def is_url(location: str) -> bool:
    """Whether a location is a URL of fsspec (s3://, gs://, memory://, zip::...), not a path."""
    return "://" in location or "::" in location


@cache
def filesystem(location: str) -> tuple[Any, str]:
    """The file system of a URL, and its path there.

    Raises:
        InputError: fsspec does not know it, or lacks a package for it.
    """
    fsspec = require("fsspec", "label")
    try:
        return fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise InputError(f"{location}: fsspec cannot open this URL: {' '.join(str(error).split())}") from error


def read_location(location: str) -> bytes:
    """The content of a file at a path or URL.

    Raises:
        InputError: it is missing or cannot be read.
    """
    try:
        if not is_url(location):
            return Path(location).read_bytes()
        files, path = filesystem_of(location)
        return bytes(files.cat_file(path))
    except FileNotFoundError as error:
        raise InputError(f"{location}: there is no such file") from error
    except InputError:
        raise
    except Exception as error:  # each file system of fsspec has its own
        raise InputError(f"{location}: cannot be read: {' '.join(str(error).split())[:200]}") from error


def filesystem_of(location: str) -> tuple[Any, str]:
    """As `filesystem`, for one of many files: only their place is remembered."""
    folder, _, name = location.rpartition("/")
    if folder.endswith(("/", ":")) or "::" in location:
        return filesystem(location)
    files, path = filesystem(folder)
    return files, f"{path}/{name}"


class Place:
    """A folder for outputs, by path or URL.

    On a disk, a file is written apart and renamed: a reader sees all of it or nothing, whenever a process is killed.
    Temporary files carry the name of their owner, usually a shard; whoever starts on that shard again removes those
    that a killed process left. Object stores write a file whole by themselves.
    """

    def __init__(self, location: Path | str) -> None:
        self.location = str(location)
        self._files: Any
        self._files, self._root = (None, self.location) if not is_url(self.location) else filesystem(self.location)
        if self._files is not None and self._files.protocol in ("file", ("file", "local")):
            self._files = None
        self._made: set[str] = set()

    def __str__(self) -> str:
        return self.location

    def path(self, name: str) -> str:
        """The path of a file, as the place's file system takes it."""
        return f"{self._root.rstrip('/')}/{name}"

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, sorted; none where there is no such folder."""
        try:
            if self._files is None:
                return sorted(os.listdir(self.path(folder)))
            self._files.invalidate_cache()
            return sorted(entry.rpartition("/")[2] for entry in self._files.ls(self.path(folder), detail=False))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        try:
            if self._files is None:
                return Path(self.path(name)).read_bytes()
            return bytes(self._files.cat_file(self.path(name)))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes, owner: str) -> None:
        """Write a file, whole or not at all.

        Args:
            owner: who may remove what a killed process leaves, see `clean`.

        Raises:
            OSError: it cannot be written; the error names it.
        """
        target = self.path(name)
        self._make(target.rpartition("/")[0])
        if self._files is not None:
            self._files.pipe_file(target, content)
            return
        for attempt in range(3):
            temporary = Path(self.path(TEMPORARY), f"{owner}-{secrets.token_hex(8)}")
            try:
                self._make(str(temporary.parent))
                with temporary.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
                return
            except FileNotFoundError:  # another process that has begun the same shard has cleaned up
                self._made.clear()
                if attempt == 2:
                    raise
            except BaseException as error:
                temporary.unlink(missing_ok=True)
                if isinstance(error, OSError) and error.errno is not None:
                    raise OSError(error.errno, os.strerror(error.errno), target) from error
                raise

    def clean(self, owner: str) -> None:
        """Remove the temporary files of `owner`; a process that still writes one writes it again."""
        if self._files is not None:
            return
        for name in self.names(TEMPORARY):
            if name.rpartition("-")[0] == owner:
                Path(self.path(TEMPORARY), name).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file that may be there."""
        with contextlib.suppress(FileNotFoundError):
            if self._files is None:
                os.remove(self.path(name))
            else:
                self._files.rm_file(self.path(name))

    def remove_empty(self, folder: str) -> None:
        """Remove a folder of a disk if nothing is in it."""
        if self._files is None:
            with contextlib.suppress(OSError):
                os.rmdir(self.path(folder))

    def _make(self, folder: str) -> None:
        if folder in self._made:
            return
        if self._files is None:
            os.makedirs(folder, exist_ok=True)
        else:
            self._files.makedirs(folder, exist_ok=True)
        self._made.add(folder)
