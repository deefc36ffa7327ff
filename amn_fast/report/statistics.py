"""What seeds and masks hold, known without any ground truth: coverage and the share of each class."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

UNKNOWN = 255


class LabelStatistics:
    """Counts of label maps, image by image, in any order.

    Args:
        n_classes: C, the number of foreground classes.

    Examples:
        >>> statistics = LabelStatistics(1)
        >>> statistics.add(np.array([[0, 1], [1, 255]], np.uint8), np.array([True]))
        >>> statistics.to_json()["coverage"], statistics.to_json()["foreground"]
        (0.75, 0.666667)
    """

    def __init__(self, n_classes: int) -> None:
        self.images = 0
        self._pixels = np.zeros(256, np.int64)
        self._within = np.zeros((n_classes, 2), np.int64)  # labelled pixels, and those of the class, in its images
        self._empty = np.zeros(n_classes, np.int64)

    def add(self, label_map: NDArray[np.uint8], labels: NDArray[np.bool_]) -> None:
        """Count one image.

        Args:
            label_map: (H, W) uint8: 0..C, 255 where the map says nothing.
            labels: (C,) bool, the image-level label.
        """
        counts = np.bincount(label_map.ravel(), minlength=256)
        self._pixels += counts
        self.images += 1
        own = counts[1 : len(labels) + 1]
        self._within[labels, 0] += label_map.size - counts[UNKNOWN]
        self._within[labels, 1] += own[labels]
        self._empty += labels & (own == 0)

    def to_json(self) -> dict[str, Any]:
        """The figures, rounded to six decimals; None where there is nothing to divide by.

        Returns:
            "images": number of label maps; "coverage": share of labelled pixels (not 255) of all pixels;
            "foreground": share of foreground pixels of the labelled ones; and, a list with an entry for each class,
            "share": share of the class of the labelled pixels of the images with that label; "empty": how many of
            these images have no pixel of it.
        """
        total, labelled = int(self._pixels.sum()), int(self._pixels[:UNKNOWN].sum())
        return {
            "images": self.images,
            "coverage": _ratio(labelled, total),
            "foreground": _ratio(labelled - int(self._pixels[0]), labelled),
            "share": [_ratio(int(own), int(known)) for known, own in self._within],
            "empty": self._empty.tolist(),
        }


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
