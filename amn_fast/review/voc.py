"""PASCAL VOC's layout, and CVAT's "Segmentation mask 1.1", which is that layout in a ZIP file with a label map."""

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amn_fast.data.base import IGNORE
from amn_fast.data.image import image_size, read_mask
from amn_fast.data.masks import check_ids, voc_palette
from amn_fast.data.names import clean_id
from amn_fast.errors import InputError
from amn_fast.files import write_atomically
from amn_fast.review.coco import label_of_name
from amn_fast.review.exporting import Entry, Item, Job
from amn_fast.review.objects import find_regions

CLASSES, OBJECTS, IMAGES = "SegmentationClass", "SegmentationObject", "JPEGImages"
LIST = "ImageSets/Segmentation/default.txt"
LABEL_MAP = "labelmap.txt"
MOST_OBJECTS = IGNORE - 1


class Sink(Protocol):
    """Takes files by their path in the layout."""

    def __call__(self, name: str, data: bytes) -> object: ...


def export_voc(items: Iterable[Item], out: Path, job: Job) -> None:
    """Write VOC's folders into `out`: palette masks of classes and objects, where 255 is void, as in VOC itself."""
    _export(items, lambda name, data: write_atomically(out / name, lambda file: file.write(data)), job)


def export_cvat(items: Iterable[Item], out: Path, job: Job) -> None:
    """Write `out`/annotations.zip for CVAT's import as "Segmentation mask 1.1"; 255 is a label of its own."""
    write_atomically(out / "annotations.zip", lambda file: _zip(items, file, job))


def _zip(items: Iterable[Item], file: IO[bytes], job: Job) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        _export(items, lambda name, data: archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED), job)


def _export(items: Iterable[Item], sink: Sink, job: Job) -> None:
    sink(LABEL_MAP, label_map(job).encode())
    ids = []
    for item in items:
        with job.attempt(item.id):
            objects = _objects(item, job)
            if job.images:
                sink(f"{IMAGES}/{item.id}{_suffix(item)}", _bytes(item))
            sink(f"{CLASSES}/{item.id}.png", palette_png(item.mask))
            sink(f"{OBJECTS}/{item.id}.png", palette_png(objects))
            ids.append(item.id)
    sink(LIST, "".join(f"{id}\n" for id in ids).encode())


def _suffix(item: Item) -> str:
    if item.image is None:
        raise InputError(f"image {item.id!r} is not known, expected a file of that name")
    return item.image.suffix


def _bytes(item: Item) -> bytes:
    assert item.image is not None
    return item.image.read_bytes()


def _objects(item: Item, job: Job) -> NDArray[np.uint8]:
    """The number of its object for each pixel: 1, 2, ...; 0 is background, 255 unknown."""
    regions = [region for region in find_regions(item.mask, instances=job.instances) if region.label != IGNORE]
    if len(regions) > MOST_OBJECTS:
        raise InputError(
            f"image {item.id!r} has {len(regions)} objects, but this format holds {MOST_OBJECTS} per image; "
            "export without --instances"
        )
    objects = np.where(item.mask == IGNORE, np.uint8(IGNORE), np.uint8(0))
    for number, region in enumerate(regions, 1):
        x, y, width, height = region.box
        objects[y : y + height, x : x + width][region.pixels] = number
    return objects


def palette_png(mask: NDArray[np.uint8]) -> bytes:
    """`mask` as a PNG in VOC's colours, whose indices are the values."""
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def label_map(job: Job) -> str:
    """labelmap.txt: `name:r,g,b:parts:actions` per line, background first, the name of 255 last.

    Raises:
        InputError: a class name cannot stand in this file.
    """
    names = {0: "background", **dict(enumerate(job.classes, 1)), IGNORE: job.unknown}
    lines = ["# label:color_rgb:parts:actions"]
    for label, name in names.items():
        if ":" in name or name.startswith("#") or name != name.strip() or len(name.splitlines()) != 1:
            raise InputError(
                f"class name {name!r} cannot be written to {LABEL_MAP}: expected no colon, no # at the start, no line "
                "break and no space at the ends; pass other names with --classes FILE"
            )
        lines.append(f"{name}:{','.join(map(str, voc_palette()[label]))}::")
    return "\n".join(lines) + "\n"


Reader = Callable[[str], IO[bytes]]


def import_cvat(path: Path, job: Job, images: Mapping[str, Path] | None) -> list[Entry]:
    """Class masks from a ZIP file or folder of CVAT's "Segmentation mask 1.1"; colours are joined by label map.

    Raises:
        InputError: the ZIP file or the label map is damaged, or there is no class mask.
    """
    names, open_file = _source(path)
    prefix = _prefix(names, path)
    if prefix + LABEL_MAP not in names:
        raise InputError(f"{path}: holds no {LABEL_MAP}, expected an export as 'Segmentation mask 1.1'")
    with open_file(prefix + LABEL_MAP) as file:
        colours = _read_label_map(file.read(), path)
    found: list[Entry] = [
        (PurePosixPath(name).stem, partial(_from_colours, open_file, name, path, colours, job))
        for name in _masks(names, prefix)
    ]
    return found + _empty(names, open_file, prefix, {id for id, _ in found}, images)


def import_voc(path: Path, job: Job, images: Mapping[str, Path] | None) -> list[Entry]:
    """Class masks from VOC's layout: by label map if there is one, otherwise the palette's indices are the labels."""
    names, open_file = _source(path)
    prefix = _prefix(names, path)
    if prefix + LABEL_MAP in names:
        return import_cvat(path, job, images)
    if not path.is_dir():
        raise InputError(f"{path}: a ZIP file without {LABEL_MAP}; unpack it and pass the folder")
    found: list[Entry] = [
        (PurePosixPath(name).stem, partial(_from_indices, path / name, job)) for name in _masks(names, prefix)
    ]
    return found + _empty(names, open_file, prefix, {id for id, _ in found}, images)


def _source(path: Path) -> tuple[list[str], Reader]:
    """The file names in a folder or ZIP file, and a function that opens one."""
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*")) if file.is_file()]
        return names, lambda name: (path / name).open("rb")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: is not a ZIP file: {error}") from error
    return archive.namelist(), archive.open


def _prefix(names: list[str], path: Path) -> str:
    """The folder, in the folder or ZIP file, that holds the class masks: "" or "name/"."""
    prefixes = {name.split(CLASSES + "/")[0] for name in names if CLASSES + "/" in name and name.endswith(".png")}
    if len(prefixes) != 1:
        raise InputError(f"{path}: holds {len(prefixes)} folders {CLASSES} with PNG files, expected one")
    return prefixes.pop()


def _masks(names: list[str], prefix: str) -> list[str]:
    return sorted(name for name in names if name.startswith(f"{prefix}{CLASSES}/") and name.endswith(".png"))


def _empty(
    names: list[str], open_file: Reader, prefix: str, found: set[str], images: Mapping[str, Path] | None
) -> list[Entry]:
    """Readers for the listed images without a mask file: nothing is annotated in them."""
    listed: dict[str, None] = {}
    for name in names:
        if name.startswith(f"{prefix}ImageSets/Segmentation/") and name.endswith(".txt"):
            with open_file(name) as file:
                lines = file.read().decode(errors="replace").splitlines()
            listed |= dict.fromkeys(line.strip() for line in lines if line.strip())
    return [(id, partial(_background, id, images)) for id in listed if id not in found]


def _background(id: str, images: Mapping[str, Path] | None) -> NDArray[np.uint8]:
    if images is None:
        raise InputError(f"{id!r} is listed, but has no mask to take the size from; pass --images DIR")
    return np.zeros(image_size(images[clean_id(id)]), np.uint8)


def _read_label_map(data: bytes, path: Path) -> dict[int, str]:
    """Label names by colour, 0xRRGGBB. A map without any colour stands for VOC's colours in the order of its lines."""
    try:
        lines = [line.strip() for line in data.decode().splitlines() if line.strip() and not line.startswith("#")]
        fields = [line.split(":") for line in lines]
        if any(len(field) != 4 for field in fields):
            raise ValueError("a line has other than four fields")
        if not any(colour for _, colour, _, _ in fields):
            fields = [[name, ",".join(map(str, voc_palette()[k])), "", ""] for k, (name, *_) in enumerate(fields)]
        colours: dict[int, str] = {}
        for name, colour, _, _ in fields:
            red, green, blue = (int(value) for value in colour.split(","))
            if colours.setdefault(red << 16 | green << 8 | blue, name) != name:
                raise ValueError(f"{name!r} has another label's colour")
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: {LABEL_MAP} is damaged: {error}; expected lines name:r,g,b:parts:actions") from error
    return colours


def _from_colours(open_file: Reader, name: str, path: Path, colours: Mapping[int, str], job: Job) -> NDArray[np.uint8]:
    where = f"{path}: {name}"
    try:
        with open_file(name) as file, Image.open(file) as image:
            pixels = np.array(image.convert("RGB")).astype(np.int64)
    except Exception as error:  # damaged archives and images have many kinds of errors
        raise InputError(f"{where} cannot be read as an image: {error}") from error
    values, inverse = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
    labels = np.zeros(len(values), np.uint8)
    for index, value in enumerate(values.tolist()):
        if value not in colours:
            colour = f"{value >> 16},{value >> 8 & 255},{value & 255}"
            raise InputError(f"{where} holds the colour {colour}, which {LABEL_MAP} does not name")
        label = colours[value]
        labels[index] = 0 if label == "background" else label_of_name(label, job, where)
    return labels[inverse].reshape(pixels.shape[:2])


def _from_indices(path: Path, job: Job) -> NDArray[np.uint8]:
    mask = read_mask(path)
    check_ids(path, mask, len(job.classes))
    return mask
