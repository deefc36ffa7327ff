"""Data sets: images, image-level labels and perhaps ground truth, from a folder, VOC 2012, COCO 2014 or the demo."""

from importlib import import_module
from pathlib import Path
from typing import Any

from amn_fast.data.base import IGNORE, Dataset, require_complete
from amn_fast.errors import InputError

__all__ = ["IGNORE", "Dataset", "open_dataset", "require_complete"]

_KINDS = ("folder", "voc", "coco", "demo")


def open_dataset(kind: str, root: Path | str, **options: Any) -> Dataset:
    """Open the data set in the folder `root`.

    Args:
        kind: "folder", "voc", "coco" or "demo".
        root: the folder.
        options: those of `open_folder`, `open_voc`, `open_coco` and `open_demo`, in the modules of these names.

    Raises:
        InputError: no such kind or option, or the data set is not as expected.

    Example:
        >>> dataset = open_dataset("demo", "/tmp/demo-example", n=2)
        >>> dataset.classes
        ('cat', 'cup', 'person')
    """
    if kind not in _KINDS:
        raise InputError(f"the data set's kind is {kind!r}, expected {', '.join(_KINDS)}")
    opener = getattr(import_module(f"amn_fast.data.{kind}"), f"open_{kind}")
    for option in options:
        if option not in opener.__kwdefaults__:
            known = ", ".join(opener.__kwdefaults__)
            raise InputError(f"a data set of kind {kind} has no option {option!r}, expected {known}")
    return opener(root, **options)
