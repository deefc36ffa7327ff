"""Commands around the masks: export and import for labelling tools, scores, the review page."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer
from rich.table import Table

from amn_fast.cli._common import app, console, progress_bar
from amn_fast.errors import InputError

Format = Literal["coco", "cvat", "label-studio", "voc", "yolo-seg", "ultralytics-semantic", "fiftyone"]
SHOWN = 10


@app.command("export")
def export(
    masks: Annotated[Path, typer.Argument(help="A run folder, or a folder of masks ID.png.")],
    out: Annotated[Path, typer.Argument(help="New folder for the result.")],
    to: Annotated[Format, typer.Option(help="Format.")],
    classes: Annotated[Optional[Path], typer.Option(help="Class names, one per line; a run has its own.")] = None,  # noqa: UP045
    images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of images ID.*: copied into the result."),
    ] = None,
    instances: Annotated[
        bool, typer.Option("--instances", help="One object per connected component, not per class region.")
    ] = False,
    only: Annotated[
        Optional[Literal["accepted", "needs-work", "rejected"]],  # noqa: UP045
        typer.Option(help="Only the images with this decision on the review page."),
    ] = None,
    decisions: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="With --only: the page's decisions.json.", show_default="that of the run"),
    ] = None,
) -> None:
    """Write masks in the format of a labelling tool or a trainer; exit code 1 if an image could not be exported."""
    from amn_fast.review.decisions import decisions_of, read_decisions
    from amn_fast.review.exporting import export_masks
    from amn_fast.review.source import open_masks

    if only is None and decisions is not None:
        raise InputError("--decisions needs --only, the decision to export: accepted, needs-work or rejected")
    found = open_masks(masks, classes=classes, images=images)
    chosen = None
    if only is not None:
        decided = read_decisions(decisions or decisions_of(masks))
        chosen = [id for id, entry in decided.items() if entry["status"] == only]
    with progress_bar() as progress:
        task = progress.add_task("export", total=len(found.ids if chosen is None else chosen))
        job = export_masks(
            found,
            out,
            to,
            instances=instances,
            images=images is not None,
            only=chosen,
            advance=lambda: progress.advance(task),
        )
    _report(job.done, job.failures, job.notes, out, "exported")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="The file or folder that the tool exported.")],
    out: Annotated[Path, typer.Argument(help="New folder for the masks ID.png.")],
    from_: Annotated[Format, typer.Option("--from", help="Format.")],
    classes: Annotated[Path, typer.Option(help="Class names, one per line, or the run folder that has them.")],
    images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of images ID.*: ids and sizes are checked against it; yolo-seg needs it."),
    ] = None,
) -> None:
    """Read a labelling tool's export as palette PNG masks; exit code 1 if an image could not be read."""
    from amn_fast.data.labels import read_classes
    from amn_fast.review.importing import import_masks
    from amn_fast.review.source import run_classes

    names = run_classes(classes) if classes.is_dir() else read_classes(classes)
    with progress_bar() as progress:
        task = progress.add_task("import", total=None)
        job = import_masks(source, out, from_, names, images=images, advance=lambda: progress.advance(task))
    _report(job.done, job.failures, job.notes, out, "imported")


def _report(done: int, failures: dict[str, str], notes: list[str], out: Path, what: str) -> None:
    total = done + len(failures)
    console.print(f"{done} of {total} images {what}: {out}", soft_wrap=True)
    for note in notes:
        console.print(note, soft_wrap=True)
    for id, reason in list(failures.items())[:SHOWN]:
        console.print(f"  not {what}: {id!r}: {reason}", soft_wrap=True)
    if failures:
        console.print(f"{len(failures)} not {what}; all reasons: {out / 'failures.json'}", soft_wrap=True)
        raise typer.Exit(1)


@app.command("score")
def score_(
    masks: Annotated[Path, typer.Argument(help="Folder of masks, a run folder, or a COCO instances JSON.")],
    ground_truth: Annotated[Path, typer.Argument(help="Folder of ground-truth masks, or a COCO instances JSON.")],
    classes: Annotated[Optional[Path], typer.Option(help="Class names, one per line.")] = None,  # noqa: UP045
    unknown: Annotated[
        Literal["wrong", "ignore"],
        typer.Option(help="What 255 in a mask means: a miss, or a pixel that does not count."),
    ] = "wrong",
    output: Annotated[Optional[Path], typer.Option(help="Write all figures to this JSON file.")] = None,  # noqa: UP045
) -> None:
    """Compare masks with ground truth: mIoU, IoU per class, coverage, boundary F, confusions, worst images."""
    from amn_fast.data.labels import read_classes
    from amn_fast.files import write_json
    from amn_fast.review.scoring import pairs_of, score

    with progress_bar() as progress:
        task = progress.add_task("score", total=None)
        found = score(
            masks,
            ground_truth,
            read_classes(classes) if classes else None,
            unknown=unknown,
            advance=lambda: progress.advance(task),
        )
    if output is not None:
        write_json(output, asdict(found))
    figures = found.scores
    console.print(
        f"{found.scored} of {found.images} images with ground truth scored; {len(found.without_mask)} have no mask, "
        f"{len(found.failures)} cannot be compared, {len(found.without_ground_truth)} masks have no ground truth",
        soft_wrap=True,
    )
    for id, reason in list(found.failures.items())[:SHOWN]:
        console.print(f"  not scored: {id!r}: {reason}", soft_wrap=True)
    console.print(
        f"mIoU {_figure(figures['miou'])}, coverage {_figure(figures['coverage'])}, pixel accuracy "
        f"{_figure(figures['accuracy'])}, boundary F {_figure(found.boundary_f)}",
        soft_wrap=True,
    )
    table = Table("class", "IoU", "precision", "recall", "boundary F")
    for k, name in enumerate(found.classes):
        row = [_figure(figures[key][k]) for key in ("iou", "precision", "recall")]
        table.add_row(name, *row, _figure(found.boundary_f_by_class[k]))
    console.print(table)
    for true, predicted, pixels in pairs_of(found.confusion, found.classes):
        console.print(f"  {true} taken for {predicted}: {pixels} pixels", soft_wrap=True)
    shown = ", ".join(f"{id} ({value:.3f})" for id, value in found.worst[:SHOWN])
    console.print(f"worst images: {shown}", soft_wrap=True)
    if found.failures:
        raise typer.Exit(1)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@app.command()
def review(
    run: Annotated[Path, typer.Argument(help="Run folder with masks.")],
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page on 127.0.0.1 and save decisions there.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the server; 0 takes any free one.", min=0, max=65535)] = 8765,
) -> None:
    """Write RUN/review: all masks on one page, the most doubtful first, to accept, reject or mark for work."""
    from amn_fast.review.page import build_page
    from amn_fast.review.server import address, folder_address, make_server

    with progress_bar() as progress:
        task = progress.add_task("review", total=None)
        page = build_page(run, advance=lambda: progress.advance(task))
    console.print(f"{len(page.ids)} images, {page.built} computed, the others up to date")
    for id, reason in list(page.failures.items())[:SHOWN]:
        console.print(f"  cannot be shown: {id!r}: {reason}", soft_wrap=True)
    if not serve:
        console.print(f"page: {folder_address(page.folder)}", soft_wrap=True)
        return
    with make_server(page, port) as server:
        console.print(f"page: {address(server)} (Ctrl-C ends; decisions: {page.decisions})", soft_wrap=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("ended")
