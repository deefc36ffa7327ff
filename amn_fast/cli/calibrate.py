"""The command that chooses the mask threshold from a few trusted masks or answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.table import Table

from amn_fast.cli._common import app, console
from amn_fast.errors import InputError

if TYPE_CHECKING:
    from amn_fast.calibrate.estimate import Interval
    from amn_fast.calibrate.run import Calibration


@app.command()
def calibrate(
    run: Annotated[Path, typer.Argument(help="Run folder with masks.")],
    questions: Annotated[
        Optional[Path],  # noqa: UP045  (typer reads the annotation)
        typer.Option(help="Write questions about pixels to this new CSV file; views of them to RUN/calibration."),
    ] = None,
    answers: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The same file with the column answer filled in: a class name, background, or unsure."),
    ] = None,
    masks: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of trusted masks ID.png of five or more of the run's images."),
    ] = None,
    points: Annotated[int, typer.Option(help="Number of questions; 4 or more for each class.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Random seed of the questions and of the bootstrap.", min=0)] = 0,
) -> None:
    """Choose the mask threshold and state how good the masks are, from answers about pixels or trusted masks."""
    given = [name for name, value in (("questions", questions), ("answers", answers), ("masks", masks)) if value]
    if len(given) != 1:
        found = f"--{' and --'.join(given)}" if given else "none of them"
        raise InputError(f"calibrate: found {found}, expected one of --questions FILE, --answers FILE, --masks DIR")
    from amn_fast.calibrate import run as calibration

    if questions is not None:
        count = calibration.write_questions(run, questions, points=points, random_seed=seed)
        console.print(f"{count} questions: {questions} (views: {run / calibration.FOLDER})", soft_wrap=True)
        console.print(
            f"fill in the column answer, then run: amn-fast calibrate {run} --answers {questions}", soft_wrap=True
        )
        return
    if answers is not None:
        result = calibration.from_answers(run, answers)
    else:
        assert masks is not None
        result = calibration.from_masks(run, masks, random_seed=seed)
    calibration.store(run, result)
    _print(result)
    console.print(f"results: {run / calibration.RESULT}", soft_wrap=True)
    if result.by_doubt:
        low, high = result.by_doubt[-1][1], result.by_doubt[0][1]
        where = run / calibration.FOLDER / "expected_iou.csv"
        console.print(f"expected IoU by doubt, {high:.2f} to {low:.2f}: {where}", soft_wrap=True)


def _print(found: "Calibration") -> None:
    table = Table("", "threshold", "mIoU", "precision", "recall", title=None)
    for name, quality in (("chosen", found.chosen), ("current", found.current)):
        if quality is not None:
            figures = (quality.miou, quality.precision, quality.recall)
            table.add_row(name, f"{quality.threshold:g}", *map(_figure, figures))
    what = "answers" if found.source == "answers" else "trusted masks"
    console.print(f"quality of the masks by {found.used} {what}, with 95 % intervals")
    console.print(table)
    table = Table("class", "IoU at the chosen threshold")
    for name, iou in zip(found.classes, found.chosen.iou, strict=True):
        table.add_row(name, _figure(iou))
    console.print(table)
    if found.current is None or found.current.threshold != found.chosen.threshold:
        console.print(f"to use the chosen threshold, run again with: --set mask.background={found.chosen.threshold:g}")
    else:
        console.print(f"the run uses the chosen threshold, {found.chosen.threshold:g}")


def _figure(found: "Interval") -> str:
    return "-" if found.value != found.value else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
