"""The command line: `amn-fast demo`, `amn-fast run CONFIG`, and a command for each stage."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from amn_fast import info as describe_installation
from amn_fast.config import Config, read_config
from amn_fast.errors import BackendError, InputError, MissingExtra

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Image-level labels to segmentation masks.",
)
console = Console()

ConfigArgument = Annotated[
    str, typer.Argument(help="A YAML file, or a shipped configuration: demo, msrc, voc6, voc12, coco14.")
]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads the annotation)
    typer.Option("--set", help="A setting that wins over the file, e.g. --set mask.background=0.3; repeatable."),
]
RunOption = Annotated[Optional[Path], typer.Option("--run", help="Run folder; wins over the file.")]  # noqa: UP045
RootOption = Annotated[Optional[Path], typer.Option("--root", help="Folder of the data set; wins over the file.")]  # noqa: UP045


def _config(config: str, settings: list[str] | None, run: Path | None, root: Path | None) -> Config:
    overrides = list(settings or [])
    if run is not None:
        overrides.append(f"run={run}")
    if root is not None:
        overrides.append(f"data.root={root}")
    return read_config(config, overrides)


@app.command()
def run(config: ConfigArgument, set: SetOption = None, run: RunOption = None, root: RootOption = None) -> None:
    """Run all stages: pictures and their labels in, masks and a report out. What is done already is skipped."""
    _run_all(_config(config, set, run, root))


@app.command()
def demo(
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path("runs/demo"), set: SetOption = None
) -> None:
    """Make the demo's pictures, run all stages on them, and say where the masks and the report are."""
    _run_all(_config("demo", set, run, run / "data"))


def _run_all(config: Config) -> None:
    from amn_fast import pipeline
    from amn_fast.report import summary_table

    pipeline.run(config)
    console.print(summary_table(config.run / "metrics.json"))
    console.print(f"masks:  {config.run / 'masks'}\nreport: {config.run / 'report.html'}")


def _add_stage(name: str, module: str, text: str) -> None:
    def command(config: ConfigArgument, set: SetOption = None, run: RunOption = None, root: RootOption = None) -> None:
        import importlib

        importlib.import_module(f"amn_fast.stages.{module}").run(_config(config, set, run, root))

    app.command(name, help=text)(command)


for _name, _text in (
    ("train-cam", "Train the classifier whose activations start everything."),
    ("make-cam", "Class activations of every picture."),
    ("refine-seed", "Dense CRF on the CAM: the seeds that AMN learns from."),
    ("train-amn", "Train the activation manipulation network."),
    ("make-amn-cam", "AMN's activations of every picture."),
    ("refine-amn-seed", "Dense CRF on AMN's activations: the seeds that IRN learns from."),
    ("train-irn", "Train IRN's edges."),
    ("make-mask", "Random walk over the edges, threshold, pseudo-masks."),
    ("evaluate", "Scores against ground truth, threshold curves, report."),
):
    _add_stage(_name, _name.replace("-", "_"), _text)


@app.command()
def info() -> None:
    """Versions, devices and backends, and why one is missing."""
    print(describe_installation())


def main() -> None:
    """Run the command line; an expected error is one sentence on stderr and exit status 1."""
    try:
        app(standalone_mode=True)
    except (InputError, BackendError, MissingExtra, OSError) as error:
        print(f"amn-fast: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
