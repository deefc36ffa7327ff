"""Data sets: pictures, image-level labels and perhaps ground truth, from a folder, VOC 2012, COCO 2014 or the demo."""

from pathlib import Path
from typing import Any

from amn_fast.data.base import IGNORE, Dataset, require_complete
from amn_fast.errors import InputError

__all__ = ["IGNORE", "Dataset", "open_dataset", "require_complete"]


def open_dataset(kind: str, root: Path | str, **options: Any) -> Dataset:
    """The data set of `kind` "folder", "voc", "coco" or "demo" in the folder `root`.

    The options are those of `open_folder`, `open_voc`, `open_coco` and `open_demo` in the module of that name.

    Raises:
        InputError: no such kind or option, or the data set is not what it has to be.
    """
    if kind == "folder":
        from amn_fast.data.folder import open_folder as opener
    elif kind == "voc":
        from amn_fast.data.voc import open_voc as opener
    elif kind == "coco":
        from amn_fast.data.coco import open_coco as opener
    elif kind == "demo":
        from amn_fast.data.demo import open_demo as opener
    else:
        raise InputError(f"the data set's kind is {kind!r}, expected folder, voc, coco or demo")
    unknown = set(options) - set(opener.__kwdefaults__)
    if unknown:
        raise InputError(
            f"a data set of kind {kind} has no option {sorted(unknown)[0]!r}, "
            f"expected {', '.join(opener.__kwdefaults__)}"
        )
    return opener(root, **options)
