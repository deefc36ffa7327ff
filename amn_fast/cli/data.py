"""Commands that check data sets and masks, and build label files."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from amn_fast.cli._common import ConfigArgument, RootOption, SetOption, app, console, progress_bar, read_settings
from amn_fast.config import read_config
from amn_fast.data.base import list_ids


@app.command()
def build_labels(
    source: Annotated[Path, typer.Argument(help="Folder of VOC XML files or of masks, or a COCO instances JSON.")],
    output: Annotated[Path, typer.Argument(help="Label file to write: .csv, .json or the published code's .npy.")],
    classes: Annotated[Optional[Path], typer.Option(help="Class names, one a line; needed for masks.")] = None,  # noqa: UP045
) -> None:
    """Write a file of image-level labels from annotations."""
    from amn_fast.data.labels import open_labels, read_classes, write_labels

    labels = open_labels(source, read_classes(classes) if classes else None)
    write_labels(output, labels, labels.classes, labels)
    console.print(f"{len(labels)} pictures, {len(labels.classes)} classes: {output}")


@app.command()
def check_masks(config: ConfigArgument, masks: Annotated[Path, typer.Argument(help="Folder of masks.")]) -> None:
    """Check a folder of masks against a data set: one for each picture, its size, known ids, not all 255."""
    from amn_fast.data import open_dataset
    from amn_fast.data.masks import check_masks as check

    data = read_config(config).data
    dataset = open_dataset(data.kind, data.root, **data.options)
    check(masks, dataset)
    console.print(f"{len(dataset.ids)} masks in {masks} fit")


@app.command()
def check_data(
    config: ConfigArgument,
    set: SetOption = None,
    root: RootOption = None,
    masks: Annotated[bool, typer.Option("--masks", help="Read every ground-truth mask too.")] = False,
) -> None:
    """Count a data set's pictures and classes and list what is missing; exit code 1 if anything is."""
    from amn_fast.data import open_dataset
    from amn_fast.data.inventory import expected_pictures, take_inventory

    data = read_settings(config, set, None, root).data
    dataset = open_dataset(data.kind, data.root, **data.options)
    expected = expected_pictures(data.kind, data.options, dataset.classes)
    with progress_bar() as progress:
        task = progress.add_task("masks", total=len(dataset.ids), visible=masks)
        found = take_inventory(dataset, expected, masks=masks, advance=lambda: progress.advance(task))
    official = "" if expected is None else f", expected {expected}"
    console.print(f"{dataset.name}: {found.pictures} pictures{official}")
    table = Table("class", "pictures")
    for name, count in found.positives.items():
        table.add_row(name, str(count))
    console.print(table)
    for kind, ids in found.missing.items():
        console.print(f"without {kind}: {list_ids(ids) if ids else 'none'}", soft_wrap=True)
    if not found.complete:
        raise typer.Exit(1)
