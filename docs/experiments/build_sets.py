"""Build the two small data sets of docs/explanation/results.md from the public archives.

    python docs/experiments/build_sets.py msrc MSRC_ObjCategImageDatabase_v2 data/msrc_v2
    python docs/experiments/build_sets.py voc6 VOCdevkit/VOC2012 data/voc12_animals

`msrc` reads the archive's `Images/ID.bmp` and `GroundTruth/ID_GT.bmp`, or with `--cleaned FOLDER` the corrected ground
truth `ID_GT.mat` of Malisiewicz and Efros (BMVC 2007; needs SciPy). `voc6` reads VOC 2012's `JPEGImages` and
`SegmentationClass`. Both write VOC's layout to a folder that must not exist yet, where `amn-fast run msrc` and
`amn-fast run voc6` look for it, and say whether the masks are the ones that the results were measured with.
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import IGNORE, list_ids
from amn_fast.data.image import read_image, read_mask
from amn_fast.data.legacy import write_legacy
from amn_fast.data.masks import describe_size, voc_palette, write_mask
from amn_fast.data.names import number_of
from amn_fast.data.text import read_text
from amn_fast.data.voc import VOC_CLASSES
from amn_fast.errors import InputError

Mask = NDArray[np.uint8]

MSRC_CODES = (
    *("void", "building", "grass", "tree", "cow", "horse", "sheep", "sky", "mountain", "aeroplane", "water", "face"),
    *("car", "bicycle", "flower", "sign", "bird", "book", "chair", "road", "cat", "dog", "body", "boat"),
)
"""MSRC's classes in the order of the legend; the colours are VOC's, in which the ids 19 and 20 are left out."""
MSRC_BACKGROUND = frozenset({"building", "grass", "tree", "sky", "mountain", "water", "road"})
MSRC_UNKNOWN = frozenset({"void", "horse"})  # three images show a horse
MSRC_RENAMED = {"face": "person", "body": "person"}
MSRC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "book", "car", "cat", "chair", "cow", "dog", "flower", "person"),
    *("sheep", "sign"),
)
MSRC_IMAGES = {
    1: "8-22 26-30", 3: "16 30", 4: "1-30", 5: "1-30", 6: "1-30", 7: "1-30", 8: "1-30", 9: "1-30", 10: "1-32",
    11: "1-30", 12: "1-34", 13: "1-30", 14: "1-30", 15: "1-24", 16: "1-30", 17: "2 5 7 11-13 15-19 21-23 26 28",
    18: "3-7 10-11 15-16 18-27", 19: "1-30", 20: "3 5-20",
}  # fmt: skip
"""The 494 of the 591 images that show an object, `SCENE_NUMBER_s`; every other one is in the list train."""
JPEG_QUALITY = 85
VOC6_CLASSES = ("cat", "cow", "dog", "horse", "person", "sheep")
DIGESTS = {
    "msrc": "c27fee4eba37f1cf605d6ddfe7ad802f46c0540e427ce48ea4589d52fff13804",
    "voc6": "695e5b80804b246068fe65f099a7b5a879967ac85e4d0adf01e8bb2be4dcb0d9",
}
"""SHA-256 of the masks that the results were measured with; see `write_set`."""


def msrc_ids() -> list[str]:
    """The ids of the images with an object, by scene and number."""
    ids = []
    for scene, numbers in MSRC_IMAGES.items():
        for part in numbers.split():
            first, _, last = part.partition("-")
            ids += [f"{scene}_{number}_s" for number in range(int(first), int(last or first) + 1)]
    return ids


def msrc_table() -> Mask:
    """From MSRC's class, an index of MSRC_CODES, to the id in our masks."""
    ids = []
    for name in MSRC_CODES:
        named = MSRC_RENAMED.get(name, name)
        ids.append(0 if name in MSRC_BACKGROUND else IGNORE if name in MSRC_UNKNOWN else MSRC_CLASSES.index(named) + 1)
    return np.array(ids, np.uint8)


def read_colours(path: Path) -> Mask:
    """Read the classes of a ground-truth image in MSRC's colours, (H, W); other colours are void."""
    packed = (read_image(path).astype(np.int32) * (65536, 256, 1)).sum(2)
    colours = (np.delete(voc_palette()[:26], (19, 20), axis=0).astype(np.int32) * (65536, 256, 1)).sum(1)
    order = np.argsort(colours)
    place = np.clip(np.searchsorted(colours[order], packed), 0, len(order) - 1)
    known = colours[order][place] == packed
    if not known.all():
        print(f"{path}: {int((~known).sum())} pixels have a colour outside MSRC's legend and become 255")
    return np.where(known, order[place], 0).astype(np.uint8)


def read_cleaned(path: Path) -> Mask:
    """Read the classes of a corrected ground truth, (H, W).

    `newseg` numbers the segments from 1 and `newlabels` has a class for each, an index of MSRC_CODES; a last segment
    without one is void.
    """
    from scipy.io import loadmat

    found = loadmat(path)
    segments, labels = found["newseg"], found["newlabels"].ravel()
    if segments.min() < 1 or segments.max() > len(labels) + 1 or not (labels >= 0).all() or labels.max() >= 24:
        raise InputError(f"{path}: the segments and labels are not those of the corrected MSRC ground truth")
    return np.array([0, *labels, 0], np.uint8)[segments]


def build_msrc(root: Path, out: Path, cleaned: Path | None = None) -> str:
    """Write MSRC v2 with 14 object classes to `out` and return the digest of its masks.

    Args:
        root: the unpacked archive, with the folders Images and GroundTruth.
        out: an existing empty folder.
        cleaned: a folder of corrected ground truth, `ID_GT.mat`.

    Raises:
        InputError: a file is missing, or an image and its ground truth differ in size.
    """
    from PIL import Image

    ids = msrc_ids()
    ground_truth = cleaned or root / "GroundTruth"
    suffix, read = (".mat", read_cleaned) if cleaned else (".bmp", read_colours)
    require(root / "Images", ids, ".bmp")
    require(ground_truth, ids, f"_GT{suffix}")
    table = msrc_table()

    def convert(id: str) -> Mask:
        image = read_image(root / "Images" / f"{id}.bmp")
        Image.fromarray(image).save(out / "JPEGImages" / f"{id}.jpg", quality=JPEG_QUALITY)
        mask = table[read(ground_truth / f"{id}_GT{suffix}")]
        if mask.shape != image.shape[:2]:
            sizes = f"is {describe_size(mask.shape)}, the image {describe_size(image.shape[:2])}"
            raise InputError(f"{ground_truth / f'{id}_GT{suffix}'}: {sizes}; expected the same size")
        return mask

    lists = {"all": ids, "train": ids[::2], "val": ids[1::2]}
    return write_set(out, "SegmentationClass", "", MSRC_CLASSES, lists, convert)


def build_voc6(root: Path, out: Path) -> str:
    """Write six classes of VOC 2012 to `out` and return the digest of its masks; other classes are 255.

    Args:
        root: VOC 2012, with the folders JPEGImages and SegmentationClass.
        out: an existing empty folder.

    Raises:
        InputError: a file is missing.
    """
    folder = Path(__file__).parent / "voc6"
    lists = {path.stem: read_text(path).split() for path in sorted(folder.glob("*.txt"))}
    ids = sorted({id for listed in lists.values() for id in listed})
    require(root / "JPEGImages", ids, ".jpg")
    require(root / "SegmentationClass", ids, ".png")
    table = np.full(256, IGNORE, np.uint8)
    table[0] = 0
    for index, name in enumerate(VOC6_CLASSES, start=1):
        table[VOC_CLASSES.index(name) + 1] = index

    def convert(id: str) -> Mask:
        shutil.copyfile(root / "JPEGImages" / f"{id}.jpg", out / "JPEGImages" / f"{id}.jpg")
        return table[read_mask(root / "SegmentationClass" / f"{id}.png")]

    return write_set(out, "SegmentationClass6", "6", VOC6_CLASSES, lists, convert)


def require(folder: Path, ids: Iterable[str], suffix: str) -> None:
    """Raise InputError unless `folder` has the file ID+suffix for each of `ids`."""
    missing = [f"{id}{suffix}" for id in ids if not (folder / f"{id}{suffix}").is_file()]
    if missing:
        names = ", ".join(missing[:5]) + ", ..." * (len(missing) > 5)
        raise InputError(f"{folder}: {len(missing)} of the files needed are missing: {names}")


def write_set(
    out: Path,
    masks: str,
    suffix: str,
    classes: tuple[str, ...],
    lists: dict[str, list[str]],
    convert: Callable[[str], Mask],
) -> str:
    """Write masks, labels, class names and lists, and return the digest of the masks.

    Args:
        out: the data set's folder.
        masks: the folder of masks in it.
        suffix: of the names of the label file and of the class names.
        classes: without background.
        lists: ids by the name of the list.
        convert: writes the image of an id and returns its mask.
    """
    for folder in ("JPEGImages", masks, "ImageSets/Segmentation"):
        (out / folder).mkdir(parents=True)
    ids = sorted({id for listed in lists.values() for id in listed})
    labels, total = {}, hashlib.sha256()
    for id in ids:
        mask = convert(id)
        write_mask(out / masks / f"{id}.png", mask)
        number = number_of(id)
        labels[id if number is None else number] = np.isin(np.arange(1, len(classes) + 1), mask).astype(np.float32)
        total.update(f"{id} {mask.shape}".encode() + mask.tobytes())
    empty = [str(id) for id, label in labels.items() if not label.any()]
    if empty:
        print(f"without any object in this ground truth: {list_ids(empty)}")
    write_legacy(out / f"cls_labels{suffix}.npy", labels)
    (out / f"classes{suffix}.txt").write_text("\n".join(("background", *classes)) + "\n")
    for name, listed in lists.items():
        (out / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(listed) + "\n")
    return total.hexdigest()


def main() -> None:
    """Build a set beside its final place, then move it there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=DIGESTS)
    parser.add_argument("root", type=Path, help="the unpacked archive")
    parser.add_argument("out", type=Path, help="the folder to write; it must not exist")
    parser.add_argument("--cleaned", type=Path, help="msrc: corrected ground truth, a folder of ID_GT.mat")
    arguments = parser.parse_args()
    if arguments.out.exists():
        sys.exit(f"{arguments.out}: exists and is kept; choose a new folder")
    if arguments.cleaned and arguments.set != "msrc":
        sys.exit("--cleaned belongs to msrc")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as temporary:
        folder = Path(temporary) / "set"
        folder.mkdir()
        try:
            if arguments.set == "msrc":
                found = build_msrc(arguments.root, folder, arguments.cleaned)
            else:
                found = build_voc6(arguments.root, folder)
        except InputError as error:
            sys.exit(str(error))
        folder.rename(arguments.out)
    same = "are" if found == DIGESTS[arguments.set] else "are not"
    print(f"{arguments.out}: the masks {same} those of docs/explanation/results.md")


if __name__ == "__main__":
    main()
