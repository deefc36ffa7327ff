"""Hashes of files, remembered by size and times: a file is read again only where one of them has changed."""

import hashlib
import json
import os
import threading
from pathlib import Path

from amn_fast.files import write_text

State = tuple[int, int, int]


def digest(value: object) -> str:
    """A short hash of a value that JSON can hold."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


class Contents:
    """Hashes by path.

    The change time is looked at too: it tells of files that were replaced by others of the same size and time stamp.
    """

    def __init__(self, cache: Path) -> None:
        """`cache`: the file that remembers hashes from one process to the next; it need not exist."""
        self._cache = cache
        self._known: dict[str, tuple[State, str]] = {}
        self._lock = threading.Lock()
        self._changed = False
        try:
            for path, (size, mtime, ctime, found) in json.loads(cache.read_text(encoding="utf-8")).items():
                self._known[path] = ((size, mtime, ctime), found)
        except (OSError, ValueError, TypeError, AttributeError):
            self._known = {}  # not there or damaged: every file is hashed again

    def hash(self, path: Path) -> str:
        """The hash of a file; "" where there is none."""
        try:
            state = _state(path)
        except (FileNotFoundError, NotADirectoryError):
            return ""
        key = os.path.abspath(path)
        known = self._known.get(key)
        if known is not None and known[0] == state:
            return known[1]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        self._remember(key, state, found)
        return found

    def move(self, source: Path, target: Path) -> None:
        """Rename a file and keep its hash."""
        found = self.hash(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        self._remember(os.path.abspath(target), _state(target), found)

    def save(self) -> None:
        """Write the cache, without the files that are gone."""
        if not self._changed:
            return
        kept = {path: (*state, found) for path, (state, found) in sorted(self._known.items()) if os.path.exists(path)}
        write_text(self._cache, json.dumps(kept, indent=0))
        self._changed = False

    def _remember(self, key: str, state: State, found: str) -> None:
        with self._lock:
            self._known[key] = (state, found)
            self._changed = True


def _state(path: Path) -> State:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
