"""From a mask to its objects: class regions or connected components, as crops, run lengths or polygons."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import IGNORE

Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Region:
    """One object of a mask.

    Attributes:
        label: 1..C, or 255 for the unknown pixels.
        box: (x, y, width, height) of the smallest box around it, in pixels.
        pixels: (height, width) bool, the object in its box.
    """

    label: int
    box: tuple[int, int, int, int]
    pixels: Bool

    @property
    def area(self) -> int:
        return int(np.count_nonzero(self.pixels))

    def full(self, size: tuple[int, ...]) -> NDArray[np.uint8]:
        """The object in the whole image: (H, W) uint8 0 or 1."""
        x, y, width, height = self.box
        image = np.zeros(size, np.uint8)
        image[y : y + height, x : x + width] = self.pixels
        return image


def find_regions(mask: NDArray[np.uint8], *, instances: bool = False) -> list[Region]:
    """The objects of `mask` in the order of their labels.

    Args:
        mask: (H, W) labels, 0 for background, 255 for unknown.
        instances: split each class into its 8-connected components. The unknown pixels stay one region.
    """
    found = []
    for label in np.unique(mask[mask > 0]).tolist():
        chosen = (mask == label).astype(np.uint8)
        if not instances or label == IGNORE:
            found.append(_crop(label, chosen, cv2.boundingRect(chosen), 1))
            continue
        count, components, stats, _ = cv2.connectedComponentsWithStats(chosen, connectivity=8)
        found += [_crop(label, components, stats[index, :4], index) for index in range(1, count)]
    return found


def _crop(label: int, image: NDArray[Any], box: Sequence[int], value: int) -> Region:
    x, y, width, height = (int(side) for side in box)
    return Region(label, (x, y, width, height), image[y : y + height, x : x + width] == value)


def polygons(pixels: Bool) -> list[NDArray[np.intp]]:
    """One closed polygon for each 8-connected part of `pixels`: (N, 2) x, y of pixels on the outline.

    A hole is joined to the outline by a bridge that is walked twice. Filled with `cv2.fillPoly`, the polygons give
    `pixels` again, except for bridges that cross a corner of a hole; `filled` says what is drawn.
    """
    contours, hierarchy = cv2.findContours(pixels.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outlines = []
    for index, contour in enumerate(contours):
        if hierarchy[0, index, 3] >= 0:
            continue
        outline, holes = contour[:, 0], []
        child = hierarchy[0, index, 2]
        while child >= 0:
            holes.append(contours[child][:, 0])
            child = hierarchy[0, child, 0]
        outlines.append(_bridged(outline, holes).astype(np.intp))
    return outlines


def filled(parts: Sequence[NDArray[np.intp]], size: tuple[int, ...]) -> Bool:
    """The pixels that `cv2.fillPoly` draws for each part in turn: (H, W) bool. Ultralytics and supervision do that."""
    image = np.zeros(size, np.uint8)
    for part in parts:
        cv2.fillPoly(image, [np.asarray(part, np.int32)], 1)
    return image.astype(bool)


def _bridged(outline: NDArray[Any], holes: list[NDArray[Any]]) -> NDArray[Any]:
    """`outline` with each of `holes` inserted where the two are nearest, the nearest hole first."""
    holes = list(holes)
    nearest = [_nearest(outline, hole) for hole in holes]
    while holes:
        chosen = min(range(len(holes)), key=lambda index: nearest[index][0])
        hole, (_, at, start) = holes.pop(chosen), nearest.pop(chosen)
        loop = np.concatenate([np.roll(hole, -start, 0), hole[start : start + 1]])
        outline = np.concatenate([outline[: at + 1], loop, outline[at:]])
        added = len(loop)
        for index, other in enumerate(holes):  # only the inserted hole can have come nearer
            distance, position, first = nearest[index]
            if position > at:
                position += added + 1
            candidate = _nearest(loop, other)
            if candidate[0] < distance:
                distance, position, first = candidate[0], at + 1 + candidate[1], candidate[2]
            nearest[index] = (distance, position, first)
    return outline


def _nearest(outline: NDArray[Any], hole: NDArray[Any]) -> tuple[int, int, int]:
    """Squared distance, and the indices of the nearest vertices of the two."""
    best = (np.iinfo(np.int64).max, 0, 0)
    for index, vertex in enumerate(hole.astype(np.int64)):
        distances = ((outline - vertex) ** 2).sum(1)
        at = int(distances.argmin())
        if distances[at] < best[0]:
            best = (int(distances[at]), at, index)
    return best
