"""`amn-fast` called in this process: starting Python and PyTorch anew takes seconds."""

import contextlib
import io
import sys
from pathlib import Path
from unittest import mock


def command(*arguments: object, cwd: Path | str = ".") -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command line, on a terminal of 300 columns."""
    from amn_fast import _console, cli

    output, errors = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        for console in (_console.output, _console.errors):
            stack.enter_context(mock.patch.object(console, "_width", 300))
        stack.enter_context(mock.patch.object(sys, "argv", ["amn-fast", *map(str, arguments)]))
        stack.enter_context(contextlib.chdir(cwd))
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(errors))
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
    assert "Traceback" not in errors.getvalue(), errors.getvalue()
    return status, output.getvalue(), errors.getvalue()


def refusal(*arguments: object) -> str:
    """The one sentence on stderr of a command that fails."""
    status, _, errors = command(*arguments)
    assert status == 1, errors
    sentence = errors.strip()
    assert sentence.startswith("amn-fast: "), sentence
    assert "\n" not in sentence, sentence
    return sentence.removeprefix("amn-fast: ")
