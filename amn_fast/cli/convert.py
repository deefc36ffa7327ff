"""Files of the reference implementation, in and out."""

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from amn_fast.cli._common import (
    ConfigArgument,
    RootOption,
    RunOption,
    SetOption,
    app,
    console,
    progress_bar,
    read_settings,
)


@app.command()
def convert_activations(
    source: Annotated[
        Path, typer.Argument(help="Folder of activations: ID.npy of AMN's code, or ID.npz of the store.")
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    to: Annotated[Literal["store", "published"], typer.Option(help="The form to write.")],
    full: Annotated[bool, typer.Option("--full", help="To the store: keep the maps at full size too.")] = False,
    background: Annotated[
        bool, typer.Option("--background", help="To the published form: with AMN's channel for the background.")
    ] = False,
    images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--images", "--pictures", help="To the store: folder of the images, needed where one has no class."
        ),
    ] = None,
) -> None:
    """Convert a folder of activation dictionaries of IRN's or AMN's code to the store, or back. Nothing is executed."""
    from amn_fast.data import published

    with progress_bar() as progress:
        task = progress.add_task("activations", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        if to == "store":
            size_of = published.sizes_in(images) if images else None
            count = published.to_store(source, target, compact=not full, size_of=size_of, advance=advance)
        else:
            count = published.to_published(source, target, background=background, advance=advance)
    console.print(f"activations of {count} images in {target}")


@app.command()
def export_published(
    config: ConfigArgument,
    folder: Annotated[Path, typer.Argument(help="Folder to write result/, sess/ and cls_labels.npy into.")],
    set: SetOption = None,
    run: RunOption = None,
    root: RootOption = None,
) -> None:
    """Write a run's weights, activations, seeds and masks under the names and in the forms of AMN's code."""
    from amn_fast.pipeline.exporting import export

    for place, outcome in export(read_settings(config, set, run, root), folder).items():
        console.print(f"{folder / place}: {outcome}")
