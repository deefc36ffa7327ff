"""Images of a run with what each stage made of them: the rows of the report, and the pages of the gallery."""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from amn_fast._pool import thread_pool
from amn_fast.data.legend import css_colour
from amn_fast.data.masks import voc_palette
from amn_fast.errors import InputError
from amn_fast.files import write_text
from amn_fast.report.names import SEGMENTATION, label_name

Row = dict[str, Any]

THUMBNAIL = 256
"""Long side of an image on the report's page, in pixels."""
GALLERY_THUMBNAIL = 160
GALLERY_MOST = 5000
"""Images in the gallery; of a larger set it shows that many, evenly from the list."""
PER_PAGE = 50
FOLDER = "gallery"
MADE_HERE = '<meta name="generator" content="amn_fast gallery">'
"""Stands at the head of each page of the gallery; a file without it is not removed."""

LAYERS = {
    "cam": "CAM",
    "seed": "Refined seed",
    "amn": "AMN",
    "amn_seed": "Refined AMN seed",
    "mask": "Mask",
    "ground_truth": "Ground truth",
}
"""Methods of `RunImages`, and what the page calls their results."""


class RunImages(Protocol):
    """What the report draws. Masks are (H, W) uint8 with 0..C and 255, activations (H, W) floats in [0, 1].

    All have their image's size. None stands for what there is not: a stage that has not run, no ground truth.
    """

    ids: Sequence[str]

    def image(self, id: str) -> NDArray[np.uint8]:
        """The image, (H, W, 3) uint8 RGB."""
        ...

    def cam(self, id: str) -> NDArray[np.floating[Any]] | None:
        """Largest activation of the CAM over the image's classes."""
        ...

    def seed(self, id: str) -> NDArray[np.uint8] | None:
        """Refined seed of the CAM."""
        ...

    def amn(self, id: str) -> NDArray[np.floating[Any]] | None:
        """Largest foreground activation of AMN."""
        ...

    def amn_seed(self, id: str) -> NDArray[np.uint8] | None:
        """Refined seed of AMN's activations."""
        ...

    def mask(self, id: str) -> NDArray[np.uint8] | None:
        """The pseudo-mask."""
        ...

    def ground_truth(self, id: str) -> NDArray[np.uint8] | None:
        """The ground-truth mask."""
        ...


@dataclass(frozen=True)
class Segmented:
    """An image with label maps to draw over it; masks as in `RunImages`.

    Attributes:
        id, image: the image.
        masks: by the names of `SEGMENTATION`, or by what the page calls them.
        ground_truth: None where there is none.
        miou: of the last of the masks, where there is ground truth.
    """

    id: str
    image: NDArray[np.uint8]
    masks: Mapping[str, NDArray[np.uint8]]
    ground_truth: NDArray[np.uint8] | None
    miou: float | None


def best_and_worst(
    images: RunImages,
    scores: Mapping[str, float | None],
    names: list[str],
    most: int = 12,
    doubt: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups of rows: the images with the best and the worst masks.

    Without scores the most and the least doubtful ones; without doubt a selection, evenly from the list.

    Args:
        scores: mIoU of the mask, by id.
        doubt: of the mask, by id.
        names: of the labels, background first.
        most: images in all groups together.
    """
    known = {id: score for id in images.ids if (score := scores.get(id)) is not None}
    if known:
        ranked = sorted(known, key=lambda id: (-known[id], id))
        half = min(most, len(ranked) + 1) // 2
        groups = [("Best masks", ranked[:half]), ("Worst masks", ranked[half:][-half:][::-1])]
    elif doubted := sorted((id for id in images.ids if id in (doubt or {})), key=lambda id: (-(doubt or {})[id], id)):
        half = min(most, len(doubted) + 1) // 2
        groups = [("Most doubtful masks", doubted[:half]), ("Least doubtful masks", doubted[half:][-half:][::-1])]
    else:
        groups = [("A selection", evenly(images.ids, most))]
    return [
        {"title": title, "rows": [image_row(images, id, names, known.get(id)) for id in ids]}
        for title, ids in groups
        if ids
    ]


def evenly(ids: Sequence[str], most: int) -> list[str]:
    """At most `most` of the ids, evenly from the list."""
    count = min(most, len(ids))
    return [ids[k * len(ids) // count] for k in range(count)]


def write_gallery(
    folder: Path,
    images: RunImages,
    scores: Mapping[str, float | None],
    names: list[str],
    render: Callable[..., str],
    *,
    threads: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write pages with all images to `folder`/001.html and on; pages of an earlier, longer gallery are removed.

    Args:
        render: makes a page of its rows: render(rows=..., number=..., pages=...).
        threads: pages that are written at the same time; they do not depend on it.
        advance: called after each image.

    Returns:
        "shown" and "images", numbers of images; "pages", each with its "file", "first" and "last" id.
    """
    ids = evenly(images.ids, GALLERY_MOST)
    parts = [ids[start : start + PER_PAGE] for start in range(0, len(ids), PER_PAGE)]
    pages = [
        {"file": f"{number:03d}.html", "first": part[0], "last": part[-1]} for number, part in enumerate(parts, start=1)
    ]

    def write(number: int) -> None:
        rows = []
        for id in parts[number]:
            rows.append(image_row(images, id, names, scores.get(id), GALLERY_THUMBNAIL))
            advance()
        write_text(folder / pages[number]["file"], render(rows=rows, number=number + 1, pages=pages))

    _remove_pages(folder, {page["file"] for page in pages})
    with thread_pool(threads) as pool:
        list(pool.map(write, range(len(pages))))
    return {"shown": len(ids), "images": len(images.ids), "pages": pages}


def _remove_pages(folder: Path, keep: set[str]) -> None:
    for path in folder.glob("*.html") if folder.is_dir() else ():
        if path.name not in keep and re.fullmatch(r"\d{3,}\.html", path.name):
            with path.open(encoding="utf-8", errors="replace") as file:
                if MADE_HERE in file.read(500):
                    path.unlink()


def image_row(images: RunImages, id: str, names: list[str], miou: float | None = None, longest: int = THUMBNAIL) -> Row:
    """One image, and what lies over it at each stage.

    Raises:
        InputError: a mask or an activation has another size than its image, or is not finite.
    """
    layers = {name: getattr(images, key)(id) for key, name in LAYERS.items()}
    return _row(id, images.image(id), layers, names, miou, longest)


def segmented_row(segmented: Segmented, names: list[str]) -> Row:
    """One image, and the label maps over it."""
    layers: dict[str, NDArray[Any] | None] = {SEGMENTATION.get(key, key): mask for key, mask in segmented.masks.items()}
    layers[LAYERS["ground_truth"]] = segmented.ground_truth
    return _row(segmented.id, segmented.image, layers, names, segmented.miou, THUMBNAIL)


def _row(
    id: str,
    image: NDArray[np.uint8],
    layers: Mapping[str, NDArray[Any] | None],
    names: list[str],
    miou: float | None,
    longest: int,
) -> Row:
    """An image and what lies over it, by name: masks (uint8) and activations (floats)."""
    scale = min(1.0, longest / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    drawn = []
    present = ""  # the classes of the last mask: the ground truth where there is one
    for name, layer in layers.items():
        if layer is None:
            continue
        if layer.shape != image.shape[:2]:
            raise InputError(f"{name} of image {id} has shape {layer.shape}, expected the image's, {image.shape[:2]}")
        heat = layer.dtype.kind == "f"
        if heat:
            uri, said = _heat(layer, size, f"{name} of image {id}"), "activation, from blue (low) to red (high)"
        else:
            uri, said = _overlay(layer, size), _shares_in_words(layer, names)
            present = ", ".join(label_name(label, names) for label in np.unique(layer).tolist() if 0 < label < 255)
        drawn.append({"name": name, "uri": uri, "heat": heat, "alt": f"{name} of {id}: {said}"})
    thumbnail = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    row = {"id": id, "miou": miou, "uri": _jpeg(thumbnail, 82), "width": size[0], "height": size[1]}
    return {**row, "present": present, "layers": drawn}


def _shares_in_words(mask: NDArray[np.uint8], names: list[str]) -> str:
    counts = np.bincount(mask.ravel(), minlength=256)
    labels = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    return ", ".join(f"{label_name(label, names)} {counts[label] / mask.size:.0%}" for label in labels)


def _heat(activation: NDArray[np.floating[Any]], size: tuple[int, int], name: str) -> str:
    """An activation as colours."""
    if not np.isfinite(activation).all():
        raise InputError(f"{name} holds NaN or infinity, expected activations in [0, 1]")
    small = cv2.resize(activation.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    colours = matplotlib.colormaps["turbo"](np.clip(small, 0, 1), bytes=True)[..., :3]
    return _jpeg(np.ascontiguousarray(colours), 75)


def _overlay(mask: NDArray[np.uint8], size: tuple[int, int]) -> str:
    """A mask as colours to lay over its image: classes tinted, background dimmed, unknown hatched."""
    small = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    alpha = np.full((*small.shape, 1), 175, np.uint8)
    alpha[small == 0] = 115
    overlay = np.concatenate([voc_palette()[small], alpha], axis=2)
    rows, columns = np.indices(small.shape)
    unknown = small == 255
    hatch = (rows + columns) % 8 < 3
    overlay[unknown & hatch] = (255, 255, 255, 165)
    overlay[unknown & ~hatch] = (170, 170, 170, 135)
    return _uri("png", cv2.cvtColor(overlay, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _jpeg(rgb: NDArray[Any], quality: int) -> str:
    return _uri("jpeg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])


def _uri(kind: str, bgr: NDArray[Any], options: list[int]) -> str:
    _, data = cv2.imencode(f".{kind}", bgr, options)
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def legend(names: Iterable[str]) -> list[tuple[str, str]]:
    """(class, CSS colour) of each foreground class; `names` starts with the background."""
    return [(name, css_colour(label)) for label, name in enumerate(names) if label]
