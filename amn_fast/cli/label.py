"""Labelling new images with a finished run."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from rich.table import Table

from amn_fast.cli._common import app, console, resumable
from amn_fast.errors import InputError

PRECISION = 0.9


@app.command()
def label(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Folder of images, list (.csv, .tsv, .txt, .parquet) or WebDataset archives; a path or a URL.",
        ),
    ],
    out: Annotated[str, typer.Argument(help="Folder for masks and tables; a path or a URL.")],
    labels: Annotated[
        Optional[Path],  # noqa: UP045  (typer reads the annotation)
        typer.Option(help="File of image-level labels: .csv, .json, cls_labels.npy."),
    ] = None,
    sidecars: Annotated[
        bool, typer.Option("--sidecars", help="Take labels from ID.json, ID.txt or ID.cls beside each image.")
    ] = False,
    predict_labels: Annotated[
        bool, typer.Option("--predict-labels", help="Take labels from the run's classifier.")
    ] = False,
    precision: Annotated[
        float, typer.Option(help="With --predict-labels: precision of each class on the training images.")
    ] = PRECISION,
    format: Annotated[
        Literal["png", "tar"], typer.Option(help="png: OUT/masks/ID.png; tar: OUT/masks/NNNNN.tar for each shard.")
    ] = "png",
    shard_size: Annotated[int, typer.Option(help="Images in a shard; an archive is a shard of its own.")] = 1000,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Processes on this machine; on GPUs as many as there are.", show_default="CPUs"),
    ] = None,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Images at a time in each process.", show_default="CPUs / workers"),
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Compute every N-th shard from the I-th on, I in 0..N-1, for job arrays.")
    ] = "0/1",
    ray: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Compute on Ray: address of the cluster, auto, or local for this machine."),
    ] = None,
    gpus: Annotated[float, typer.Option(help="With --ray: GPUs of each task, such as 0.5.")] = 0.0,
    device: Annotated[
        Optional[Literal["cpu", "cuda"]],  # noqa: UP045
        typer.Option(help="Where networks run.", show_default="run's setting"),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for an image; then it is an error; 0 sets no limit.")] = 600,
    max_errors: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Stop when more images are errors.", show_default="never"),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Compute the images again that are errors in finished shards.")
    ] = False,
) -> None:
    """Label new images with the networks of a finished run. Finished shards are skipped; a killed job resumes."""
    from amn_fast.label.jobs import Options, label_images

    options = Options(
        labels=labels,
        sidecars=sidecars,
        predict=precision if predict_labels else None,
        shard_size=shard_size,
        archives=format == "tar",
        workers=workers,
        threads=threads,
        share=_share(shard),
        ray=ray,
        gpus=gpus,
        device=device,
        timeout=timeout or None,
        max_errors=max_errors,
        retry_failed=retry_failed,
    )
    with resumable():
        found = label_images(run, source, out, options)
    console.print(f"{found.finished} images, {found.errors} errors, {found.shards_done} shards in {out}")


@app.command("label-status")
def label_status(
    out: Annotated[str, typer.Argument(help="Folder of a labelling job; a path or a URL.")],
    errors: Annotated[int, typer.Option(help="Failed images to list.", min=0)] = 10,
) -> None:
    """Show how far a labelling job is, which images failed, and the speed of each process."""
    from amn_fast.label.jobs import job_status
    from amn_fast.label.progress import duration

    status = job_status(out, errors)
    of = f" of {status.of_images}" if status.of_images is not None else ""
    console.print(f"finished: {status.shards} of {status.of_shards} shards, {status.images}{of} images")
    console.print(f"errors: {status.errors}")
    for row in status.failed:
        console.print(f"  {row.id}: {row.error}")
    if status.running:
        table = Table("share", "state of", "host", "images", "errors", "images/s", "left")
        for state in status.running:
            left = duration(state["seconds_left"]) if state["seconds_left"] is not None else "-"
            counts = f"{state['images']} of {state['of'] or '?'}"
            cells = [state["share"], state["time"], state["host"], counts, state["errors"], state["images_per_second"]]
            table.add_row(*map(str, cells), left)
        console.print(table)


def _share(text: str) -> tuple[int, int]:
    found: Any = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found:
        raise InputError(f"--shard is {text!r}, expected I/N such as 0/16")
    return int(found[1]), int(found[2])
