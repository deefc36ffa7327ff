"""Files that are either whole or absent."""

import fcntl
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")

_TEMPORARY = re.compile(r"\.amn-fast-[0-9a-f]{16}\.tmp")


def write_atomically(path: Path | str, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    A reader sees the old file or the new one, never a part; whatever goes wrong, no temporary file stays. The folder is
    made when it is not there. The new file has the permissions that the umask grants.

    Raises:
        OSError: the folder cannot be written or the disk is full; the error names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".amn-fast-{secrets.token_hex(8)}.tmp"  # short: `path` may have the longest name allowed
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def remove_leftovers(folder: Path | str) -> None:
    """Remove the temporary files that killed calls of `write_atomically` left in `folder`.

    Nobody may be writing there meanwhile.
    """
    folder = Path(folder)
    for file in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(file.name) and file.is_file():
            file.unlink()


def holds_leftovers_alone(folder: Path) -> bool:
    """Whether `folder` is one, with nothing in it but temporary files of killed calls of `write_atomically`."""
    return folder.is_dir() and all(_TEMPORARY.fullmatch(file.name) for file in folder.iterdir())


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`, which is made when it is not there, against other processes.

    Yields:
        whether this process holds it; False when another one does.
    """
    with path.open("a") as file:
        try:
            # Not flock: child processes would inherit it and keep it for a while after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            yield False
            return
        yield True


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path | str, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def retried(read: Callable[[], T]) -> T:
    """The answer of `read`, which parses headers of NumPy files, once more after a SystemError.

    `ast.parse` of CPython 3.11 and 3.12 counts its depth in one place for all threads and now and then raises
    "recursion depth mismatch" where two threads parse.
    """
    for _ in range(20):
        try:
            return read()
        except SystemError:
            continue
    return read()
