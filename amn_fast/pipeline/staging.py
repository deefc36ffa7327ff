"""A stage in work: its outputs lie apart until all are complete, then they take the place of the previous ones."""

import json
import os
import shutil
import threading
from pathlib import Path

from amn_fast.files import write_text
from amn_fast.pipeline.contents import Contents
from amn_fast.pipeline.records import RECORDS, Item, Record
from amn_fast.pipeline.table import Stage

JOURNAL = "journal.jsonl"
BEGUN = "begun.json"
CHECKPOINT = ".checkpoint.pt"
REPLACED = "replaced"
"""Folder for files that somebody else put in the place of an output."""


class Staging:
    """The folder stages/STAGE.new with the files of a stage in work, laid out as in the run folder.

    Its journal has a line for each finished item: id, key (what the item depends on), hashes of its files. After a
    kill, items with the same key are not computed again; also a kill while files move to their places loses nothing.
    """

    def __init__(self, root: Path, stage: Stage, contents: Contents) -> None:
        self._root, self._stage, self._contents = root, stage, contents
        self.folder = root / RECORDS / f"{stage.name}.new"
        self._lock = threading.Lock()
        self._done: dict[str, tuple[str, dict[str, str]]] = {}
        for line in self._lines():
            try:
                id, key, outputs = json.loads(line)
                self._done[id] = (key, dict(outputs))
            except (ValueError, TypeError):  # cut short by a kill: that item is computed again
                continue

    def _lines(self) -> list[str]:
        try:
            return (self.folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []

    def begin(self, keys: dict[str, str], previous: Record | None) -> bool:
        """Start with the items of these keys. Returns whether earlier work is of use."""
        if not self._stage.per_image:
            same = self._begun() == keys.get("")
            if not same:
                self._remove(self._written(None), set(previous.outputs()) if previous else set())
                self.clear()
                write_text(self.folder / BEGUN, json.dumps(keys.get("")))
            return same
        return any(self.has(id, key) for id, key in keys.items())

    def _begun(self) -> object:
        try:
            return json.loads((self.folder / BEGUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def new(self, path: Path) -> Path:
        """Where the file is written that will lie at `path` in the run folder."""
        target = self.folder / path.relative_to(self._root)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def has(self, id: str, key: str) -> bool:
        """Whether the item is finished; its files are here, or have moved to their places already."""
        found = self._done.get(id)
        return (
            found is not None
            and found[0] == key
            and all(
                expected in (self._contents.hash(self.folder / path), self._contents.hash(self._root / path))
                for path, expected in found[1].items()
            )
        )

    def finish(self, id: str, key: str) -> None:
        """Note in the journal that an item is finished."""
        if self._stage.per_image:
            places = [output.replace("{id}", id) for output in self._stage.outputs]
            paths = [path for path in places if (self.folder / path).exists()]
        else:
            files = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
            names = (str(path.relative_to(self.folder)) for path in files)
            paths = [name for name in names if name not in (JOURNAL, BEGUN) and not name.endswith(CHECKPOINT)]
        outputs = {path: self._contents.hash(self.folder / path) for path in paths}
        with self._lock, (self.folder / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps([id, key, outputs]) + "\n")
            self._done[id] = (key, outputs)

    def outputs(self, id: str) -> dict[str, str]:
        """Hashes of a finished item's files."""
        return self._done[id][1]

    def move(self, items: dict[str, Item], previous: Record | None) -> None:
        """Put all new files in their places, and remove those that the stage wrote earlier and not any more."""
        written = self._written(previous)
        for item in items.values():
            for path in item.outputs:
                source, target = self.folder / path, self._root / path
                if source.exists():
                    self._keep_foreign(target, written.get(path, set()))
                    self._contents.move(source, target)
        self._remove(written, {path for item in items.values() for path in item.outputs})

    def _written(self, previous: Record | None) -> dict[str, set[str]]:
        """Hashes of what the stage has written at each path: in its last run, and in one that a kill cut short."""
        found: dict[str, set[str]] = {}
        for outputs in (previous.outputs() if previous else {}, *(outputs for _, outputs in self._done.values())):
            for path, content in outputs.items():
                found.setdefault(path, set()).add(content)
        return found

    def _remove(self, written: dict[str, set[str]], kept: set[str]) -> None:
        for path in written.keys() - kept:
            target = self._root / path
            self._keep_foreign(target, written[path])
            if target.is_file():
                target.unlink()
            if target.parent.is_dir():
                self._remove_empty(target.parent)

    def _keep_foreign(self, target: Path, written: set[str]) -> None:
        """Move a file that the stage did not write out of the way: it may be somebody's work."""
        if target.is_file() and not _is_empty(target) and self._contents.hash(target) not in written:
            kept = self._root / REPLACED / target.relative_to(self._root)
            kept.parent.mkdir(parents=True, exist_ok=True)
            os.replace(target, kept)

    def _remove_empty(self, folder: Path) -> None:
        while folder != self._root and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent

    def clear(self) -> None:
        """Remove the folder."""
        self._done.clear()
        if self.folder.is_dir():
            shutil.rmtree(self.folder)


def _is_empty(path: Path) -> bool:
    """Whether an output was emptied, by a full disk for example: that is nobody's work."""
    return path.is_file() and path.stat().st_size == 0
