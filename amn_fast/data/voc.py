"""PASCAL VOC 2012 as it lies on disk, and any folder of the same shape."""

import re
from collections.abc import Mapping
from pathlib import Path

from amn_fast.data.folder import FileDataset, MaskFiles, find_pictures, unique_ids
from amn_fast.data.image import PICTURE_SUFFIXES
from amn_fast.data.labels import open_labels, read_classes, read_text
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

_PAIR = re.compile(r"(?P<picture>\S.*\.(?:jpe?g|png))\s+\S.*\.png", re.IGNORECASE)


def open_voc(
    root: Path | str,
    *,
    ids: str = "train",
    masks: str | None = "SegmentationClass",
    labels: str = "Annotations",
    classes: str | None = None,
) -> FileDataset:
    """The VOC-shaped data set in `root`: pictures in JPEGImages; the other arguments are paths in `root`.

    Args:
        ids: the name of a list in ImageSets/Segmentation, or a list file. A line is an id, with or without underscore,
            a file name, or a pair such as `/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png`.
        masks: the folder of ground-truth masks; None if there is none.
        labels: a source of labels, see `amn_fast.data.labels.open_labels`.
        classes: a text file of class names, one a line; without it VOC's 20 classes.

    Raises:
        InputError: a path is missing, or a file in it is not what it has to be.
    """
    root = Path(root)
    pictures = find_pictures(root / "JPEGImages")
    names = read_classes(root / classes) if classes else VOC_CLASSES
    named_list = root / "ImageSets" / "Segmentation" / f"{ids}.txt"
    chosen = read_list(named_list if named_list.is_file() else root / ids, pictures)
    truth = MaskFiles(root / masks, pictures, len(names)) if masks else None
    return FileDataset(root.name, chosen, pictures, open_labels(root / labels, names), truth)


def read_list(path: Path, pictures: Mapping[str, Path]) -> tuple[str, ...]:
    """The ids in a list file of one of the forms that `open_voc` names; `pictures` tells an id from a file name.

    Raises:
        InputError: the file is missing or holds no id, or an id stands twice.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such list, neither here nor in ImageSets/Segmentation")
    return unique_ids((_id_in(line.strip(), pictures) for line in read_text(path).splitlines()), path)


def _id_in(line: str, pictures: Mapping[str, Path]) -> str:
    if line in pictures:
        return line
    if pair := _PAIR.fullmatch(line):
        line = pair["picture"]
    if Path(line).suffix.lower() in PICTURE_SUFFIXES:
        line = Path(line).stem
    if re.fullmatch(r"\d{10}", line) and line not in pictures:
        line = f"{line[:4]}_{line[4:]}"
    return line
