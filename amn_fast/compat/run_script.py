"""`amn-fast shim`: runs a script that imports pydensecrf or bilateralfilter, unchanged, on amn_fast."""

import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from amn_fast.errors import InputError

SHIM = Path(__file__).parent / "shim"
"""A folder that holds `pydensecrf` and `bilateralfilter` alone."""


def run_script(arguments: Sequence[str]) -> None:
    """Run the script arguments[0] as `python` would, with the other arguments, and answer these imports.

    The processes that the script starts find it too: those of multiprocessing, and those of this Python.

    Raises:
        InputError: there is no script.
        SystemExit: the script's own, or status 1 after its traceback.
    """
    if not arguments:
        raise InputError("shim needs a script: amn-fast shim SCRIPT [ARGUMENTS]")
    script = Path(arguments[0])
    if not script.is_file():
        raise InputError(f"{script}: there is no such script")
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SHIM), *([inherited] if inherited else [])])
    # Before the installed packages, where pydensecrf itself may be, and after the script's own folder.
    sys.path[:0] = [str(script.resolve().parent), str(SHIM)]
    sys.argv = list(arguments)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except Exception:
        traceback.print_exc()
        sys.exit(1)
