"""Scores of masks against ground truth, for any two sets of masks: `score`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import IGNORE, list_ids
from amn_fast.data.image import read_mask
from amn_fast.data.masks import describe_size, find_masks, require_class_ids
from amn_fast.errors import InputError
from amn_fast.metrics import Confusion, UnknownRule
from amn_fast.review.coco import coco_masks

BOUNDARY_SHARE = 0.008
"""Tolerance of the boundary score as a share of the image's diagonal, as DAVIS has it."""
WORST = 20

Mask = NDArray[np.uint8]
Reader = Callable[[], Mask]


@dataclass(frozen=True)
class MaskScores:
    """What `score` found.

    Attributes:
        images: how many images have ground truth.
        scored: how many of them were scored.
        without_mask: ids of images with ground truth but without a mask; they are not in the scores.
        without_ground_truth: ids of masks without ground truth.
        failures: id -> reason, for images whose two masks could not be compared.
        classes: names of the labels 0..C.
        scores: the figures of `amn_fast.metrics.Scores`: miou, iou per class, coverage and more.
        boundary_f: mean over the classes of `boundary_f_by_class`.
        boundary_f_by_class: mean over the images that have the class in mask or ground truth; None for no image.
        confusion: pixels by [ground truth][mask], labels 0..C, then "unknown" as the last column.
        worst: up to 20 (id, mIoU over the labels present), the lowest first.
    """

    images: int
    scored: int
    without_mask: list[str]
    without_ground_truth: list[str]
    failures: dict[str, str]
    classes: list[str]
    scores: dict[str, Any]
    boundary_f: float | None
    boundary_f_by_class: list[float | None]
    confusion: list[list[int]]
    worst: list[tuple[str, float]]


def score(
    masks: Path | str,
    ground_truth: Path | str,
    classes: tuple[str, ...] | None = None,
    *,
    unknown: UnknownRule = "wrong",
    advance: Callable[[], object] = lambda: None,
) -> MaskScores:
    """Compare masks with ground truth, image by image, joined by file name.

    Args:
        masks: a folder of palette or grey PNG masks, a run folder (its masks/ is taken), or a COCO instances JSON.
        ground_truth: the same kinds. Pixels of 255 do not count.
        classes: names of the classes. COCO files are joined by them; by default their own categories.
        unknown: what 255 in a mask means: "wrong" counts it as a miss, "ignore" leaves the pixel out.
        advance: called after each image with ground truth.

    Returns:
        Figures over all images that have both. An image whose masks cannot be read or differ in size is in `failures`.

    Raises:
        InputError: a folder or file is missing or empty, no image has both masks, or two COCO files have different
            categories.

    Examples:
        >>> from amn_fast.review import score
        >>> found = score("runs/demo", "runs/demo/data/masks")  # doctest: +SKIP
        >>> f"{found.scores['miou']:.3f} over {found.scored} of {found.images} images"  # doctest: +SKIP
    """
    own_names, predicted = _open(Path(masks), classes)
    true_names, true = _open(Path(ground_truth), classes)
    if own_names and true_names and own_names != true_names:
        raise InputError(f"{masks} and {ground_truth} name different classes; pass --classes FILE to join by name")
    names = classes or own_names or true_names
    both = [id for id in true if id in predicted]
    if not both:
        raise InputError(
            f"no image is in both: {masks} holds {list_ids(list(predicted))}, {ground_truth} {list_ids(list(true))}"
        )
    tally = _Tally(unknown)
    failures: dict[str, str] = {}
    for id in true:
        if id in predicted:
            try:
                tally.add(id, predicted[id](), true[id](), len(names) if names else None)
            except InputError as error:
                failures[id] = str(error)
        advance()
    highest = max([len(names) if names else 1, tally.highest])
    counts = tally.total.counts[: highest + 1]
    trimmed = Confusion(highest)
    trimmed.counts = np.concatenate([counts[:, : highest + 1], counts[:, -1:]], 1)
    boundary = [
        tally.boundary_sum[k] / tally.boundary_images[k] if tally.boundary_images[k] else None
        for k in range(highest + 1)
    ]
    defined = [value for value in boundary if value is not None]
    return MaskScores(
        images=len(true),
        scored=len(both) - len(failures),
        without_mask=[id for id in true if id not in predicted],
        without_ground_truth=[id for id in predicted if id not in true],
        failures=failures,
        classes=["background", *(names or tuple(f"class {k}" for k in range(1, highest + 1)))],
        scores=trimmed.scores(unknown=unknown).to_json(),
        boundary_f=sum(defined) / len(defined) if defined else None,
        boundary_f_by_class=boundary,
        confusion=trimmed.counts.tolist(),
        worst=sorted(tally.per_image, key=lambda pair: (pair[1], pair[0]))[:WORST],
    )


class _Tally:
    """Sums over the images; only counts are kept, and one figure per image."""

    def __init__(self, unknown: UnknownRule) -> None:
        self.unknown = unknown
        self.total = Confusion(IGNORE - 1)
        self.highest = 0
        self.per_image: list[tuple[str, float]] = []
        self.boundary_sum = np.zeros(IGNORE)
        self.boundary_images = np.zeros(IGNORE, np.int64)

    def add(self, id: str, mask: Mask, true: Mask, n_classes: int | None) -> None:
        if mask.shape != true.shape:
            raise InputError(
                f"image {id!r}: the mask is {describe_size(mask.shape)}, its ground truth {describe_size(true.shape)}"
            )
        labels = np.union1d(mask, true)
        labels = labels[labels != IGNORE]
        if n_classes is not None and labels.size and labels[-1] > n_classes:
            raise InputError(f"image {id!r} holds label {labels[-1]}, expected 0..{n_classes} or {IGNORE}")
        single = Confusion(IGNORE - 1)
        single.add(mask, true)
        found = single.scores(unknown=self.unknown)
        self.total += single
        self.highest = max(self.highest, *labels.tolist(), 0)
        if found.pixels:
            self.per_image.append((id, round(found.miou, 6)))
        for label, value in boundary_f(mask, true).items():
            self.boundary_sum[label] += value
            self.boundary_images[label] += 1


def boundary_f(mask: Mask, true: Mask, tolerance: float | None = None) -> dict[int, float]:
    """How well the outlines of a mask agree with the ground truth's: F-measure by label.

    A boundary pixel is right if the other boundary has one within `tolerance`. F is the harmonic mean of the right
    shares of both boundaries, as in DAVIS. Pixels whose ground truth is unknown (255) belong to no region and have no
    boundary, in both masks.

    Args:
        mask, true: (H, W) uint8 labels.
        tolerance: pixels; by default .008 of the image's diagonal, rounded up.

    Returns:
        F in [0, 1] for each label 1..254 that mask or ground truth has on known pixels; 0 where one has no boundary.
    """
    radius = int(np.ceil(BOUNDARY_SHARE * np.hypot(*mask.shape))) if tolerance is None else int(tolerance)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    known = true != IGNORE
    found = {}
    for label in np.union1d(mask[known], true[known]).tolist():
        if label in (0, IGNORE):
            continue
        own, other = _boundary((mask == label) & known), _boundary((true == label) & known)
        own_right, other_right = _share_near(own, other, disk), _share_near(other, own, disk)
        found[label] = 2 * own_right * other_right / (own_right + other_right) if own_right + other_right else 0.0
    return found


def _share_near(points: Mask, others: Mask, disk: Mask) -> float:
    """The share of `points` that have one of `others` within the disk; 0 without points."""
    near = cv2.dilate(others, disk).astype(bool)
    return int(np.count_nonzero(near[points > 0])) / max(int(np.count_nonzero(points)), 1)


def _boundary(region: NDArray[np.bool_]) -> Mask:
    """The pixels of a region that touch another region or the image's edge, by side."""
    pixels = region.astype(np.uint8)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(pixels, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return (pixels > inner).astype(np.uint8)


def _open(path: Path, classes: tuple[str, ...] | None) -> tuple[tuple[str, ...] | None, dict[str, Reader]]:
    """Class names where the source has them, and a reader for each id."""
    if path.is_file():
        return _open_coco(path, classes)
    if (path / "config.yaml").is_file():
        from amn_fast.review.source import run_classes

        names: tuple[str, ...] | None = classes or run_classes(path)
        path = path / "masks"
    else:
        names = None
    files = find_masks(path)
    if not files:
        raise InputError(f"{path}: holds no masks, expected files ID.png")
    if names is None:
        require_class_ids(files.values(), 1, "store the foreground as a class id, from 1 on")
    return names, {id: _png(file) for id, file in files.items()}


def _open_coco(path: Path, classes: tuple[str, ...] | None) -> tuple[tuple[str, ...], dict[str, Reader]]:
    if classes is None:
        names, found = coco_masks(path)
        return names, dict(found)
    from amn_fast.review.coco import import_coco
    from amn_fast.review.exporting import Job

    return classes, dict(import_coco(path, Job(classes), None))


def _png(path: Path) -> Reader:
    return lambda: read_mask(path)


def pairs_of(confusion: list[list[int]], names: list[str], most: int = 5) -> Iterator[tuple[str, str, int]]:
    """The most frequent confusions: (ground truth, mask, pixels), the largest first."""
    columns = [*names, "unknown"]
    cells = [(count, i, j) for i, row in enumerate(confusion) for j, count in enumerate(row) if i != j and count]
    for count, i, j in sorted(cells, reverse=True)[:most]:
        yield names[i], columns[j], count
