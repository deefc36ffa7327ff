"""Files that are either whole or not there."""

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path | str, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    A reader sees the old file or the new one, never a part; whatever goes wrong, no temporary file stays.
    The folder is made when it is not there.

    Raises:
        OSError: the folder cannot be written or the disk is full; the error names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def remove_leftovers(path: Path | str) -> None:
    """Remove the temporary files that killed calls of `write_atomically` left for `path`, a file or a folder of files.

    Nobody may be writing there meanwhile.
    """
    path = Path(path)
    for folder, name in ((path.parent, re.escape(path.name)), (path, ".+")):
        if folder.is_dir():
            for file in folder.iterdir():
                if re.fullmatch(rf"\.{name}\.[a-z0-9_]{{8}}", file.name) and file.is_file():
                    file.unlink()


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path | str, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
