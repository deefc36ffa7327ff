"""The command line: `amn-fast demo`, `amn-fast run CONFIG`, and a command for each stage."""

import os
import sys

# Read by PyTorch when it is imported: large tensors lie in large memory pages. Networks run up to 1.3 times as fast,
# as most of their tensors are new memory, whose pages the system maps one by one.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from amn_fast._console import printable
from amn_fast.cli import (  # noqa: F401  (each registers its commands)
    calibrate,
    convert,
    crf,
    data,
    init,
    label,
    refine,
    review,
    runs,
    selftest,
    tools,
)
from amn_fast.cli._common import app
from amn_fast.errors import BackendError, InputError, MissingExtra

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; an expected error is one sentence on stderr and exit status 1."""
    try:
        app(standalone_mode=True)
    except (InputError, BackendError, MissingExtra, OSError) as error:
        print(f"amn-fast: {printable(_one_line(error))}", file=sys.stderr)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
