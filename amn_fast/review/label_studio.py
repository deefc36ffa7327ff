"""Label Studio: brush predictions as tasks.json, with the labelling configuration that they fit."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.base import IGNORE
from amn_fast.data.image import image_size
from amn_fast.data.labels import read_json
from amn_fast.data.legend import css_colour
from amn_fast.data.names import clean_id
from amn_fast.errors import InputError
from amn_fast.files import write_atomically, write_text
from amn_fast.review.coco import label_of_name
from amn_fast.review.exporting import Entry, Item, Job, copy_image
from amn_fast.review.objects import find_regions

LOCAL_FILES = "/data/local-files/?d="
_BITS = (3, 4, 8, 16)
"""Widths of the four kinds of run length that Label Studio's coder writes."""


def export_label_studio(items: Iterable[Item], out: Path, job: Job) -> None:
    """Write `out`/tasks.json and `out`/label_config.xml; images go to `out`/images if asked for.

    The tasks name their images by Label Studio's local storage: /data/local-files/?d=images/NAME.
    """
    write_text(out / "label_config.xml", label_config(job))
    write_atomically(out / "tasks.json", lambda file: _stream(file, items, out, job))


def label_config(job: Job) -> str:
    """The labelling configuration: one brush label per class, and one for unknown pixels."""
    labels = {**dict(enumerate(job.classes, 1)), IGNORE: job.unknown}
    lines = [
        "<View>",
        '  <Image name="image" value="$image" zoom="true"/>',
        '  <BrushLabels name="mask" toName="image">',
    ]
    for label, name in labels.items():
        lines.append(f"    <Label value={quoteattr(name)} background={quoteattr(css_colour(label))}/>")
    return "\n".join([*lines, "  </BrushLabels>", "</View>"]) + "\n"


def _stream(file: IO[bytes], items: Iterable[Item], out: Path, job: Job) -> None:
    file.write(b"[")
    for item in items:
        with job.attempt(item.id):
            name = copy_image(item, out / "images") if job.images else item.file_name
            task = {
                "data": {"image": f"{LOCAL_FILES}images/{name}", "id": item.id},
                "predictions": [{"model_version": "amn-fast", "result": _results(item, job)}],
            }
            file.write((",\n" if job.done else "\n").encode() + json.dumps(task).encode())
    file.write(b"\n]\n")


def _results(item: Item, job: Job) -> list[dict[str, Any]]:
    height, width = item.mask.shape
    return [
        {
            "id": f"object{number}",
            "type": "brushlabels",
            "from_name": "mask",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": encode_brush(region.full(item.mask.shape)),
                "brushlabels": [job.name(region.label)],
            },
        }
        for number, region in enumerate(find_regions(item.mask, instances=job.instances), 1)
    ]


def encode_brush(pixels: NDArray[Any]) -> list[int]:
    """Label Studio's run-length code of a mask, the same bytes as its SDK's `mask2rle(pixels * 255)`.

    Args:
        pixels: (H, W); every pixel other than 0 belongs to the object.

    Returns:
        the code's bytes. It codes four equal channels (RGBA) of 0 or 255 per pixel.
    """
    values = (np.asarray(pixels) != 0).ravel()
    ends = np.append(np.flatnonzero(values[1:] != values[:-1]), values.size - 1)
    lengths = np.diff(ends, prepend=-1) * 4
    bits = [f"{values.size * 4:032b}{7:05b}"] + [f"{width - 1:04b}" for width in _BITS]
    for length, value in zip(lengths.tolist(), values[ends].tolist(), strict=True):
        byte = f"{255 * value:08b}"
        while length > 1 << _BITS[-1]:
            bits.append(f"1{3:02b}{(1 << _BITS[-1]) - 1:016b}{byte}")
            length -= 1 << _BITS[-1]
        kind = next(kind for kind, width in enumerate(_BITS) if length <= 1 << width)
        bits.append(f"1{kind:02b}{length - 1:0{_BITS[kind]}b}{byte}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(code: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a brush: those whose opacity (the fourth channel) is above 0.

    Args:
        code: the bytes that Label Studio writes under "rle".
        size: (H, W).

    Raises:
        InputError: the code is damaged or of another size.
    """
    try:
        data = bytes(code)
        text = bin(int.from_bytes(b"\1" + data, "big"))[3:]
        count, word = int(text[:32], 2), int(text[32:37], 2) + 1
        widths = [int(text[at : at + 4], 2) + 1 for at in range(37, 53, 4)]
        if count != size[0] * size[1] * 4 or word > 8:
            raise ValueError(f"it codes {count} values of {word} bits, expected {size[0] * size[1] * 4} of 8")
        out = np.zeros(count, np.uint8)
        at, position = 53, 0
        while position < count:
            width = widths[int(text[at + 1 : at + 3], 2)]
            end = position + 1 + int(text[at + 3 : at + 3 + width], 2)
            repeated = text[at] == "1"
            at += 3 + width
            if end > count:
                raise ValueError("a run ends behind the image")
            if repeated:
                out[position:end] = int(text[at : at + word], 2)
                at += word
            else:
                for index in range(position, end):
                    out[index] = int(text[at : at + word], 2)
                    at += word
            position = end
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"the brush's run-length code is damaged: {error}") from error
    return out.reshape(*size, 4)[..., 3] > 0


def import_label_studio(path: Path, job: Job, images: Mapping[str, Path] | None) -> list[Entry]:
    """Masks from a JSON export: of each task the last annotation that is not cancelled; later brushes lie on top.

    A task's id is its `data.id`, or the file name of its image.

    Raises:
        InputError: the file is not a list of tasks.
    """
    if path.is_dir():
        path = path / "tasks.json"
    tasks = read_json(path)
    if not isinstance(tasks, list):
        raise InputError(f"{path}: is not a list of tasks, expected Label Studio's export as JSON")
    ids = [_id(task, number) for number, task in enumerate(tasks)]
    return [
        (id, partial(_mask, path, task, job, (images or {}).get(clean_id(id))))
        for id, task in zip(ids, tasks, strict=True)
    ]


def _id(task: Any, number: int) -> str:
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict):
        return f"task {number}"
    if isinstance(data.get("id"), str):
        return data["id"]
    address = urlsplit(str(data.get("image", "")))
    path = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    return PurePosixPath(path).stem or f"task {number}"


def _mask(path: Path, task: Any, job: Job, image: Path | None) -> NDArray[np.uint8]:
    try:
        annotations = [one for one in task.get("annotations", []) if not one.get("was_cancelled")]
        results = (annotations or task["predictions"])[-1]["result"]
        unread = sorted({str(result["type"]) for result in results if result["type"] != "brushlabels"})
        if unread:
            raise InputError(f"{path}: the annotation holds {', '.join(unread)}, expected brushlabels alone")
        if not results and image is not None:  # an empty annotation does not say its size
            return np.zeros(image_size(image), np.uint8)
        sizes = {(int(result["original_height"]), int(result["original_width"])) for result in results}
        if len(sizes) != 1:
            raise InputError(
                f"{path}: the annotation holds {len(sizes)} image sizes, expected one; an empty annotation holds none, "
                "pass --images DIR"
            )
        size = sizes.pop()
        if min(size) < 1 or size[0] * size[1] > 1 << 30:
            raise InputError(f"{path}: the image's size is {size}, expected 1..2^30 pixels")
        mask = np.zeros(size, np.uint8)
        for result in results:
            names = result["value"]["brushlabels"]
            if len(names) != 1:
                raise InputError(f"{path}: a brush has the labels {names}, expected one")
            mask[decode_brush(result["value"]["rle"], size)] = label_of_name(names[0], job, str(path))
        return mask
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        problem = re.sub(r"\s+", " ", str(error))
        raise InputError(f"{path}: a task lacks or damages {type(error).__name__}: {problem}") from error
