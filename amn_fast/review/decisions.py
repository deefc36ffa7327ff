"""What a reviewer decided: decisions.json, written by the review page and read by `export --only`."""

from pathlib import Path
from typing import Any

from amn_fast.data.labels import read_json
from amn_fast.errors import InputError
from amn_fast.files import write_json

STATUSES = ("accepted", "needs-work", "rejected")
VERSION = 1
FOLDER = "review"
"""Folder of the review page in a run folder."""

Decision = dict[str, Any]
"""status: one of `STATUSES`; time: milliseconds since 1970; mask: digest of the mask that was looked at."""


def read_decisions(path: Path | str) -> dict[str, Decision]:
    """The decisions by image id.

    Raises:
        InputError: the file is missing or is not a file of decisions.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.get("version") != VERSION or not isinstance(value.get("decisions"), dict):
        raise InputError(f'{path}: is not a file of decisions, expected {{"version": {VERSION}, "decisions": {{...}}}}')
    for id, entry in value["decisions"].items():
        check_decision(entry, f"{path}: image {id!r}")
    return value["decisions"]


def decisions_of(run: Path) -> Path:
    """The decisions of a run's review page.

    Raises:
        InputError: there are none.
    """
    path = run / FOLDER / "decisions.json"
    if not path.is_file():
        raise InputError(f"{run}: has no {FOLDER}/decisions.json; decide with `amn-fast review`, or pass --decisions")
    return path


def check_decision(entry: Any, where: str) -> None:
    """Raise InputError unless `entry` is a decision."""
    if not isinstance(entry, dict) or set(entry) != {"status", "time", "mask"}:
        raise InputError(f"{where}: the decision is {entry!r:.80}, expected status, time and mask")
    if entry["status"] not in STATUSES:
        raise InputError(f"{where}: the status is {entry['status']!r:.80}, expected {', '.join(STATUSES)}")
    if type(entry["time"]) is not int or not isinstance(entry["mask"], str):
        raise InputError(f"{where}: time and mask are {entry!r:.80}, expected an integer and a text")


def write_decisions(path: Path | str, decisions: dict[str, Decision]) -> None:
    """Write the decisions, atomically."""
    write_json(path, {"version": VERSION, "decisions": decisions})
