"""The demo set: images composed from the photographs inside the scikit-image package, with exact masks.

The photographs ship in that package, nothing is downloaded: chelsea (cat), coffee (cup) and astronaut (person) are cut
out along the outlines below and laid on brick, grass, gravel, wood and sky. Chelsea, coffee, brick, grass and gravel
are CC0; astronaut (NASA) and rocket (SpaceX) are in the public domain.
"""

import importlib.util
import json
import os
import secrets
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amn_fast.data.folder import FileDataset, open_folder
from amn_fast.data.image import read_image
from amn_fast.data.labels import write_labels
from amn_fast.data.masks import write_mask
from amn_fast.data.text import read_json
from amn_fast.errors import InputError, MissingExtra

DEMO_CLASSES = ("cat", "cup", "person")
_RECIPE = 1  # goes up when the same seed gives other images

_CAT = [(36, 0), (39, 65), (27, 103), (30, 141), (9, 162), (0, 179), (0, 300), (268, 300), (290, 288), (308, 271)]
_CAT += [(319, 244), (338, 216), (355, 189), (365, 157), (364, 108), (381, 67), (398, 22), (400, 0)]
_CUP = [((279, 226), (202, 155)), ((291, 113), (120, 97))]  # centre and radii of the saucer and of the cup's rim
_PERSON = [(228, 14), (186, 27), (159, 60), (153, 91), (173, 111), (182, 154), (140, 157), (118, 188), (116, 216)]
_PERSON += [(72, 247), (52, 276), (36, 318), (25, 372), (22, 430), (25, 512), (278, 512), (282, 464), (300, 410)]
_PERSON += [(348, 352), (360, 325), (351, 277), (317, 255), (303, 240), (300, 199), (276, 163), (267, 154), (282, 115)]
_PERSON += [(300, 84), (298, 58), (276, 24)]

_SINGLE = (0.5, 0.85)  # longer side of an object in shares of the shorter side of the image: alone,
_PAIRED = (0.42, 0.6)  # and beside another one
_MOST_HIDDEN = 0.25  # share of an object that another one may cover
_PLAN = ((0,), (1,), (2,), (0, 1), (0,), (1,), (2,), (1, 2), (0,), (1,), (2,), (2, 0))
_EMPTY_EVERY = 33  # one image in so many shows no class


Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Cutout:
    photo: NDArray[np.uint8]  # (h, w, 3)
    alpha: NDArray[np.uint8]  # (h, w), 255 inside the outline


def make_demo(directory: Path | str, n: int = 100, seed: int = 0) -> Path:
    """Write the demo set into `directory`, whole or not at all, and return its path.

    There come `images/demo_NNN.jpg` (176 to 224 pixels a side), `masks/demo_NNN.png`, `labels.csv`, `classes.txt` and
    `ids.txt`; most images show one object or two, about three in a hundred none. The same `n` and `seed` give the
    same bytes; a set that is already there is left as it is.

    Raises:
        InputError: `directory` holds something else, `n` is not in 1..1000, or `seed` is negative.
        MissingExtra: scikit-image is not installed.
    """
    directory = Path(directory)
    recipe = {"recipe": _RECIPE, "n": n, "seed": seed}
    if not 1 <= n <= 1000:
        raise InputError(f"n is {n}, expected 1 to 1000 demo images")
    if seed < 0:
        raise InputError(f"the demo's seed is {seed}, expected 0 or more")
    if directory.is_dir() and any(directory.iterdir()):
        if _recipe_of(directory) == recipe:
            return directory
        raise InputError(f"{directory}: holds something other than the demo set with n={n}, seed={seed}; remove it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = directory.parent / f".amn-fast-{secrets.token_hex(8)}.tmp"
    scratch.mkdir()
    try:
        _write(scratch, n, seed)
        (scratch / "demo.json").write_text(json.dumps(recipe) + "\n")
        os.replace(scratch, directory)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return directory


def open_demo(root: Path | str, *, n: int = 100, seed: int = 0) -> FileDataset:
    """The demo set in `root`, made there first if it is not yet; see `make_demo`."""
    return open_folder(make_demo(root, n, seed), masks="masks", classes="classes.txt", ids="ids.txt")


def compose(index: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image `index` of the set of `seed`: (H, W, 3) uint8 and its mask, (H, W) uint8."""
    rng = np.random.default_rng([seed, index])
    height, width = (int(side) for side in rng.integers(176, 225, 2))
    image = _background(rng, height, width)
    mask = np.zeros((height, width), np.uint8)
    classes = _classes_of(index, seed)
    for which in rng.permutation(classes).astype(int):
        image, mask = _paste(rng, image, mask, which, _SINGLE if len(classes) == 1 else _PAIRED)
    noise = rng.normal(0, 2, image.shape)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8), mask


def _classes_of(index: int, seed: int) -> tuple[int, ...]:
    """What image `index` shows: the plan in an order of its own in each dozen, so that no stride misses a class."""
    if index % _EMPTY_EVERY == _EMPTY_EVERY - 1:
        return ()
    dozen, place = divmod(index, len(_PLAN))
    return _PLAN[np.random.default_rng([seed, 1_000_000, 1 + dozen]).permutation(len(_PLAN))[place]]


def _recipe_of(directory: Path) -> object:
    try:
        return read_json(directory / "demo.json")
    except InputError:
        return None


def _write(directory: Path, n: int, seed: int) -> None:
    (directory / "images").mkdir()
    labels = {}
    for index in range(n):
        id = f"demo_{index:03d}"
        image, mask = compose(index, seed)
        Image.fromarray(image).save(directory / "images" / f"{id}.jpg", quality=95)
        write_mask(directory / "masks" / f"{id}.png", mask)
        labels[id] = np.isin(np.arange(1, len(DEMO_CLASSES) + 1), mask)
    (directory / "classes.txt").write_text("".join(f"{name}\n" for name in DEMO_CLASSES))
    (directory / "ids.txt").write_text("".join(f"{id}\n" for id in labels))
    write_labels(directory / "labels.csv", labels, DEMO_CLASSES, labels)


@cache
def _photo(name: str) -> NDArray[np.uint8]:
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("the demo's photographs come with scikit-image: pip install 'amn-fast[demo]'")
    return read_image(Path(found.submodule_search_locations[0]) / "data" / name)


@cache
def _cutout(which: int) -> _Cutout:
    photo = _photo(("chelsea.png", "coffee.png", "astronaut.png")[which])
    alpha = np.zeros(photo.shape[:2], np.uint8)
    if which == 1:
        for centre, radii in _CUP:
            cv2.ellipse(alpha, centre, radii, 0, 0, 360, 255, cv2.FILLED, cv2.LINE_AA)
    else:
        outline = np.array(_CAT if which == 0 else _PERSON, np.int32)
        cv2.fillPoly(alpha, [outline], 255, cv2.LINE_AA)
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _Cutout(photo[inside], alpha[inside])


def _background(rng: np.random.Generator, height: int, width: int) -> Floats:
    """A crop of a photograph, tinted, flipped, and lit from one side; (height, width, 3) in 0..255."""
    name, area, tints = (
        ("brick.png", np.s_[:, :], ((205, 120, 95), (180, 165, 145), (150, 150, 155))),
        ("grass.png", np.s_[:, :], ((110, 160, 70), (165, 155, 85), (90, 130, 95))),
        ("gravel.png", np.s_[:, :], ((165, 160, 155), (190, 165, 130), (130, 145, 165))),
        ("coffee.png", np.s_[:, 488:], None),
        ("rocket.jpg", np.s_[:260, :200], None),
        ("rocket.jpg", np.s_[:260, 400:], None),
    )[rng.integers(6)]
    photo = _photo(name)[area].astype(np.float32)
    share = rng.uniform(0.7, 1)
    crop_height = min(photo.shape[0], int(photo.shape[1] * share * height / width))
    crop_width = min(photo.shape[1], int(crop_height * width / height) + 1)
    top = int(rng.integers(photo.shape[0] - crop_height + 1))
    left = int(rng.integers(photo.shape[1] - crop_width + 1))
    window = photo[top : top + crop_height, left : left + crop_width]
    crop = _resized(window, (width, height))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if tints is not None:
        tint = np.array(tints[rng.integers(len(tints))], np.float32)
        crop *= 0.9 * tint / max(float(crop.mean()), 1.0)
    slope = rng.uniform(-0.3, 0.3, 2)
    light = 1 + slope[0] * np.linspace(-0.5, 0.5, height)[:, None] + slope[1] * np.linspace(-0.5, 0.5, width)
    return np.clip(crop * (light * rng.uniform(0.8, 1.15))[..., None], 0, 255).astype(np.float32)


def _paste(
    rng: np.random.Generator,
    image: Floats,
    mask: NDArray[np.uint8],
    which: int,
    sizes: tuple[float, float],
) -> tuple[Floats, NDArray[np.uint8]]:
    """`image` and `mask` with one more object in front, placed so that it hides little of those already there."""
    height, width = mask.shape
    photo, alpha = _variant(rng, which, rng.uniform(*sizes) * min(height, width))
    object_height, object_width = alpha.shape
    there = max(int((mask > 0).sum()), 1)
    best = None
    for _ in range(20):
        top = round(rng.uniform(-0.05, 0.05) * object_height + rng.random() * (height - object_height))
        left = round(rng.uniform(-0.05, 0.05) * object_width + rng.random() * (width - object_width))
        shift = np.array([[1, 0, left], [0, 1, top]], np.float32)
        placed = _warped(alpha, shift, (width, height))
        hidden = int((mask[placed >= 0.5] > 0).sum()) / there
        if best is None or hidden < best[0]:
            best = hidden, placed, _warped(photo, shift, (width, height))
        if hidden <= _MOST_HIDDEN:
            break
    assert best is not None
    _, placed, front = best
    image = image + placed[..., None] * (front - image)
    return image, np.where(placed >= 0.5, np.uint8(which + 1), mask)


def _variant(rng: np.random.Generator, which: int, size: float) -> tuple[Floats, Floats]:
    """An object scaled to the longer side `size`, turned, perhaps flipped, and lit; its colours and opacity 0..1."""
    cutout = _cutout(which)
    height, width = cutout.alpha.shape
    scale = size / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    photo = _resized(cutout.photo, shape)
    alpha = _resized(cutout.alpha, shape) / 255
    if rng.random() < 0.5:
        photo, alpha = photo[:, ::-1], alpha[:, ::-1]
    angle = rng.uniform(-15, 15)
    turn = cv2.getRotationMatrix2D((shape[0] / 2, shape[1] / 2), angle, 1)
    radians = abs(np.deg2rad(angle))
    turned = (
        int(np.ceil(shape[0] * np.cos(radians) + shape[1] * np.sin(radians))),
        int(np.ceil(shape[1] * np.cos(radians) + shape[0] * np.sin(radians))),
    )
    turn[:, 2] += (turned[0] - shape[0]) / 2, (turned[1] - shape[1]) / 2
    gain = rng.uniform(0.75, 1.2) * rng.uniform(0.95, 1.05, 3)
    photo = _warped(photo, turn, turned, cv2.BORDER_REPLICATE) * gain
    return np.clip(photo, 0, 255), _warped(alpha, turn, turned)


def _resized(array: NDArray[Any], size: tuple[int, int]) -> Floats:
    """`array` at `size` (width, height), averaged where it shrinks."""
    smooth = cv2.INTER_AREA if array.shape[1] > size[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(array.astype(np.float32), size, interpolation=smooth), np.float32)


def _warped(array: Floats, matrix: NDArray[Any], size: tuple[int, int], border: int = cv2.BORDER_CONSTANT) -> Floats:
    """`array` moved by the 2 x 3 `matrix` into a frame of `size` (width, height)."""
    array = np.ascontiguousarray(array, np.float32)
    return np.asarray(cv2.warpAffine(array, matrix, size, borderMode=border), np.float32)
