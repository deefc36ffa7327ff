"""Hooks of `mkdocs build`: navigation by folder, and the pages that are generated from the code."""

import re
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from typer.cli import get_docs_for_click

import amn_fast
from amn_fast.cli import app
from amn_fast.settings import to_markdown

API = "reference/api.md"
GENERATED = {"reference/cli.md": lambda: command_line(), "reference/configuration.md": to_markdown}
"""Pages that exist in the built documentation alone, and what writes them."""


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
    """Add the references of the command line and of the configuration."""
    for page, write in GENERATED.items():
        files.append(File.generated(config, page, content=write()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """On the API page, document each `amn_fast.NAME` from the module that defines it, since it is loaded lazily.

    Names that the page does not list come last.
    """
    if page.file.src_uri != API:
        return markdown

    def flat(entry: re.Match[str]) -> str:
        name = entry["name"]
        if name not in amn_fast._NAMES:
            return entry[0]
        options = f'heading: "amn_fast.{name}", toc_label: "{name}"' + (f", {entry['more']}" if entry["more"] else "")
        return f"::: {getattr(amn_fast, name).__module__}.{name}\n    options: {{{options}}}\n"

    entries = re.compile(r"^::: amn_fast\.(?P<name>\w+)\n(?:    options: \{(?P<more>.*)\}\n)?", re.MULTILINE)
    others = sorted(set(amn_fast._NAMES) - {entry["name"] for entry in entries.finditer(markdown)})
    markdown += "\n## Others\n\n" * bool(others) + "".join(f"::: amn_fast.{name}\n" for name in others)
    return entries.sub(flat, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Load the script that makes the search work without a server from the site, not from a content network."""
    return output.replace("https://unpkg.com/iframe-worker/shim", get_relative_url("assets/iframe-worker.js", page.url))


def command_line() -> str:
    """The help of every command of `amn-fast` as Markdown."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="amn-fast", title="Command line")
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)  # each command has its own section
    return re.sub(r"  \[(required|default: .*?)\]$", r" (\1)", text, flags=re.MULTILINE)
