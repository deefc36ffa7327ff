"""What the metrics share: types, checks of what is added, plain results."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amn_fast.errors import InputError

UNKNOWN = 255
"""The label of a pixel whose class is unknown."""

UnknownRule = Literal["wrong", "ignore"]
AbsentRule = Literal["zero", "skip"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def argmax(maps: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Largest value of (K, H, W) maps, K > 0, and its channel, the first of equals; twice as fast as `np.argmax`."""
    largest = maps[0].copy()
    channel = np.zeros(largest.shape, np.uint8)
    for index, values in enumerate(maps[1:], start=1):
        np.copyto(channel, index, where=values > largest)
        np.maximum(largest, values, out=largest)
    return largest, channel


def check_activations(
    activations: ArrayLike, keys: ArrayLike, ground_truth: ArrayLike, n_classes: int
) -> tuple[NDArray[Any], NDArray[np.intp], NDArray[np.uint8]]:
    """The three, checked; keys as indices, the ground truth as uint8."""
    maps = np.asarray(activations)
    if maps.ndim != 3 or maps.dtype.kind != "f":
        raise InputError(f"activations are {_describe(maps)}, expected floats of shape (K, H, W)")
    ids = np.asarray(keys)
    if ids.shape != (len(maps),):
        raise InputError(f"keys have shape {ids.shape}, expected one label id for each of the {len(maps)} maps")
    if len(maps) and (ids.dtype.kind not in "iu" or ids.min() < 1 or ids.max() > n_classes):
        raise InputError(f"keys are {ids.tolist()}, expected label ids from 1 to {n_classes}")
    if len(np.unique(ids)) < len(ids):
        raise InputError(f"keys are {ids.tolist()}, expected each class once")
    true = as_labels(ground_truth, n_classes, "the ground truth")
    check_size("the activations", maps.shape[1:], true.shape)
    if maps.size:
        low, high = float(maps.min()), float(maps.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also true for NaN, which min and max hand on
            raise InputError(f"activations range from {low:g} to {high:g}, expected numbers in [0, 1]")
    return maps, ids.astype(np.intp), true


def as_labels(array: ArrayLike, n_classes: int, name: str) -> NDArray[np.uint8]:
    """(H, W) labels as uint8, -1 as 255; an InputError for anything else than 0..C and 255."""
    labels = np.asarray(array)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise InputError(f"{name} is {_describe(labels)}, expected integers of shape (H, W)")
    strange = (labels > n_classes) & (labels != UNKNOWN)
    if labels.dtype.kind == "i":
        strange |= labels < -1
    if strange.any():
        ids = np.unique(labels[strange])
        some = ", ".join(str(id) for id in ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise InputError(f"{name} has {'id' if len(ids) == 1 else 'ids'} {some}, expected 0 to {n_classes}, or 255")
    return labels.astype(np.uint8)  # -1 becomes 255


def check_size(name: str, size: tuple[int, ...], ground_truth: tuple[int, ...]) -> None:
    if size != ground_truth:
        verb = "are" if name.endswith("s") else "is"
        raise InputError(
            f"{name} {verb} {size[0]} x {size[1]} pixels (height x width), but the ground truth is"
            f" {ground_truth[0]} x {ground_truth[1]},"
            " expected the same size"
        )


def check_n_classes(n_classes: int) -> int:
    if not 1 <= n_classes <= UNKNOWN - 1:
        raise InputError(f"n_classes is {n_classes}, expected 1 to {UNKNOWN - 1}, because {UNKNOWN} is 'unknown'")
    return n_classes


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}, expected {' or '.join(repr(choice) for choice in choices)}")


def _describe(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"


def to_json(result: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(result, field.name)) for field in fields(result)}


def _plain(value: Any) -> Any:
    """`value` out of what JSON knows: arrays as lists, floats rounded to six decimals, NaN as None."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def mean_of(values: Floats) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
