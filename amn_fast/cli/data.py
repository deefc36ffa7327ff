"""Commands that check data sets and masks, and build label files."""

import os
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from amn_fast.cli._common import ConfigArgument, RootOption, SetOption, app, console, progress_bar, read_settings
from amn_fast.config import Config, read_config
from amn_fast.data.base import list_ids
from amn_fast.errors import InputError, MissingExtra

ForegroundOption = Annotated[
    Optional[int],  # noqa: UP045  (typer reads the annotation)
    typer.Option("--foreground", help="Value of the foreground in binary masks, usually 255; it becomes class 1."),
]
_WORKERS_PER_CPU = 4
_SHOWN = 10


@app.command()
def build_labels(
    source: Annotated[
        Path, typer.Argument(help="Folder of VOC XML files or of masks, a COCO instances JSON, or a label file.")
    ],
    output: Annotated[Path, typer.Argument(help="Label file to write: .csv, .json, or .npy as AMN's code reads it.")],
    classes: Annotated[Optional[Path], typer.Option(help="Class names, one a line; needed for masks.")] = None,  # noqa: UP045
    foreground: ForegroundOption = None,
) -> None:
    """Write a file of image-level labels from annotations, and print what was understood."""
    from amn_fast.data.labels import describe_labels, open_labels, read_classes, write_labels

    labels = open_labels(source, read_classes(classes) if classes else None, foreground=foreground)
    write_labels(output, labels, labels.classes, labels)
    console.print(f"{output}: {describe_labels(labels)}")


@app.command()
def check_masks(
    config: ConfigArgument,
    masks: Annotated[Path, typer.Argument(help="Folder of masks.")],
    foreground: ForegroundOption = None,
) -> None:
    """Check a folder of masks against a data set: one for each image, its size, known ids, not all 255."""
    from amn_fast.data import open_dataset
    from amn_fast.data.masks import check_masks as check

    data = read_config(config).data
    dataset = open_dataset(data.kind, data.root, **data.options)
    check(masks, dataset, foreground=foreground)
    console.print(f"{len(dataset.ids)} masks in {masks} fit")


@app.command()
def check_data(
    config: ConfigArgument,
    set: SetOption = None,
    root: RootOption = None,
    masks: Annotated[bool, typer.Option("--masks", help="Read every ground-truth mask too.")] = False,
    open: Annotated[bool, typer.Option("--open/--no-open", help="Decode every image.")] = True,
) -> None:
    """Check a data set and the settings before a run; exit code 1 if anything is missing, damaged or doubtful.

    Counts images and classes, decodes every image, and lists missing images and labels, labels of images that do not
    exist, files that are not read, classes without an image, and a device, backbone or weights that cannot be used.
    """
    from amn_fast.data import open_dataset
    from amn_fast.data.inventory import expected_images, take_inventory

    settings = read_settings(config, set, None, root)
    data = settings.data
    dataset = open_dataset(data.kind, data.root, **data.options)
    expected = expected_images(data.kind, data.options, dataset.classes)
    with progress_bar(open or masks) as progress:
        task = progress.add_task("images", total=len(dataset.ids))
        found = take_inventory(dataset, expected, images=open, masks=masks, advance=lambda: progress.advance(task))
    official = "" if expected is None else f", expected {expected}"
    console.print(f"{dataset.name}: {found.images} images{official}")
    table = Table("class", "images")
    for name, count in found.positives.items():
        table.add_row(name, str(count))
    console.print(table)
    for kind, ids in found.missing.items():
        console.print(f"without {kind}: {list_ids(ids) if ids else 'none'}")
    for reason, names in found.strays.items():
        if names:
            console.print(f"{reason}: {list_ids(names)}")
    if found.damaged:
        console.print(f"cannot be used: {list_ids(list(found.damaged))}")
        for reason in list(found.damaged.values())[:_SHOWN]:
            console.print(f"  {reason}")
    problems = [*found.doubtful, *_doubtful_settings(settings)]
    for problem in problems:
        console.print(problem)
    usable = found.images - len({*found.damaged, *found.missing["image"], *found.missing["labels"]})
    console.print(
        f"a run would train on {usable} images of {len(dataset.classes)} classes, with backbone {settings.backbone} on "
        f"device {settings.device}" + ("" if open else "; images were not opened")
    )
    if not found.complete or problems:
        raise typer.Exit(1)


def _doubtful_settings(config: Config) -> list[str]:
    """What a run would stumble over later: the device, the backbone, its weights, the number of workers."""
    import torch

    from amn_fast.models.backbone import make_backbone, read_state_dict

    found = []
    if config.device == "cuda" and not torch.cuda.is_available():
        found.append("device is 'cuda', but PyTorch sees no CUDA device here; expected 'cpu' or 'auto'")
    try:
        make_backbone(config.backbone)
        if config.weights not in (None, "imagenet"):
            read_state_dict(config.weights)
    except (InputError, MissingExtra) as error:
        found.append(str(error))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config.workers > _WORKERS_PER_CPU * cpus:
        found.append(f"workers is {config.workers}, expected at most {_WORKERS_PER_CPU * cpus} on {cpus} CPUs")
    return found
