"""The records of a run folder: of each finished stage the settings and inputs of its items, and the files it wrote.

A stage per image has one item for each id; any other stage has one item, "".
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amn_fast.errors import InputError
from amn_fast.files import write_text
from amn_fast.pipeline.table import Stage

RECORDS = "stages"
"""Folder of the records: run.json marks a run folder, STAGE.json tells what a stage wrote, STAGE.new is in work."""

Inputs = dict[str, str]


@dataclass
class Item:
    """Hashes of an item's inputs, by name, and of its outputs, by path in the run folder."""

    inputs: Inputs
    outputs: dict[str, str]


@dataclass
class Record:
    """The finished run of a stage.

    Attributes:
        settings: what the outputs depend on, by key of the configuration.
        items: by id.
        measured: seconds, peak memory, whether it was resumed; or the folder that the outputs were imported from.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    items: dict[str, Item] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def imported(self) -> bool:
        return "from" in self.measured

    def outputs(self) -> dict[str, str]:
        """Hashes of all outputs, by path."""
        return {path: found for item in self.items.values() for path, found in item.outputs.items()}


def record_path(root: Path, stage: Stage) -> Path:
    return root / RECORDS / f"{stage.name}.json"


def read_record(root: Path, stage: Stage) -> Record | None:
    """The record of a stage; None where it has not finished.

    Raises:
        InputError: the file is damaged.
    """
    path = record_path(root, stage)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if "items" not in values:  # an earlier version's
            return Record({"format": 1}, {}, {}) if values.get("done") else None
        items = {id: Item(dict(inputs), dict(outputs)) for id, (inputs, outputs) in values["items"].items()}
        return Record(dict(values["settings"]), items, dict(values["measured"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} is no record of a stage, remove it to run {stage.name} again") from error


def write_record(root: Path, stage: Stage, record: Record) -> None:
    """Write a record, atomically."""
    items = {id: [item.inputs, item.outputs] for id, item in record.items.items()}
    values = {"stage": stage.name, "settings": record.settings, "measured": record.measured, "items": items}
    write_text(record_path(root, stage), json.dumps(values, indent=0, sort_keys=True) + "\n")
