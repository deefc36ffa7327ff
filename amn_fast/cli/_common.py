"""What the commands share: the application, the options of a run, configuration, progress."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer

from amn_fast._console import output as console
from amn_fast._console import progress_bar
from amn_fast.config import SHIPPED_NAMES, Config, read_config

__all__ = [
    "ConfigArgument", "OverwriteOption", "RootOption", "RunOption", "SetOption", "app", "console", "progress_bar",
    "read_settings", "resumable",
]  # fmt: skip

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Image-level labels to segmentation masks.",
)

ConfigArgument = Annotated[
    str, typer.Argument(help=f"A YAML file, or a shipped configuration: {', '.join(SHIPPED_NAMES)}.")
]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads the annotation)
    typer.Option("--set", help="A setting that wins over the file, e.g. --set mask.background=0.3; repeatable."),
]
RunOption = Annotated[Optional[Path], typer.Option("--run", help="Run folder; wins over the file.")]  # noqa: UP045
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace results of a finished training, or of other settings.")
]
RootOption = Annotated[Optional[Path], typer.Option("--root", help="Folder of the data set; wins over the file.")]  # noqa: UP045


def read_settings(config: str, settings: list[str] | None, run: Path | None, root: Path | None) -> Config:
    overrides = list(settings or [])
    if run is not None:
        overrides.append(f"run={json.dumps(str(run))}")  # quoted: a path is text, whatever YAML makes of it
    if root is not None:
        overrides.append(f"data.root={json.dumps(str(root))}")
    return read_config(config, overrides)


@contextmanager
def resumable() -> Iterator[None]:
    """Say on Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        print("amn-fast: interrupted; the same command resumes", file=sys.stderr)
        raise typer.Exit(130) from None
