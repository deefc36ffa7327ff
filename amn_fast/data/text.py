"""Files of text that people and tools write: read within bounds, or refused by what they turn out to be."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from amn_fast.errors import InputError

MOST_BYTES = 1 << 31
"""The largest file that is read as a whole; COCO's instances files are below 0.5 GB."""

_FIRST_BYTES = 1 << 20
_MOST_XML_BYTES = 1 << 26
_SIGNATURES = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\0\x05\x16\x07", "a macOS resource file"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"version https://git-lfs", "a Git LFS pointer, whose file is fetched by `git lfs pull`"),
)


def describe_content(data: bytes) -> str:
    """Name what a file is by its first bytes, for a message that refuses it.

    Args:
        data: the start of the file, 512 bytes or more where it has them.

    Examples:
        >>> describe_content(b"<!DOCTYPE html><html><body>404")
        'an HTML page'
    """
    if not data.strip(b"\0 \t\r\n"):
        return "a file of zeros" if b"\0" in data else "an empty file"
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP image"
    if data[4:8] == b"ftyp":
        return f"an image or video of type {data[8:12].decode('latin1').strip()!r}"
    if data[:1] == b"\x80" and data[1:2] <= b"\x05":
        return "a Python pickle"
    text = data[:512].decode("utf-8-sig", "replace").lstrip()
    if "\0" in text or text.count("\ufffd") > 3:
        return "binary data"
    if re.match(r"<(!doctype\s+)?html", text, re.IGNORECASE):
        return "an HTML page"
    if found := re.search(r"<([A-Za-z_][\w.:-]*)", text) if text.startswith("<") else None:
        return f"XML with the root <{found[1]}>"
    if text[:1] in ("{", "["):
        return "JSON"
    return f"text that begins with {text[:30]!r}"


def read_bytes(path: Path | str, most: int = MOST_BYTES) -> bytes:
    """Read a file of at most `most` bytes.

    Raises:
        InputError: the file is missing, larger, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_FIRST_BYTES)
            if len(data) == _FIRST_BYTES:  # Python allocates as many bytes as it is asked for
                data += file.read(max(0, most + 1 - _FIRST_BYTES))
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{str(path)!r}: is not a file name") from error
    if len(data) > most:
        raise InputError(f"{path}: is larger than {most >> 20} MiB")
    return data


def read_text(path: Path | str) -> str:
    """Read UTF-8 text, without a byte-order mark.

    Raises:
        InputError: the file is missing or not UTF-8.
    """
    data = read_bytes(path)
    if b"\0" in data:
        raise InputError(f"{path}: is {_described_binary(data)}, expected UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is {_described_binary(data)}, expected UTF-8 text") from error


def _described_binary(data: bytes) -> str:
    """What a file is that is not UTF-8 text, though its start may look like it."""
    found = describe_content(data)
    return "damaged text or binary data" if found.startswith(("text", "JSON", "XML", "an HTML")) else found


def read_json(path: Path | str) -> Any:
    """Read a JSON value in which no object has a duplicate key.

    Raises:
        InputError: the file is missing, not JSON, nested too deeply, or has a duplicate key.
    """
    text = read_text(path)
    if text.lstrip()[:1] not in tuple('{["-0123456789tfn'):
        raise InputError(f"{path}: is {describe_content(text[:512].encode())}, expected JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            first: dict[str, Any] = {}
            for key, item in pairs:
                if key in first:
                    both = f"{_shown(first[key])} and {_shown(item)}"
                    raise InputError(f"{path}: the key {key[:80]!r} is a duplicate, with the values {both}")
                first[key] = item
        return value

    try:
        return json.loads(text, object_pairs_hook=unique)
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is not JSON: line {error.lineno}, column {error.colno} is damaged") from error
    except RecursionError as error:
        raise InputError(f"{path}: is JSON that is nested too deeply") from error
    except ValueError as error:  # Python bounds the digits of an integer
        raise InputError(f"{path}: holds a number of thousands of digits") from error


def describe_json(value: Any) -> str:
    """Name a JSON value by its form, for a message that refuses it."""
    if isinstance(value, dict):
        keys = ", ".join(repr(key[:30]) for key in list(value)[:5])
        return f"JSON with the keys {keys}{', ...' if len(value) > 5 else ''}" if value else "an empty JSON object"
    return f"a JSON {({list: 'list', str: 'text', type(None): 'null'}).get(type(value), 'number')}"


def read_xml(path: Path | str) -> ElementTree.Element:
    """Read an XML file of at most 64 MiB without entity declarations; tags lose their namespace.

    Raises:
        InputError: the file is missing or not such XML.
    """
    data = read_bytes(path, _MOST_XML_BYTES)
    if b"<!ENTITY" in data:
        raise InputError(f"{path}: is XML that declares entities, which is refused")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        line, column = error.position
        found = describe_content(data)
        found = f"damaged at line {line}, column {column + 1}" if found.startswith("XML") else f"{found}, expected XML"
        raise InputError(f"{path}: is {found}") from error
    except (ValueError, LookupError) as error:
        raise InputError(f"{path}: is XML in an encoding that is not read, expected UTF-8") from error
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    return root


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
