"""`amn-fast init`: a commented configuration for a folder of the user's own images."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import typer

from amn_fast._console import printable
from amn_fast.cli._common import app, console
from amn_fast.config import read_shipped
from amn_fast.data.folder import FileDataset, find_images, open_folder
from amn_fast.data.image import IMAGE_SUFFIXES, image_size
from amn_fast.errors import InputError
from amn_fast.files import write_text

IMAGE_FOLDERS = ("images", "JPEGImages")
MASK_FOLDERS = ("masks", "SegmentationClass")
LABEL_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".json", ".npy"})
NO_LABELS = frozenset({"classes.txt", "ids.txt", "readme.txt"})
FEW_IMAGES = 3000
"""A smaller set is trained with the settings of a shipped configuration, a larger one with the defaults."""
MODELS = {"demo": (200, 100), "msrc": (320, 247), "voc6": (500, 76)}
"""Shipped configurations: their images' longer side in pixels, and their number of images."""
SIZED = frozenset({"crop", "long_side", "rescale", "scales", "exp_times"})
"""Settings that follow from the images' size."""
SMALL_SIDE, LARGE_SIDE = 400, 1000
"""The defaults suit images of VOC's size. The longer side of images too small, or too large for any configuration."""
SIZES_READ = 100
MASKS_READ = 20
"""Masks that are read to see whether a folder of them fits; check-data reads all."""


@dataclass
class Found:
    """What lies in the user's folder.

    Attributes:
        root: the folder of the data set.
        options: those of `open_folder`: paths below `root`.
        ids: of the images.
        long_side: the median of the images' longer sides, in pixels.
        dataset: None without labels.
        remarks: sentences for the user.
    """

    root: Path
    options: dict[str, Any]
    ids: list[str]
    long_side: int = 500
    dataset: FileDataset | None = None
    remarks: list[str] = field(default_factory=list)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of your images, or of a data set with images/ in it.")],
    labels: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Label file, if it is not found beside the images.", show_default="found by its content"),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Configuration to write.", show_default="FOLDER's name with .yaml or _full.yaml, in this folder"
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Train AMN's three networks; without it, no network is trained (the fast mode)."),
    ] = False,
) -> None:
    """Write a commented configuration for your own images: every setting with its meaning, default and range."""
    from amn_fast.settings import commented_yaml

    found = look(folder, labels)
    name = (found.root.resolve().name or "mine") + "_full" * full
    output = output or Path(f"{name}.yaml")
    if output.exists():
        raise InputError(f"{output} exists and is kept; choose another file with --output")
    given, notes = suggest(found, name, output, full)
    command = printable(str(output))
    heading = (
        f"Configuration of amn_fast for the images in {printable(str(found.root))}; written by `amn-fast init`.\n"
        "A line `#name: value` is a setting: remove the # to change it, and the # of its section if that has one.\n"
        "Lines that begin with `# =` give the kind of value, its range and its default.\n"
        f"Check it with `amn-fast check-data {command}`, run it with `amn-fast run {command}`."
    )
    write_text(output, commented_yaml(heading, given, notes))
    for remark in found.remarks:
        console.print(remark)
    console.print(f"wrote {output}: every setting with its meaning, default and range")
    console.print(f"next:\n  amn-fast check-data {shlex.quote(str(output))}\n  amn-fast run {shlex.quote(str(output))}")


def look(folder: Path, labels: Path | None = None) -> Found:
    """Find images, labels, class names and ground-truth masks.

    Args:
        folder: the images, or a data set with a folder of images in it.
        labels: the label file, if known.

    Raises:
        InputError: there are no images, or `labels` cannot be used.
    """
    root, images = _find_root(folder)
    files = find_images(root / images)
    found = Found(root, {"images": images}, sorted(files), _median_long_side(list(files.values())))
    found.remarks.append(f"{root / images}: {_images(len(files))}, about {found.long_side} pixels on the longer side")
    if found.long_side > LARGE_SIDE:
        found.remarks.append(
            "  the networks see objects at a few hundred pixels: run on copies of the images of about 500 pixels,"
            " which is also faster"
        )
    if (root / "classes.txt").is_file():
        found.options["classes"] = "classes.txt"
    _find_labels(found, labels)
    if found.dataset is not None:
        _find_masks(found)
    return found


def _find_root(folder: Path) -> tuple[Path, str]:
    """The data set's folder, and the folder of images below it."""
    if not folder.is_dir():
        raise InputError(f"{folder}: {'is no folder' if folder.exists() else 'does not exist'}, expected your images")
    for name in IMAGE_FOLDERS:
        if _holds_images(folder / name):
            return folder, name
    if _holds_images(folder):
        return folder, "."
    inner = [path.name for path in sorted(folder.iterdir()) if path.name not in MASK_FOLDERS and _holds_images(path)]
    if len(inner) == 1:
        return folder, inner[0]
    if inner:
        raise InputError(
            f"{folder}: has images in {len(inner)} subfolders ({', '.join(inner[:5])}{', ...' * (len(inner) > 5)}),"
            f" expected all in one; move them into {folder / 'images'} and name their classes in a label file"
        )
    raise InputError(f"{folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}), nor does a folder in it")


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and any(
        path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") for path in folder.iterdir()
    )


def _median_long_side(files: list[Path]) -> int:
    """The median of the longer sides of some images, in pixels; `Found`'s default if none can be read."""
    sides = []
    for path in files[:: -(-len(files) // SIZES_READ)]:
        try:
            sides.append(max(image_size(path)))
        except (InputError, OSError):  # check-data names such files
            continue
    return int(np.median(sides)) if sides else Found.long_side


def _find_labels(found: Found, labels: Path | None) -> None:
    """Open the label file `labels`, or the one that fits."""
    usable, refused = [], []
    for path in [labels] if labels is not None else _label_files(found):
        option = os.path.relpath(path, found.root)
        try:
            dataset = open_folder(found.root, **found.options | {"labels": option})
            unlabelled = len(dataset.missing()["labels"])
            if unlabelled == len(dataset.ids):
                raise InputError(f"{path}: has labels of none of the images")
        except InputError as error:
            if labels is not None:
                raise
            refused.append(str(error))
            continue
        usable.append((unlabelled, option, dataset))
    if len(usable) > 1:
        named = [one for one in usable if Path(one[1]).stem.lower() == "labels"]
        if len(named) != 1:
            names = ", ".join(str(found.root / option) for _, option, _ in usable)
            raise InputError(f"{found.root}: {names} all have labels of the images; choose one with --labels")
        usable = named
    if usable:
        unlabelled, option, found.dataset = usable[0]
        found.options["labels"] = option
        found.remarks.append(f"{found.root / option}: {_count_labels(found.dataset)}")
        if unlabelled:
            found.remarks.append(
                f"  without a label: {_images(unlabelled)}; add labels, or list the ids of the others in a file"
                " and name it as data.options.ids"
            )
        return
    found.remarks += [f"not used: {reason}" for reason in refused]
    found.options["labels"] = "labels.csv"
    first, second = found.ids[0], found.ids[-1]
    found.remarks.append(
        f"no label file found; write {found.root / 'labels.csv'} with a line for each image before you go on:\n"
        f"  id,labels\n  {first},cat\n  {second},cat;dog"
    )


def _label_files(found: Found) -> Iterator[Path]:
    folders = {(found.root / found.options["images"]).resolve(): None, found.root.resolve(): None}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            hidden = path.name.startswith(".") or path.name.lower() in NO_LABELS
            if path.suffix.lower() in LABEL_SUFFIXES and path.is_file() and not hidden:
                yield path


def _count_labels(dataset: FileDataset) -> str:
    """ "30 images, 2 classes: cat 17, dog 13"."""
    labelled = set(dataset.ids).difference(dataset.missing()["labels"])
    counts = np.sum([dataset.labels(id) for id in sorted(labelled)], axis=0)
    classes = ", ".join(f"{name} {count}" for name, count in zip(dataset.classes, counts, strict=True))
    plural = "es" * (len(dataset.classes) != 1)
    return f"labels of {_images(len(labelled))}, {len(dataset.classes)} class{plural}: {classes}"


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _find_masks(found: Found) -> None:
    """Take ground-truth masks, if a folder of them fits the images."""
    for name in MASK_FOLDERS:
        if not (found.root / name).is_dir():
            continue
        try:
            dataset = open_folder(found.root, **found.options | {"masks": name})
            with_mask = [id for id in dataset.ids if (found.root / name / f"{id}.png").is_file()]
            for id in with_mask[:MASKS_READ]:
                dataset.ground_truth(id)
        except InputError as error:
            found.remarks.append(f"not used: {error}")
            continue
        if with_mask:
            found.options["masks"] = name
            found.remarks.append(f"{found.root / name}: ground truth of {len(with_mask)} of {len(found.ids)} images")
            return
    found.remarks.append("no ground-truth masks (masks/ID.png) found: the run makes masks but cannot score them")


def suggest(found: Found, name: str, output: Path, full: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings to begin with, by name, and why.

    Args:
        found: the user's images.
        name: of the run.
        output: the configuration; paths in it are relative to its folder.
        full: AMN's three networks are trained, in place of linear classifiers and heads on frozen features.
    """
    root = os.path.relpath(found.root, output.parent)
    given: dict[str, Any] = {
        "name": printable(name),
        "mode": "fixed",
        "data.kind": "folder",
        "data.root": str(found.root.resolve()) if root.startswith("..") else root,
        "data.options": found.options,
        "run": f"runs/{name}",
        "cam_seed.fg": "auto",
        "cam_seed.bg": "auto",
    }
    notes = {
        "cam_seed.fg": "Both are chosen without ground truth by the stage choose-seed; two numbers fix them.",
        "data.options": "images, labels, masks (ground truth, for scores only), classes, ids: paths below data.root.",
    }
    if full:
        _add_full(given, notes, found)
    else:
        given |= _settings_of(read_shipped("fast"))
        notes["train_cam.kind"] = "No network is trained; `amn-fast init --full` trains AMN's three."
        notes["backbone"] = "Its frozen features, pretrained on ImageNet, are all that the fast mode looks at."
    return given, notes


def _add_full(given: dict[str, Any], notes: dict[str, str], found: Found) -> None:
    """Add the settings of the full mode, which depend on the number and size of the images."""
    n_images = len(found.ids)
    model = min(MODELS, key=lambda name: abs(np.log(found.long_side / MODELS[name][0])))
    shipped = read_shipped(model)
    settings = _settings_of(shipped) | _epochs(shipped, MODELS[model][1], n_images)
    if n_images < FEW_IMAGES:
        given |= settings
        notes["backbone"] = "Small and fast; resnet50 is the reference implementations' network and wants a GPU."
        given["train_cam.clip"] = 1.0
        notes["train_cam.clip"] = "Without it, the classifier of a small set can collapse at these learning rates."
        notes["train_cam.epochs"] = (
            f"{n_images} images: about as many steps as the shipped configuration {model} ({MODELS[model][1]} images)."
        )
    elif found.long_side < SMALL_SIDE:
        given |= {name: value for name, value in settings.items() if name.rpartition(".")[2] in SIZED}
    given["mask.background"] = "auto"
    notes["mask.background"] = "Chosen without ground truth; a number fixes it."
    if "train_cam.crop" in given:
        notes["train_cam.crop"] = (
            f"For images of about {found.long_side} pixels, as in the shipped configuration {model}; so are the scales."
        )


def _settings_of(shipped: dict[str, Any]) -> dict[str, Any]:
    """The settings of a shipped configuration that its data set does not decide."""
    sections = ("train_cam", "cam", "train_amn", "amn", "amn_seed", "train_irn", "mask")
    given = {f"{section}.{key}": value for section in sections for key, value in shipped.get(section, {}).items()}
    return {"backbone": shipped["backbone"], **given}


def _epochs(shipped: dict[str, Any], its_images: int, n_images: int) -> dict[str, int]:
    """Epochs that make about as many steps as a shipped configuration on its images."""
    found = {}
    for section, settings in shipped.items():
        if section.startswith("train_") and "epochs" in settings:
            steps = settings["epochs"] * (its_images // settings["batch"])
            found[f"{section}.epochs"] = min(100, max(5, round(steps / max(1, n_images // settings["batch"]))))
    return found
