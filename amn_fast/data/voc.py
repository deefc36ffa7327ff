"""PASCAL VOC 2012 in its own file layout, and any folder of the same shape."""

import re
from collections.abc import Mapping
from pathlib import Path

from amn_fast.data.classes import read_classes
from amn_fast.data.folder import FileDataset, MaskFiles
from amn_fast.data.labels import open_labels
from amn_fast.data.names import IMAGE_SUFFIXES, clean_id, find_images, unique_ids
from amn_fast.data.text import read_text
from amn_fast.errors import InputError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

_NOT_IN_VOC = {
    "train_aug": "this list is not part of VOC: copy voc12/train_aug.txt of IRN's or AMN's code to "
    "ImageSets/Segmentation, or set data.options.ids to train",
    "SegmentationClassAug": "these masks are not part of VOC and serve scores only: set data.options.masks to "
    "SegmentationClass, which scores the images of VOC's list train, or to null",
}
"""What papers use beside VOC's own download, and what to do without it. The recipe is docs/guides/voc-coco.md."""

_PAIR = re.compile(r"(?P<image>\S.*\.(?:jpe?g|png))\s+\S.*\.png", re.IGNORECASE)


def open_voc(
    root: Path | str,
    *,
    ids: str = "train",
    masks: str | None = "SegmentationClass",
    labels: str = "Annotations",
    classes: str | None = None,
    foreground: int | None = None,
) -> FileDataset:
    """Open the VOC-shaped data set in `root`: images in JPEGImages; relative paths are below `root`.

    Args:
        root: the folder of the data set.
        ids: the name of a list in ImageSets/Segmentation, or a list file. A line is an id, with or without underscore,
            a file name, or a pair such as `/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png`.
        masks: the folder of ground-truth masks; None if there is none.
        labels: a source of labels, see `amn_fast.data.labels.open_labels`.
        classes: a text file of class names, one a line; without it VOC's 20 classes.
        foreground: the value of the foreground in binary masks, see `amn_fast.data.image.read_mask`.

    Raises:
        InputError: a path is missing, or a file is not as expected.
    """
    root = Path(root)
    images = find_images(root / "JPEGImages")
    names = read_classes(root / classes) if classes else VOC_CLASSES
    named_list = root / "ImageSets" / "Segmentation" / f"{ids}.txt"
    chosen = read_list(named_list if named_list.is_file() else root / ids, images)
    if masks in _NOT_IN_VOC and not (root / masks).is_dir():
        raise InputError(f"{root / masks}: there is no such folder of masks; {_NOT_IN_VOC[masks]}")
    ground_truth = MaskFiles(root / masks, images, len(names), foreground) if masks else None
    table = open_labels(root / labels, names, foreground=foreground)
    return FileDataset(root.name, chosen, images, table, ground_truth)


def read_list(path: Path, images: Mapping[str, Path]) -> tuple[str, ...]:
    """Read the ids in a list file of one of the forms that `open_voc` names; `images` tells an id from a file name.

    Raises:
        InputError: the file is missing or holds no id, or an id is a duplicate.
    """
    if not path.is_file():
        remedy = f"; {_NOT_IN_VOC[path.name]}" if path.name in _NOT_IN_VOC else ""
        raise InputError(f"{path}: there is no such list, neither here nor in ImageSets/Segmentation{remedy}")
    return unique_ids((_id_in(clean_id(line), images) for line in read_text(path).splitlines()), path)


def _id_in(line: str, images: Mapping[str, Path]) -> str:
    if line in images:
        return line
    if pair := _PAIR.fullmatch(line):
        line = pair["image"]
    if Path(line).suffix.lower() in IMAGE_SUFFIXES:
        line = Path(line).stem
    if re.fullmatch(r"\d{10}", line) and line not in images:
        line = f"{line[:4]}_{line[4:]}"
    return line
