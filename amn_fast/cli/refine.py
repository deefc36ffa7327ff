"""Masks from the files of other methods."""

from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from amn_fast.cli._common import app, console, progress_bar, resumable

Folder = Optional[Path]  # noqa: UP045  (typer reads the annotation)


@app.command()
def refine(
    inputs: Annotated[Path, typer.Argument(metavar="INPUT", help="Folder of the method's files, ID.npy or ID.png.")],
    out: Annotated[Path, typer.Argument(help="Folder for the masks, ID.png.")],
    images: Annotated[Path, typer.Option(help="Folder of the images.")],
    method: Annotated[
        Literal["clip-es", "seco", "excel", "irn", "probabilities", "sam-votes"],
        typer.Option(help="Whose files: seco serves ToCo, irn serves AMN, ReCAM and AdvCAM."),
    ] = "probabilities",
    refiner: Annotated[
        Optional[Literal["crf", "par", "walk", "none"]],  # noqa: UP045
        typer.Option(
            help="crf: dense CRF; par: pixel-adaptive refinement; walk: random walk.", show_default="method's"
        ),
    ] = None,
    background: Annotated[float, typer.Option(help="Background score of irn and of the walk.")] = 0.25,
    confidence: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Pixels less probable than this become 255.", show_default="clip-es: 0.95, others: 0"),
    ] = None,
    edges: Annotated[Folder, typer.Option(help="Folder of edge maps ID.npy at stride 4, for the walk.")] = None,
    proposals: Annotated[
        Folder, typer.Option(help="sam-votes: folder with ID/*.png (0 / 255) or ID.npy (integers, -1: none).")
    ] = None,
    gaussian: Annotated[
        Optional[tuple[float, float]],  # noqa: UP045
        typer.Option(help="Smoothness kernel: sigma_xy compat.", show_default="method's"),
    ] = None,
    bilateral: Annotated[
        Optional[tuple[float, float, float]],  # noqa: UP045
        typer.Option(help="Appearance kernel: sigma_xy sigma_rgb compat.", show_default="method's"),
    ] = None,
    iterations: Annotated[int, typer.Option(help="Mean-field iterations.", min=0)] = 10,
    par_iterations: Annotated[int, typer.Option(help="Iterations of par.", min=0)] = 10,
    bgr_minus_mean: Annotated[
        bool, typer.Option("--bgr-minus-mean", help="Give the CRF the image as deeplab-pytorch does (see the guide).")
    ] = False,
    key: Annotated[Optional[str], typer.Option(help="Name of the array in NPZ files with several.")] = None,  # noqa: UP045
    threads: Annotated[Optional[int], typer.Option(help="Images at once.", show_default="all CPUs")] = None,  # noqa: UP045
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace masks of other settings.")] = False,
) -> None:
    """Refine the outputs of another method into masks; what is up to date is skipped."""
    from amn_fast.refine import RefineSettings, refine_outputs

    given: dict[str, Any] = {"refiner": refiner, "confidence": confidence, "gaussian": gaussian, "bilateral": bilateral}
    settings = RefineSettings.of_method(
        method,
        background=background,
        iterations=iterations,
        par_iterations=par_iterations,
        bgr_minus_mean=bgr_minus_mean,
        key=key,
        **{name: value for name, value in given.items() if value is not None},
    )
    total = 0
    with resumable(), progress_bar() as progress:
        task = progress.add_task(f"refine {method}", total=None)

        def announce(count: int) -> None:
            nonlocal total
            total = count
            progress.update(task, total=count)

        computed = refine_outputs(
            inputs,
            out,
            settings,
            images=images,
            edges=edges,
            proposals=proposals,
            threads=threads,
            overwrite=overwrite,
            announce=announce,
            advance=lambda: progress.advance(task),
        )
    console.print(f"{total} masks in {out}: {computed} computed, {total - computed} skipped (up to date)")
