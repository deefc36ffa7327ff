"""Ids of images: from file names, from lists and from label files, in one Unicode form."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from amn_fast.data.base import list_ids, quote
from amn_fast.data.text import read_text
from amn_fast.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
"""The endings of the image files that are read."""

OTHER_IMAGE_SUFFIXES = frozenset(
    [
        ".heic",
        ".heif",
        ".avif",
        ".jxl",
        ".jp2",
        ".j2k",
        ".jfif",
        ".jpe",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tga",
        ".psd",
        ".exr",
        ".hdr",
        ".svg",
        ".eps",
        ".dcm",
        ".nii",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
        ".raw",
    ]
)
"""The endings of image files that are not read, so that they can be named."""


def clean_id(text: str) -> str:
    """Strip blanks and compose accents (Unicode NFC): file names from macOS come decomposed.

    Examples:
        >>> clean_id(" cafe\u0301 ") == "caf\u00e9"
        True
    """
    return unicodedata.normalize("NFC", text.strip())


def find_files(folder: Path, suffixes: Collection[str], what: str) -> dict[str, Path]:
    """Map ids to the files in `folder` with one of `suffixes`; the id is the name without the ending.

    Hidden files do not count, so that the `._NAME` files of macOS do not.

    Args:
        what: what the files are, in the plural, for messages.

    Raises:
        InputError: the folder is missing, two files have one id, or a name is not UTF-8.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of {what}")
    found: dict[str, Path] = {}
    for path in sorted(_entries(folder)):
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or path.is_dir():
            continue
        id = unicodedata.normalize("NFC", path.stem)
        if not _is_text(path.name):
            raise InputError(f"{folder}: the file name {path.name!r} is not UTF-8; rename the file")
        if id in found:
            raise InputError(f"{path} and {found[id].name}: two {what} have the id {id!r}")
        found[id] = path
    return found


def find_images(folder: Path) -> dict[str, Path]:
    """Map ids to the image files in `folder`.

    Raises:
        InputError: the folder is missing or holds no image, or two images have the same id.
    """
    found = find_files(folder, IMAGE_SUFFIXES, "images")
    if not found:
        others = [f"{len(names)} {kind}" for kind, names in unread_images(folder).items() if names]
        besides = f", but {' and '.join(others)}" if others else ""
        raise InputError(f"{folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}){besides}")
    return found


def unread_images(folder: Path) -> dict[str, list[str]]:
    """List the files in `folder` that look like images and are not read, relative to it, by the reason."""
    below: list[str] = []
    foreign: list[str] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            path = os.path.relpath(os.path.join(place, name), folder)
            if suffix in OTHER_IMAGE_SUFFIXES:
                foreign.append(path)
            elif suffix in IMAGE_SUFFIXES and Path(place) != folder:
                below.append(path)
    return {"images in subfolders, which are not read": below, "files of formats that are not read": foreign}


def read_ids(path: Path | str) -> tuple[str, ...]:
    """Read the ids in a text file, one a line, as strings; blank lines do not count.

    Raises:
        InputError: the file is missing or holds no id, or an id is a duplicate.
    """
    return unique_ids(read_text(path).splitlines(), path)


def unique_ids(lines: Iterable[str], path: Path | str) -> tuple[str, ...]:
    """Clean the non-empty `lines` of the list `path`, which have to be different ids."""
    ids: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        id = clean_id(line)
        if id in ids:
            raise InputError(f"{path}: the id {quote(id)} is a duplicate, in lines {ids[id]} and {number}")
        if id:
            ids[id] = number
    if not ids:
        raise InputError(f"{path}: holds no ids")
    return tuple(ids)


def join(keys: Iterable[str], ids: Sequence[str]) -> dict[str, str]:
    """Find which of the `keys` of a label file or list belongs to which of `ids`.

    A key is the id itself; or else its file name, with or without folder; or else the same number: label files name
    `2007_000032` also `2007_000032.jpg` and `2007000032`, and `000000000009` also `9`.

    Raises:
        InputError: two keys, or two ids, that no exact match tells apart are the same file name or number.
    """
    keys = set(keys)
    joined = {id: id for id in ids if id in keys}
    for form in (_stem, _number):
        rest: dict[str, str] = {}
        for key in sorted(keys.difference(joined.values())):
            alias = form(key)
            if alias is not None and rest.setdefault(alias, key) != key:
                raise InputError(f"two names mean the image {quote(alias)}: {quote(rest[alias])} and {quote(key)}")
        used: dict[str, str] = {}
        for id in ids:
            alias = id if form is _stem else _number(id)
            if id in joined or alias is None or alias not in rest:
                continue
            joined[id] = rest[alias]
            if used.setdefault(joined[id], id) != id:
                raise InputError(
                    f"the name {quote(joined[id])} fits two images, {quote(used[joined[id]])} and {quote(id)}"
                )
    return joined


def _stem(key: str) -> str | None:
    """A file name without folder and ending; None if it is not one."""
    name = re.split(r"[\\/]", key)[-1]
    stem, suffix = os.path.splitext(name)
    if suffix.lower() in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES:
        return stem
    return name if name != key and name else None


def _number(id: str) -> str | None:
    """The digits of a number without leading zeros, compared as text: an id may have any number of them."""
    digits = id.replace("_", "")
    return (digits.lstrip("0") or "0") if digits.isascii() and digits.isdigit() else None


def number_of(id: str) -> int | None:
    """The number that an id spells, None if it spells none or has more than 18 digits."""
    digits = _number(id)
    return int(digits) if digits is not None and len(digits) <= 18 else None


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}") from error


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_some_match(found: dict[str, Path], ids: Collection[str], folder: Path, what: str) -> None:
    """Raise InputError when `folder` holds `what`, and none of them has the id of an image."""
    if found and ids and not any(id in ids for id in found):
        raise InputError(
            f"{folder}: none of its {what}, {list_ids(sorted(found), 3)}, has the id of an image, such as {min(ids)!r}"
        )
