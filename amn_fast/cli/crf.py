"""The dense CRF over folders."""

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from amn_fast.cli._common import app, console, progress_bar, resumable
from amn_fast.data.base import list_ids


@app.command()
def crf(
    images: Annotated[Path, typer.Argument(help="Folder of images.")],
    probabilities: Annotated[
        Path, typer.Argument(help="Folder of probabilities (L, H, W) or label maps (H, W): STEM.npy, .npz or .png.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the masks, STEM.png.")],
    preset: Annotated[Literal["irn", "psa", "deeplab"], typer.Option(help="Source of the kernel parameters.")] = "irn",
    gaussian: Annotated[
        Optional[tuple[float, float]],  # noqa: UP045
        typer.Option(help="Smoothness kernel: sigma_xy compat.", show_default="preset's"),
    ] = None,
    bilateral: Annotated[
        Optional[tuple[float, float, float]],  # noqa: UP045
        typer.Option(help="Appearance kernel: sigma_xy sigma_rgb compat.", show_default="preset's"),
    ] = None,
    iterations: Annotated[int, typer.Option(help="Mean-field iterations.", min=0)] = 10,
    gt_prob: Annotated[float, typer.Option(help="Label confidence of label maps, between 0 and 1.")] = 0.7,
    labels: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Number of labels of the label maps, 0 included.", show_default="those present in each"),
    ] = None,
    unknown: Annotated[int, typer.Option(help="Label of unknown pixels in label maps.")] = 255,
    key: Annotated[Optional[str], typer.Option(help="Name of the array in NPZ files with several.")] = None,  # noqa: UP045
    threads: Annotated[Optional[int], typer.Option(help="Images at once.", show_default="all CPUs")] = None,  # noqa: UP045
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace masks of other settings.")] = False,
) -> None:
    """Refine the probabilities or label maps of your own model with a dense CRF; what is up to date is skipped."""
    from amn_fast import crf_folder

    default = crf_folder.PRESETS[preset]
    settings = crf_folder.Settings(
        gaussian or default[0], bilateral or default[1], iterations, gt_prob, labels, unknown, key
    )
    pairs, without = crf_folder.find_pairs(images, probabilities, out)
    if without:
        console.print(f"{list_ids(without)} without probabilities in {probabilities}, left out")
    with resumable(), progress_bar() as progress:
        task = progress.add_task("dense CRF", total=len(pairs))
        computed = crf_folder.refine_folder(
            pairs, out, settings, threads=threads, overwrite=overwrite, advance=lambda: progress.advance(task)
        )
    console.print(f"{len(pairs)} masks in {out}: {computed} computed, {len(pairs) - computed} skipped (up to date)")
