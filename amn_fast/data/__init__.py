"""Data sets: images, image-level labels and perhaps ground truth, from a folder, VOC 2012, COCO 2014 or the demo."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amn_fast.data.base import IGNORE, Dataset, require_complete
from amn_fast.errors import InputError

if TYPE_CHECKING:
    from amn_fast.data.store import Activations

__all__ = ["IGNORE", "Dataset", "open_dataset", "read_activations", "require_complete"]

_KINDS = ("folder", "voc", "coco", "demo")
_GUIDE = "; docs/guides/voc-coco.md says what to download"


def open_dataset(kind: str, root: Path | str, **options: Any) -> Dataset:
    """Open the data set in the folder `root`.

    Args:
        kind: "folder", "voc", "coco" or "demo".
        root: the folder.
        options: those of `open_folder`, `open_voc`, `open_coco` and `open_demo`, in the modules of these names.

    Raises:
        InputError: no such kind or option, or the data set is not as expected.

    Examples:
        >>> import tempfile
        >>> dataset = open_dataset("demo", tempfile.mkdtemp() + "/demo", n=2)
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
    if kind != "demo" and not Path(root).is_dir():  # the demo writes its own
        guide = _GUIDE if kind in ("voc", "coco") else ""
        raise InputError(f"{root}: there is no such folder; set data.root or --root to the data set's folder{guide}")
    return opener(root, **options)


def read_activations(path: Path | str) -> "Activations":
    """Read the activations of one image, from a file of this package or of the reference implementations.

    Args:
        path: `ID.npz` as `make-cam` and `make-amn-cam` write it, or `ID.npy` as IRN's and AMN's code write it. Nothing
            in the file is executed.

    Returns:
        keys (K,) uint8, the labels of the channels, from 1; strided (K, h, w) and full (K, H, W) float32.

    Raises:
        InputError: the file is missing, damaged or of another form.
    """
    if Path(path).suffix == ".npy":
        from amn_fast.data.published import read_published

        return read_published(path)
    from amn_fast.data import store

    return store.read_activations(path)
