"""The self-test of this installation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer
from rich.table import Table
from rich.text import Text

from amn_fast.cli._common import app, console

if TYPE_CHECKING:
    from amn_fast._selftest import Report


@app.command()
def selftest(
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="What to test.")] = "auto",
    json: Annotated[Optional[Path], typer.Option("--json", help="Also write the report to this file.")] = None,  # noqa: UP045
) -> None:
    """Check every operation's backends on this machine against the references; exit status 1 if one is wrong."""
    from amn_fast._selftest import selftest as run

    report = run(device)
    console.print(_table(report))
    print("error: largest difference, relative to the reference's largest value; reference: its time on the CPU, in ms")
    for found in report.results:
        if found.reason:
            print(f"{found.operation}, {found.backend} on {found.device}: {found.status}: {found.reason}")
    print(f"GPU: {report.machine['gpu'] or 'none that PyTorch sees, so no GPU kernel was tested'}")
    if json is not None:
        report.save(json)
    if report.failed:
        raise typer.Exit(1)


def _table(report: "Report") -> Table:
    """One row for each result, in 80 columns: a log has no more."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("operation", "backend", "device", "result"):
        table.add_column(heading, no_wrap=True)
    for heading in ("error", "ms", "reference"):
        table.add_column(heading, no_wrap=True, justify="right")
    for found in report.results:
        error = "" if found.error is None else f"{found.error:.1e}"
        times = ["" if value is None else f"{1000 * value:.1f}" for value in (found.seconds, found.reference_seconds)]
        table.add_row(*map(Text, [found.operation, found.backend, found.device, found.status, error, *times]))
    return table
