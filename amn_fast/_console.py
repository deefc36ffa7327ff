"""Consoles and progress bars that show the user's names as they are.

A class `[red]cat` or a file `[/].jpg` is text, never markup; what the terminal cannot show is escaped.
"""

import re
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class TextConsole(Console):
    """A rich console whose strings are text: no markup, no emoji codes, no highlighting; long lines are not broken."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """As `Console.print`; a line of text is wrapped by the terminal, so that a path can be copied from a log."""
        if all(isinstance(part, str | Text) for part in objects):
            options.setdefault("soft_wrap", True)
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed passes here, those in tables too."""
        return super().render_str(printable(text, self.encoding), **options)


def printable(text: str, encoding: str = "utf-8") -> str:
    r"""Escape control characters and what `encoding` lacks: "a\x1b" -> "a\\x1b". Line feeds stay."""
    text = _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


class _Words(ProgressColumn):
    """A text of a task, as it is."""

    def __init__(self, text_of: Callable[[Task], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self._text_of = text_of

    def render(self, task: Task) -> Text:
        return Text(printable(self._text_of(task)))


def progress_bar(shown: bool = True) -> Progress:
    """A bar on standard error: what, how many of how many, a note (`note=...`), time left."""
    return Progress(
        _Words(lambda task: f"  {task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        _Words(lambda task: task.fields.get("note", "")),
        TimeRemainingColumn(),
        console=errors,
        disable=not shown,
    )


output = TextConsole()
errors = TextConsole(stderr=True)
