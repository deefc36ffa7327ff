"""Commands about the installation and other people's scripts."""

from typing import Annotated

import typer

from amn_fast._info import info as describe_installation
from amn_fast.cli._common import app


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def shim(
    script: Annotated[
        list[str],
        typer.Argument(help="A Python script, `-m MODULE`, a folder or `-`, then its own arguments.", metavar="SCRIPT"),
    ],
) -> None:
    """Run an unchanged script; amn_fast answers its `import pydensecrf` and `import bilateralfilter`."""
    from amn_fast.compat.run_script import run_script

    run_script(script)


@app.command()
def info() -> None:
    """Versions, devices and backends, and why one is missing."""
    print(describe_installation())
