"""What a finished run gives to label new images: class names, weights, settings. Needs no PyTorch."""

import hashlib
from pathlib import Path
from typing import Any

from amn_fast.config import Config
from amn_fast.data.classes import read_classes
from amn_fast.data.legend import CLASSES
from amn_fast.errors import InputError
from amn_fast.pipeline.chosen import chosen_mask, chosen_seed
from amn_fast.pipeline.table import Stage, producer, upstream
from amn_fast.review.source import run_classes, run_config

__all__ = ["check_finished", "classes_of", "identity_of", "run_config"]


def networks_of(config: Config) -> tuple[str, ...]:
    """The networks that masks of new images need, by the name of their weights."""
    return ("cam", "amn", "irn") if config.mask.kind == "walk" else ("cam", "amn")


def check_finished(run: Path) -> None:
    """Check that a folder is a run whose networks are trained.

    Raises:
        InputError: it is not; the message says what is missing.
    """
    needed = ["config.yaml"]
    if (run / "config.yaml").is_file():
        needed = [f"weights/{name}.safetensors" for name in networks_of(run_config(run))]
    if missing := [name for name in needed if not (run / name).is_file()]:
        raise InputError(f"{run}: has no {', '.join(missing)}, expected the folder of a finished run")


def classes_of(run: Path) -> tuple[str, ...]:
    """The class names of a run: from its classes.txt, which needs no data set, or as `run_classes` finds them."""
    return read_classes(run / CLASSES) if (run / CLASSES).is_file() else run_classes(run)


def identity_of(run: Path) -> dict[str, Any]:
    """All of a run that the mask of a new image depends on, as JSON."""
    check_finished(run)
    config = run_config(run)
    config = config.model_copy(update={"cam_seed": chosen_seed(config, "cam_seed"), "mask": chosen_mask(config)})
    return {
        "classes": list(classes_of(run)),
        "settings": {key: _value(config, key) for key in sorted({"backbone", *_settings_of_masks()})},
        "weights": {name: _digest(run / "weights" / f"{name}.safetensors") for name in networks_of(config)},
    }


def _settings_of_masks() -> set[str]:
    """The settings of the stages per image that lead to a mask."""
    mask = producer("masks/{id}.png")
    assert mask is not None
    stages: list[Stage] = [mask]
    for stage in stages:
        stages += [earlier for earlier in upstream(stage, stage.inputs) if earlier.per_image]
    return {key for stage in stages for key in stage.settings}


def _value(config: Config, key: str) -> Any:
    value = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
