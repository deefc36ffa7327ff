"""The `amn-fast` command, also where the command line's own dependencies are missing."""

import importlib.util
import sys

from amn_fast import info
from amn_fast.errors import InputError


def main() -> None:
    """Run the command line; without its dependencies `info` and `shim` work, the rest names the extra to install."""
    absent = [name for name in ("typer", "rich", "pydantic", "yaml") if importlib.util.find_spec(name) is None]
    if not absent:
        from amn_fast.cli import main as run

        run()
    elif sys.argv[1:] == ["info"]:
        print(info())
    elif sys.argv[1:2] == ["shim"]:
        from amn_fast.compat.run_script import run_script

        try:
            run_script(sys.argv[2:])
        except InputError as error:
            sys.exit(f"amn-fast: {error}")
    else:
        sys.exit(
            f"amn-fast: {', '.join(absent)} not installed; `pip install 'amn-fast[pipeline]'` brings the command line"
        )


if __name__ == "__main__":
    main()
