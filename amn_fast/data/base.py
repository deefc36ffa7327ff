"""What a data set is to the rest of the project: ids, pictures, image-level labels and perhaps ground truth."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

IGNORE = 255
"""The label of a pixel whose class is unknown."""


class Dataset(Protocol):
    """Pictures and their image-level labels. Ids are strings; everything is read when asked for, never before."""

    name: str
    classes: tuple[str, ...]
    """Names of the C foreground classes; label k of a mask is `classes[k - 1]`, 0 is background."""
    ids: tuple[str, ...]

    def image(self, id: str) -> NDArray[np.uint8]:
        """The upright RGB picture, (H, W, 3) uint8."""
        ...

    def labels(self, id: str) -> NDArray[np.bool_]:
        """Which classes the picture shows, (C,) bool."""
        ...

    def truth(self, id: str) -> NDArray[np.uint8] | None:
        """The ground-truth mask, (H, W) uint8 with 0..C and 255 for unknown; None where there is none."""
        ...

    def missing(self) -> dict[str, list[str]]:
        """What a run over all ids would lack, without decoding a picture: kind ("image", "labels") -> ids."""
        ...
