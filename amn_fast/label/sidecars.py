"""Labels in a file beside each image."""

import json
import os
import re

from amn_fast.errors import InputError
from amn_fast.label.listing import SIDECARS, Names, without_suffix
from amn_fast.label.places import filesystem_of, is_url, read_location


def read_sidecar(location: str, classes: tuple[str, ...]) -> Names:
    """The labels in the file beside an image: STEM.json, STEM.txt or STEM.cls.

    Raises:
        InputError: there is none, or it is not as `parse_sidecar` expects.
    """
    stem = without_suffix(location)
    for suffix in SIDECARS:
        if is_url(location):
            files, path = filesystem_of(stem + suffix)
            there = files.exists(path)
        else:
            there = os.path.isfile(stem + suffix)
        if there:
            return parse_sidecar(read_location(stem + suffix), stem + suffix, classes)
    raise InputError(f"{location}: has no sidecar {', '.join(SIDECARS)}")


def parse_sidecar(content: bytes, name: str, classes: tuple[str, ...]) -> Names:
    """The class names in a sidecar file.

    Args:
        content: JSON, a list of names or {"labels": [names]}; text, names separated by line ends, commas, semicolons,
            tabs or |; or, in a file `.cls`, one name or the number of a class from 0, as WebDataset writes it.
        name: of the file; its ending says which.
        classes: of the run.

    Raises:
        InputError: it is not.
    """
    try:
        text = content.decode("utf-8-sig")
        value = json.loads(text) if name.endswith(".json") else text
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: is not {'JSON' if name.endswith('.json') else 'UTF-8 text'}") from error
    if isinstance(value, dict):
        value = value.get("labels")
    if isinstance(value, str):
        value = [part.strip() for part in re.split(r"[\n;|\t,]", value) if part.strip()]
        if name.endswith(".cls") and len(value) == 1 and value[0].isdecimal() and value[0] not in classes:
            number = int(value[0])
            if number >= len(classes):
                raise InputError(f"{name}: holds class {number}, expected 0..{len(classes) - 1}")
            value = [classes[number]]
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise InputError(f'{name}: holds no list of class names, expected ["name"] or {{"labels": ["name"]}}')
    return value
