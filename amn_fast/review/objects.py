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

    A hole is joined to what lies left of it by a bridge, which runs over pixels of the object and is traversed twice.
    Filled with `cv2.fillPoly`, the polygons therefore give `pixels` again.
    """
    contours, hierarchy = cv2.findContours(pixels.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    found = []
    for index, contour in enumerate(contours):
        if hierarchy[0, index, 3] >= 0:
            continue
        holes = []
        child = hierarchy[0, index, 2]
        while child >= 0:
            holes.append(contours[child][:, 0])
            child = hierarchy[0, child, 0]
        found.append(_simplified(_bridged(contour[:, 0], holes, pixels)))
    return found


def filled(parts: Sequence[NDArray[np.intp]], size: tuple[int, ...]) -> Bool:
    """The pixels that `cv2.fillPoly` draws for each part in turn: (H, W) bool. Ultralytics and supervision do that."""
    image = np.zeros(size, np.uint8)
    for part in parts:
        cv2.fillPoly(image, [np.asarray(part, np.int32)], 1)
    return image.astype(bool)


def _bridged(outline: NDArray[Any], holes: list[NDArray[Any]], pixels: Bool) -> NDArray[np.intp]:
    """`outline` and `holes` as one path.

    From the leftmost pixel of a hole's contour, the object's pixels to the left end at the contour of something that
    reaches further left: the outline or a hole that is joined already, if the leftmost hole comes first.
    """
    path = [tuple(point) for point in outline.tolist()]
    after = [*range(1, len(path)), 0]
    place = {point: index for index, point in enumerate(path)}
    for hole in sorted(holes, key=lambda hole: tuple(hole[hole[:, 0].argmin()].tolist())):
        hole = np.roll(hole, -int(hole[:, 0].argmin()), 0)
        x, y = hole[0].tolist()
        background = np.flatnonzero(~pixels[y, :x])
        joint = place[int(background[-1]) + 1 if background.size else 0, y]
        first = len(path)
        path += [*(tuple(point) for point in hole.tolist()), (x, y), path[joint]]
        after += [*range(first + 1, len(path)), after[joint]]
        after[joint] = first
        place.update((point, index) for index, point in enumerate(path[first:], first))
    order, index = [], 0
    for _ in path:
        order.append(path[index])
        index = after[index]
    return np.array(order, np.intp)


def _simplified(path: NDArray[np.intp]) -> NDArray[np.intp]:
    """The closed `path`, whose steps are horizontal, vertical or diagonal, without repeats and points on the way."""
    if len(path) > 1:
        path = path[(path != np.roll(path, 1, 0)).any(1)]
    direction = np.sign(np.roll(path, -1, 0) - path)
    turns = (direction != np.roll(direction, 1, 0)).any(1)
    return path[turns] if turns.any() else path
