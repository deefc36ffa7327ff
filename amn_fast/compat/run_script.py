"""`amn-fast shim`: runs an unchanged program that imports pydensecrf or bilateralfilter, on amn_fast."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from amn_fast.errors import InputError

SHIM = Path(__file__).parent / "shim"
"""A folder whose only packages are `pydensecrf` and `bilateralfilter`."""


def run_script(arguments: Sequence[str]) -> None:
    """Become `python ARGUMENTS` with `pydensecrf` and `bilateralfilter` answered by amn_fast.

    This Python is started anew with the folder `SHIM` at the front of PYTHONPATH: after the script's own folder and
    before the installed packages, where the originals may be. So a script, `-m MODULE`, `-c CODE`, a folder or archive
    with `__main__.py`, and `-` behave as they do under `python`, and so do the processes that they start.

    Args:
        arguments: what `python` would get.

    Raises:
        InputError: there is no program, or no such file.
        SystemExit: with the program's status, on Windows; elsewhere the program replaces this process.
    """
    if not arguments:
        raise InputError("shim needs a script: amn-fast shim SCRIPT [ARGUMENTS]")
    if not arguments[0].startswith("-") and not Path(arguments[0]).exists():
        raise InputError(f"{arguments[0]}: there is no such script")
    inherited = os.environ.get("PYTHONPATH")
    if inherited and not sys.flags.ignore_environment:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(SHIM), inherited])
    else:
        os.environ["PYTHONPATH"] = str(SHIM)
    command = [sys.executable, *_interpreter_options(), *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform == "win32":  # where exec returns to the shell before the program ends
        sys.exit(subprocess.call(command))
    os.execv(sys.executable, command)


def _interpreter_options() -> list[str]:
    """This Python's own options, but those under which it would not read PYTHONPATH."""
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [option for option in options if option not in ("-I", "-E")]
