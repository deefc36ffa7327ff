"""What the commands print is text: no class or file name is taken for markup, and none ends in an error."""

import importlib.util
import io

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="the command line needs rich")

NAMES = ["[red]cat", "[/]", '<b>&"', "[a]b.jpg", ":cat:", "猫", "a" * 300, "[link=x]y[/link]", "[/red", "\\[bold]"]
ESCAPED = {"a\x1b[31mb": r"a\x1b[31mb", "tab\there": r"tab\x09here", "latin\udce9.jpg": r"latin\udce9.jpg"}


def test_names_are_printed_as_they_are():
    from rich.table import Table

    from amn_fast._console import TextConsole, progress_bar

    names = {**dict(zip(NAMES, NAMES, strict=True)), **ESCAPED}
    for name, shown in names.items():
        console = TextConsole()
        console.file = io.StringIO()
        console.print(f"{name}: 3 images in {name}")
        console.print(name, style="bold")
        assert console.file.getvalue() == f"{shown}: 3 images in {shown}\n{shown}\n"
        console = TextConsole()
        console.file, console.width = io.StringIO(), 2000
        table = Table(name, "images", title=name)
        table.add_row(name, "3")
        console.print(table)
        assert console.file.getvalue().count(shown) == 3
        console.file = io.StringIO()
        progress = progress_bar()
        progress.add_task(name, total=1, note=name)
        console.print(progress.make_tasks_table(progress.tasks))
        assert console.file.getvalue().count(shown) == 2


def test_a_terminal_without_unicode_shows_escapes():
    from amn_fast._console import TextConsole

    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = TextConsole()
    console.file = file
    console.print("猫")
    file.flush()
    assert file.buffer.getvalue() == rb"\u732b" + b"\n"
