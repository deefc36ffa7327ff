"""Every setting of a configuration with its meaning, default and range: as a commented YAML file and as a table."""

import importlib
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from amn_fast._wording import values_in_words
from amn_fast.config import MODES, RECIPES, Config, Data

REQUIRED = object()
"""The default of a setting that has none."""


@dataclass(frozen=True)
class Setting:
    """One setting, or a section of settings.

    Attributes:
        name: with its section, "train_cam.epochs".
        meaning: a sentence or two; empty where the configuration gives none.
        values: type and range in words, "integer >= 1"; empty for a section.
        default: of the resolved configuration, or `REQUIRED`.
        alternatives: defaults under another mode or recipe, by its name.
        settings: those of a section; None for a single setting.
    """

    name: str
    meaning: str
    values: str
    default: Any
    alternatives: Mapping[str, Any]
    settings: "tuple[Setting, ...] | None" = None

    @property
    def key(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


def all_settings() -> tuple[Setting, ...]:
    """The settings and sections of `Config`, in the order of its definition."""
    return tuple(_settings(Config, "", {}))


def _settings(model: type[BaseModel], prefix: str, defaults: Mapping[str, Any]) -> Iterator[Setting]:
    for key, field in model.model_fields.items():
        name, annotation = f"{prefix}{key}", field.annotation
        default = defaults.get(key, REQUIRED if field.is_required() else field.get_default(call_default_factory=True))
        section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
        inner: tuple[Setting, ...] | None = None
        if section is not None:
            own = default.model_dump(mode="json") if isinstance(default, BaseModel) else {}
            inner = tuple(_settings(section, f"{name}.", own))
        meaning = field.description or ""
        yield Setting(
            name,
            meaning if inner is None else _section_meaning(section, meaning),
            "" if inner is not None else values_in_words(annotation, field),
            _plain(default),
            _alternatives(name, _plain(default)) if inner is None else {},
            inner,
        )


def _section_meaning(section: type[BaseModel] | None, meaning: str) -> str:
    """The section's first docstring line, which names the stage, or else the field's description."""
    text = (section.__doc__ or "").strip() if section is not None else ""
    return meaning or text.partition("\n")[0]


def _plain(value: Any) -> Any:
    """A default as YAML holds it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _alternatives(name: str, default: Any) -> dict[str, Any]:
    """The defaults of `name` in other modes and recipes, where they differ."""
    section, _, key = name.rpartition(".")
    found = {f"mode {mode}": sections.get(section, {}).get(key, default) for mode, sections in MODES.items()}
    if section == "train_seg":
        found |= {f"recipe {recipe}": values.get(key, default) for recipe, values in RECIPES.items()}
    return {which: plain for which, value in found.items() if (plain := _plain(value)) != default}


def to_markdown() -> str:
    """All settings as tables, for the documentation."""
    lines = [
        "# Configuration",
        "",
        "A configuration is a YAML file that names what differs from the defaults; `amn-fast init FOLDER` writes one",
        "for your own images. Every setting can also be given on the command line: `--set mask.background=0.3`.",
        "Relative paths in a file are relative to the file, those on the command line to the working directory.",
        "",
        "## Run",
        "",
    ]
    settings = all_settings()
    lines += _table([setting for setting in settings if setting.settings is None])
    for section in settings:
        if section.settings is not None:
            lines += ["", f"## {section.name}", "", section.meaning, "", *_table(section.settings)]
    return "\n".join([*lines, *_data_options()]) + "\n"


def _data_options() -> Iterator[str]:
    """Tables of what `data.options` may hold, from the functions that take it."""
    yield from ("", "## data.options", "", "Options by `data.kind`; relative paths are below `data.root`.")
    for kind in get_args(Data.model_fields["kind"].annotation):
        opener = getattr(importlib.import_module(f"amn_fast.data.{kind}"), f"open_{kind}")
        told = dict(re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", opener.__doc__, re.MULTILINE))
        yield from ("", f"### {kind}", "", "| Option | Meaning | Default |", "|---|---|---|")
        for name, default in (opener.__kwdefaults__ or {}).items():
            meaning = " ".join(told.get(name, "").split())
            yield f"| `{name}` | {meaning[:1].upper()}{meaning[1:]} | `{to_flow(default)}` |"


def _table(settings: "list[Setting] | tuple[Setting, ...]") -> list[str]:
    rows = ["| Setting | Meaning | Values | Default |", "|---|---|---|---|"]
    for setting in settings:
        default = "required" if setting.default is REQUIRED else f"`{to_flow(setting.default)}`"
        others = "".join(f"; {which}: `{to_flow(value)}`" for which, value in setting.alternatives.items())
        cells = (f"`{setting.name}`", setting.meaning, setting.values, default + others)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def to_flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def commented_yaml(heading: str, given: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """A configuration file with every setting: those of `given` set, the others as comments.

    Args:
        heading: lines for the top of the file.
        given: values by the settings' names; one for each setting that has no default.
        notes: sentences for settings, by name: why they have their values.

    Returns:
        the text. A line `#name: value` is a setting with the value that it has; without its `#` the file means the
        same. A setting in a section that is commented out needs the section's line too.
    """
    nested: dict[str, Any] = {}
    for name, value in given.items():
        section, _, key = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[key] = value
    values = Config.model_validate(nested).model_dump(mode="json")
    lines = [f"# {line}" for line in heading.splitlines()]
    for setting in all_settings():
        lines.append("")
        if setting.settings is None:
            lines += _explained(setting, notes, "")
            lines.append(f"{'' if setting.key in nested else '#'}{setting.key}: {to_flow(values[setting.key])}")
            continue
        section = nested.get(setting.key, {})
        lines += _wrapped(setting.meaning, "# ")
        lines.append(f"{'' if section else '#'}{setting.key}:")
        for inner in setting.settings:
            lines += _explained(inner, notes, "  ")
            mark = "  " if inner.key in section else "  #" if section else "#  "
            lines.append(f"{mark}{inner.key}: {to_flow(values[setting.key][inner.key])}")
    return "\n".join(lines) + "\n"


def _explained(setting: Setting, notes: Mapping[str, str], indent: str) -> list[str]:
    """Comments: meaning, range and defaults, and a note."""
    default = [] if setting.default is REQUIRED else [f"default {to_flow(setting.default)}"]
    others = [f"{to_flow(value)} in {which}" for which, value in setting.alternatives.items()]
    lines = [
        *_wrapped(setting.meaning, f"{indent}# "),
        *_wrapped("; ".join([setting.values, *default, *others]), f"{indent}# = "),
    ]
    return lines + _wrapped(notes.get(setting.name, ""), f"{indent}# -> ")


def _wrapped(text: str, prefix: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=prefix, subsequent_indent=prefix, break_long_words=False)
