"""Hostile and damaged files of every format that is read: a right answer or one sentence, in bounded time and memory.

A case writes a good file, checks what is read from it, damages it at random and reads it again. Nothing in a file may
be executed, no error but `InputError` may come out, and its sentence may not be Python's or PyTorch's.
"""

import io
import json
import os
import pickle
import re
import resource
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from amn_fast.data.folder import open_folder
from amn_fast.data.image import image_size, read_image, read_mask
from amn_fast.data.instances import Instances
from amn_fast.data.labels import open_labels, read_classes
from amn_fast.data.legacy import read_legacy
from amn_fast.data.names import read_ids
from amn_fast.data.published import read_published
from amn_fast.data.store import read_activations
from amn_fast.data.text import read_json
from amn_fast.errors import InputError
from amn_fast.models.backbone import read_state_dict

MOST_SECONDS = 20
MOST_KIB = 1 << 20
FOREIGN_WORDS = re.compile(
    r"Traceback|weights_only|torch\.load|object is not|object has no|not supported between|invalid literal|unpack|"
    r"pybind|Unable to cast|NoneType|codec can't|Expecting |substring|out of range|Unpickl|errno",
    re.IGNORECASE,
)
CLASSES = ("cat", "cup", "[red]dog")
Case = tuple[str, bytes, Callable[[Path], Any], Callable[[Any], bool]]
"""File name, content, reader, and whether what is read is right."""


class Bomb:
    """Pickles as a command that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def image_case(rng: np.random.Generator) -> Case:
    height, width = (int(side) for side in rng.integers(1, 40, 2))
    mode = str(rng.choice(["RGB", "L", "P", "RGBA", "I;16", "1", "CMYK"]))
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    grey16 = rng.integers(0, 65536, (height, width), np.uint16)
    image = Image.fromarray(grey16) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    kinds = {"I;16": ["PNG", "TIFF"], "CMYK": ["JPEG", "TIFF"], "P": ["PNG", "GIF", "BMP", "TIFF"], "1": ["PNG", "BMP"]}
    kind = str(rng.choice(kinds.get(mode, ["PNG", "TIFF"] + ["JPEG", "WEBP", "BMP"] * (mode == "RGB"))))
    exif = Image.Exif()
    turn = int(rng.integers(0, 10))
    exif[274] = turn
    options = {"exif": exif} if kind in ("JPEG", "PNG", "TIFF", "WEBP") else {}
    size = (width, height) if options and turn in (5, 6, 7, 8) else (height, width)

    def read(path: Path) -> Any:
        found = read_image(path)
        assert image_size(path) == found.shape[:2], "image_size and read_image disagree"
        return found

    suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
    return f"a.{suffix}", saved(image, kind, **options), read, lambda found: found.shape == (*size, 3)


def mask_case(rng: np.random.Generator) -> Case:
    ids = rng.choice(np.array([0, 1, 2, 255], np.uint8), tuple(rng.integers(1, 30, 2)))
    image = Image.fromarray(ids)
    if rng.random() < 0.5:
        image.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
    return "m.png", saved(image, "PNG"), read_mask, lambda found: np.array_equal(found, ids)


def npy(value: Any, protocol: int) -> bytes:
    array = np.empty((), object)
    array[()] = value
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    pickle.dump(array, file, protocol)
    return file.getvalue()


def published_case(rng: np.random.Generator) -> Case:
    keys = np.unique(rng.integers(0, 20, rng.integers(1, 4)))
    height, width = (int(side) for side in rng.integers(1, 20, 2))
    cam = rng.random((len(keys), (height - 1) // 4 + 1, (width - 1) // 4 + 1), np.float32)
    full = rng.random((len(keys), height, width), np.float32)
    as_tensor: Callable[[Any], Any] = torch.from_numpy if rng.random() < 0.5 else np.asarray
    entries = {"keys": as_tensor(keys), "cam": as_tensor(cam), "high_res": full}
    data = npy(entries, int(rng.integers(2, 6)))
    return "a.npy", data, read_published, lambda found: found.keys.tolist() == (keys + 1).tolist()


def bomb_case(rng: np.random.Generator, trace: Path) -> Case:
    bomb = {"keys": Bomb(trace)}
    name = str(rng.choice(["b.npy", "b.pth", "c.pth", "d.pth"]))
    if name == "b.npy":
        return name, npy(bomb, int(rng.integers(2, 6))), read_legacy, lambda found: False
    file = io.BytesIO()
    if name == "b.pth":
        pickle.dump(bomb, file, int(rng.integers(0, 6)))
    else:
        torch.save(bomb, file, _use_new_zipfile_serialization=name == "c.pth")
    return name, file.getvalue(), read_state_dict, lambda found: False


def weights_case(rng: np.random.Generator) -> Case:
    state = {f"layer{k}.weight": torch.from_numpy(rng.random((3, 2), np.float32)) for k in range(3)}
    if rng.random() < 0.4:
        return "w.safetensors", save(state), read_state_dict, lambda found: set(found) == set(state)
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=rng.random() < 0.5)
    return "w.pth", file.getvalue(), read_state_dict, lambda found: set(found) == set(state)


def store_case(rng: np.random.Generator) -> Case:
    full = rng.random((1, 9, 6)).astype(np.float32)
    file = io.BytesIO()
    np.savez(
        file, keys=np.array([2], np.uint8), strided=full[:, ::4, ::4].astype(np.float16), full=full.astype(np.float16)
    )
    return "a.npz", file.getvalue(), read_activations, lambda found: found.keys.tolist() == [2]


def rows(rng: np.random.Generator) -> dict[str, list[str]]:
    ids = [f"id {k}" for k in range(rng.integers(1, 5))]
    return {id: [name for name in CLASSES if rng.random() < 0.5] for id in ids}


def expected_labels(table: dict[str, list[str]]) -> Callable[[Any], bool]:
    expected = {id: [name in names for name in CLASSES] for id, names in table.items()}
    return lambda found: found == expected


def all_labels(path: Path) -> dict[str, list[bool]]:
    labels = open_labels(path, CLASSES)
    return {id: labels[id].tolist() for id in labels}


def csv_case(rng: np.random.Generator) -> Case:
    table = rows(rng)
    mark = str(rng.choice([",", "\t", ";", "|"]))
    if rng.random() < 0.5:
        lines = [["id", *CLASSES]] + [[id, *(str(int(c in names)) for c in CLASSES)] for id, names in table.items()]
    else:
        within = str(rng.choice([m for m in ";|" if m != mark]))
        lines = [["Filename", "Labels"]] + [[id, within.join(names)] for id, names in table.items()]
    text = "\n".join(mark.join(line) for line in lines)
    return "l.csv", text.encode(), all_labels, expected_labels(table)


def json_case(rng: np.random.Generator) -> Case:
    table = rows(rng)
    value = table if rng.random() < 0.5 else {"classes": list(CLASSES), "labels": table}
    return "l.json", json.dumps(value).encode(), all_labels, expected_labels(table)


def xml_case(rng: np.random.Generator) -> Case:
    names = [name for name in CLASSES if rng.random() < 0.5]
    text = "".join(f"<object><name>{name}</name></object>" for name in names)
    expected = {"x": [name in names for name in CLASSES]}
    data = f"<annotation>{text}</annotation>".encode()
    return "xml/x.xml", data, lambda path: all_labels(path.parent), lambda found: found == expected


ODD: tuple[Any, ...] = (
    None,
    -1,
    0,
    1.5,
    True,
    "",
    "x",
    [],
    {},
    [[]],
    [1, 2],
    10**30,
    float("nan"),
    1e300,
    "\u00e9" * 50,
)


def coco_case(rng: np.random.Generator) -> Case:
    box = [2, 2, 8, 2, 8, 8, 2, 8]
    runs = {"size": [12, 15], "counts": [9, 171]}
    value: dict[str, Any] = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "height": 12, "width": 15} for k in (1, 2)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 2, "iscrowd": 0, "segmentation": [box], "bbox": [2, 2, 6, 6]},
            {"id": 2, "image_id": 2, "category_id": 1, "iscrowd": 1, "segmentation": runs},
            {"id": 3, "image_id": 2, "category_id": 3, "iscrowd": 0, "segmentation": [], "bbox": [1, 1, 3, 3]},
        ],
    }  # fmt: skip
    good = rng.random() < 0.2
    if not good:  # a value somewhere becomes something else
        for _ in range(rng.integers(1, 3)):
            entry = value[str(rng.choice(list(value)))]
            place: Any = entry[rng.integers(len(entry))]
            key = str(rng.choice(list(place)))
            if key == "segmentation" and rng.random() < 0.5 and place[key]:
                place, key = place[key], (rng.choice(list(place[key])) if isinstance(place[key], dict) else 0)
            place[key] = ODD[rng.integers(len(ODD))]
            if rng.random() < 0.2 and isinstance(key, str):
                del place[key]

    def read(path: Path) -> Any:
        found = Instances(read_json(path), path)
        labels = found.labels()
        masks = []
        for id in found.file_names:
            labels[id]
            masks.append(found.mask(id))
            assert masks[-1].shape == found.sizes[id]
        return masks

    def right(masks: Any) -> bool:
        return not good or [int((mask == label).sum()) for mask, label in zip(masks, (2, 255), strict=True)] == [
            36,
            171,
        ]

    return "i.json", json.dumps(value).encode(), read, right


def list_case(rng: np.random.Generator) -> Case:
    names = [f"n{k}" for k in range(rng.integers(1, 6))]
    read: Callable[[Path], Any] = (read_ids, read_classes)[rng.integers(2)]
    return "l.txt", "\n".join(names).encode(), read, lambda found: list(found) == names


def folder_case(rng: np.random.Generator) -> Case:
    """A whole data set, with the damage in one of its images."""
    name, data, _, _ = image_case(rng)

    def read(path: Path) -> Any:
        dataset = open_folder(path.parent.parent, images="images", labels="labels.csv")
        return dataset.strays(), [dataset.image(id) for id in dataset.ids]

    return f"images/{name}", data, read, lambda found: len(found[1]) == 1


def damage(rng: np.random.Generator, data: bytes) -> bytes:
    kind = rng.integers(9)
    at, length = int(rng.integers(len(data) + 1)), int(2 ** rng.integers(0, 12))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes(rng.integers(0, 256, length, np.uint8)) + data[at + length :]
    if kind == 2:
        return data[:at] + bytes(length) + data[at:]
    if kind == 3:
        return data[:at] + b"\xff" * (length * 100) + data[at:]
    if kind == 4:
        return data[:at] + data[max(0, at - length) :]
    if kind == 5:  # a size somewhere becomes huge
        return (
            data[:at]
            + struct.pack(str(rng.choice(["<I", ">I", "<Q"])), int(rng.choice([2**31 - 1, 2**32 - 1, 2**30])))
            + data[at + 4 :]
        )
    if kind == 6:
        heads = (
            b"<html>404",
            b"%!PS-Adobe-3.0\n",
            b"PK\x03\x04",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xfe",
            b"[" * 50_000,
            b"{" * 9,
            b"",
        )
        return heads[rng.integers(len(heads))]
    flipped = bytearray(data)
    for _ in range(rng.integers(1, 8)):
        if flipped:
            flipped[rng.integers(len(flipped))] ^= 1 << int(rng.integers(8))
    return bytes(flipped)  # fmt: skip


CASES = (image_case, mask_case, published_case, weights_case, store_case, csv_case, json_case, xml_case, coco_case,
         list_case, folder_case)  # fmt: skip


def one(rng: np.random.Generator, folder: Path) -> None:
    """Try one file.

    Raises:
        AssertionError: a wrong answer, another error than `InputError`, a sentence that is none, too much time or
            memory, or something in the file was executed.
    """
    trace = folder / "executed"
    hostile = rng.random() < 0.1
    name, data, read, right = bomb_case(rng, trace) if hostile else CASES[rng.integers(len(CASES))](rng)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "labels.csv").write_text("id,cat\na,1\n")
    damaged = hostile or rng.random() < 0.8
    content = damage(rng, data) if damaged and not (hostile and rng.random() < 0.5) else data
    path.write_bytes(content)
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(path)
    except InputError as error:
        sentence = str(error)
        assert damaged or name == "i.json", f"a good {name} is refused: {sentence}"
        assert "\n" not in sentence, sentence
        assert len(sentence) < 1000, sentence
        assert not FOREIGN_WORDS.search(sentence.replace(str(folder), "")), sentence
    else:
        assert damaged or right(found), f"{name}: a wrong answer"
    assert time.process_time() - begin < MOST_SECONDS, f"{name} took too long"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KIB, f"{name} took too much memory"
    assert not trace.exists(), f"{name} was executed"
