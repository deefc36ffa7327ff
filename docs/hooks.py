"""Hooks of `mkdocs build`: navigation by folder, and the pages that are generated from the code."""

import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

import amn_fast
from amn_fast.cli import app

GENERATED = {"reference/cli.md": "the command line"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace each folder in the navigation by its pages, in alphabetical order."""
    docs = Path(config.docs_dir)
    for entry in config.nav or []:
        for title, place in entry.items():
            if isinstance(place, str) and place.endswith("/"):
                pages = {str(path.relative_to(docs)) for path in (docs / place).glob("*.md")}
                entry[title] = sorted(pages | {page for page in GENERATED if page.startswith(place)})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference of the command line."""
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """On the API page, document `amn_fast.NAME`, which is loaded lazily, from the module that defines it."""
    if page.file.src_uri != "reference/api.md":
        return markdown
    missing = [name for name in amn_fast._NAMES if f"::: amn_fast.{name}\n" not in markdown]
    if missing:
        raise PluginError(f"reference/api.md lacks {', '.join(missing)}")

    def flat(line: re.Match[str]) -> str:
        name, options = line["name"], (line["options"] or "").strip(" ,")
        given = f'heading: "amn_fast.{name}", toc_label: "{name}"' + (f", {options}" if options else "")
        return f"::: {amn_fast._NAMES.get(name, 'amn_fast')}.{name}\n    options: {{{given}}}\n"

    pattern = r"^::: amn_fast\.(?P<name>\w+)\n(?:    options: \{(?P<options>.*)\}\n)?"
    return re.sub(pattern, lambda line: flat(line) if line["name"] in amn_fast._NAMES else line[0], markdown, flags=re.M)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Load the script that makes the search work without a server from the site, not from a content network."""
    return output.replace("https://unpkg.com/iframe-worker/shim", get_relative_url("assets/iframe-worker.js", page.url))


def command_line() -> str:
    """The help of every command of `amn-fast` as Markdown."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="amn-fast", title="Command line")
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)  # each command has its own section
    return re.sub(r"  \[(required|default: .*?)\]$", r" (\1)", text, flags=re.MULTILINE)
