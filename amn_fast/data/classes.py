"""Class names, and the labels of images as vectors over them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import IGNORE, quote
from amn_fast.data.names import clean_id
from amn_fast.data.text import read_text
from amn_fast.errors import InputError

Vector = NDArray[np.bool_]
_BACKGROUND = frozenset({"background", "_background_", "__background__"})


class Labels(Mapping[str, Vector]):
    """Labels by id, (C,) bool each, computed when first asked for."""

    def __init__(self, classes: tuple[str, ...], ids: Iterable[str], of: Callable[[str], Vector]) -> None:
        self.classes = classes
        self._known: dict[str, Vector | None] = dict.fromkeys(ids)
        self._of = of

    def __getitem__(self, id: str) -> Vector:
        vector = self._known[id]
        if vector is None:
            vector = self._known[id] = self._of(id)
        return vector

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, id: object) -> bool:
        return id in self._known


def is_background(name: object) -> bool:
    """Whether `name` is one of the usual names of the background."""
    return isinstance(name, str) and name.strip().lower() in _BACKGROUND


def read_classes(path: Path | str) -> tuple[str, ...]:
    """Read the class names in a text file, one a line; a first line `background` is not a class and left out.

    Raises:
        InputError: the file is missing or empty, or a name is a duplicate.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if names and is_background(names[0]):
        names = names[1:]
    return check_classes(names, path)


def check_classes(names: Iterable[object], where: Path | str) -> tuple[str, ...]:
    """Return `names` in Unicode's NFC form, checked: 1 to 254 different names, none of them the background."""
    given = tuple(names)
    if not 1 <= len(given) < IGNORE:
        raise InputError(f"{where}: names {len(given)} classes, expected 1 to {IGNORE - 1}")
    checked: list[str] = []
    for name in given:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where}: a class name is {quote(name)}, expected text")
        if is_background(name):
            raise InputError(f"{where}: {quote(name)} is not a class; it may only be the first line of a list of names")
        if (clean := clean_id(name)) in checked:
            raise InputError(f"{where}: the class {quote(name)} is a duplicate")
        checked.append(clean)
    return tuple(checked)


def label_vector(names: Iterable[str], classes: tuple[str, ...], path: Path | str, id: str) -> Vector:
    """Return `names` as (C,) bool; InputError, naming file, id and name, when one is not in `classes`."""
    vector = np.zeros(len(classes), bool)
    for name in names:
        if (clean := clean_id(name)) not in classes:
            alike = [own for own in classes if own.lower() == clean.lower()]
            known = f"the classes have {alike[0]!r}" if alike else f"the classes are {', '.join(classes)[:300]}"
            raise InputError(f"{path}: {quote(id)} has the unknown class {quote(name)}; {known}")
        vector[classes.index(clean)] = True
    return vector
