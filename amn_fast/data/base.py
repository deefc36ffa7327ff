"""What a data set is to the rest of the project: ids, images, image-level labels and perhaps ground truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from amn_fast.errors import InputError

IGNORE = 255
"""The label of a pixel whose class is unknown."""


class Dataset(Protocol):
    """Images and their image-level labels. Ids are strings; everything is read when asked for, never before."""

    name: str
    classes: tuple[str, ...]
    """Names of the C foreground classes; label k of a mask is `classes[k - 1]`, 0 is background."""
    ids: tuple[str, ...]

    def image(self, id: str) -> NDArray[np.uint8]:
        """The upright RGB image, (H, W, 3) uint8."""
        ...

    def labels(self, id: str) -> NDArray[np.bool_]:
        """The classes that the image shows, (C,) bool."""
        ...

    def ground_truth(self, id: str) -> NDArray[np.uint8] | None:
        """The ground-truth mask, (H, W) uint8 with 0..C and 255 for unknown; None where there is none."""
        ...

    def truth(self, id: str) -> NDArray[np.uint8] | None:
        """The former name of `ground_truth`."""
        ...

    def image_file(self, id: str) -> Path | None:
        """The file that holds the image; None where there is none."""
        ...

    def truth_file(self, id: str) -> Path | None:
        """The file from which the ground-truth mask is read; None where there is none."""
        ...

    def missing(self) -> dict[str, list[str]]:
        """What a run over all ids would lack, without decoding an image: kind ("image", "labels") -> ids."""
        ...

    def strays(self) -> dict[str, list[str]]:
        """What lies beside the data set and is not part of it: reason -> ids or file names."""
        ...


def require_complete(dataset: Dataset) -> None:
    """Check that every id of `dataset` has what a run needs, before the run starts.

    Raises:
        InputError: something is missing; the message gives the number and the first ids of each kind.
    """
    gaps = [f"{list_ids(ids)} of {len(dataset.ids)} have no {kind}" for kind, ids in dataset.missing().items() if ids]
    if gaps:
        raise InputError(f"data set {dataset.name}: {'; '.join(gaps)}")


def quote(text: object, most: int = 80) -> str:
    """`repr` of a text out of a user's file, cut to about `most` characters, for a message.

    Examples:
        >>> quote("cat"), len(quote("cat" * 1000))
        ("'cat'", 83)
    """
    quoted = repr(text[:most] if isinstance(text, str | bytes) else text)
    return f"{quoted[:most]}..." if len(quoted) > most + 2 or quoted != repr(text) else quoted


def list_ids(ids: Sequence[str], most: int = 10) -> str:
    """The number of ids and the first of them, for a message."""
    shown = ", ".join(quote(id) for id in ids[:most])
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return f"{len(ids)} id{'s' * (len(ids) != 1)} ({shown}{more})"
