"""What the outputs of a stage depend on: settings and inputs, and in words what has changed of them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amn_fast.config import Config, is_path
from amn_fast.data.base import Dataset
from amn_fast.pipeline.contents import digest
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.records import Inputs
from amn_fast.pipeline.table import CLASSES, GROUND_TRUTH, IMAGE, LABELS, MASK, STAGES, TRUSTED, Stage, producer

FORMAT = 2
"""Raised when a stage computes something else than before under the same configuration."""

NO_INFLUENCE = frozenset({
    "train_seg.masks",  # the masks count by their content
    "train_seg.recipe",  # a name for other settings
    "eval_seg.data", "eval_seg.options",  # the set that they lead to counts by its content
})  # fmt: skip
"""Settings of a section that results do not depend on."""

WANTS_LESS = {"eval_seg.save_masks": False, "store": "minimal"}
"""Values of settings that outputs made with another value serve as well."""

BEFORE = {"precision": "float32", "training_precision": "auto", "store": "full"}
"""Values of settings in the runs of versions that did not have them."""

ADDED_LATER = {"train_cam.kind": "network", "train_amn.kind": "network", "mask.kind": "walk"}
"""Settings that earlier versions did not have, each with the value that stands for what these did."""

UNKNOWN = "unknown"


def settings_of(work: Workspace, stage: Stage) -> dict[str, Any]:
    """What the outputs of a stage depend on in the configuration, by key; a file of weights counts by its content."""
    values = work.config.model_dump(mode="json")
    found: dict[str, Any] = {"format": FORMAT}
    for key in stage.settings:
        found |= _flat(key, _at(values, key))
    for key, value in found.items():
        if key.rsplit(".", 1)[-1] == "weights" and is_path(value):
            found[key] = f"file of hash {work.contents.hash(Path(value)) or 'none'}"
    return {
        k: value
        for k, value in found.items()
        if k not in NO_INFLUENCE and not (k in ADDED_LATER and value == ADDED_LATER[k])
    }


def _at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values


def _flat(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or key in NO_INFLUENCE:
        return {key: value}
    return {full: inner for name, part in value.items() for full, inner in _flat(f"{key}.{name}", part).items()}


def exists(config: Config, stage: Stage) -> bool:
    """Whether the configuration has the stage."""
    values = config.model_dump(mode="json")
    return all(_at(values, key) == value for key, value in stage.when)


def stages_of(config: Config) -> list[Stage]:
    """The stages of `amn-fast run`, in order."""
    return [s for s in STAGES if (config.segmentation or not s.segmentation) and exists(config, s)]


def item_key(settings: dict[str, Any], inputs: Inputs) -> str:
    """What an item of a stage depends on, as a short text."""
    return digest([settings, inputs])


def input_names(config: Config, stage: Stage) -> tuple[str, ...]:
    """The inputs of a stage, without the outputs of stages that the configuration does not have.

    A folder of masks in the configuration takes the place of the run's.
    """
    values = config.model_dump(mode="json")
    further = [name for key, value, name in stage.inputs_when if _at(values, key) == value]
    names = tuple(
        name for name in (*stage.inputs, *further) if (before := producer(name)) is None or exists(config, before)
    )
    if stage.segmentation and config.train_seg.masks is not None:
        return tuple(MASK if name.startswith("masks/") else name for name in names)
    return names


def ids_of(work: Workspace, stage: Stage) -> tuple[str, ...]:
    """The items of a stage."""
    return work.dataset.ids if stage.per_image else ("",)


def inputs_of(work: Workspace, stage: Stage, id: str) -> Inputs:
    """Hashes of the inputs of one item, by name; "" for a file that is not there.

    An output of an earlier stage counts as that stage recorded it: when it is damaged, it will be computed again, and
    only if it comes out different this item depends on something else. UNKNOWN where that stage has not finished.
    """
    found: Inputs = {}
    for name in input_names(work.config, stage):
        evaluated = name.startswith("evaluated ")
        dataset = work.evaluated if evaluated else work.dataset
        kind = name.removeprefix("evaluated ")
        ids = (id,) if stage.per_image else dataset.ids
        if kind == CLASSES:
            found[CLASSES] = digest(list(dataset.classes))
            found["order of the ids"] = digest(list(dataset.ids))
        elif kind == TRUSTED:  # those that there are, so that a folder without any changes nothing
            masks = {one: file for one in ids if (file := work.trusted(one)) is not None}
            found |= {f"{TRUSTED}:{one}": work.contents.hash(file) for one, file in masks.items()}
        elif kind in (IMAGE, LABELS, GROUND_TRUTH, MASK):
            for one in ids:
                found[f"{kind}:{one}"] = _content(work, dataset, kind, one)
            if kind == GROUND_TRUTH:
                found["rules of the ground truth"] = digest(_rules(work.config, evaluated))
        else:
            stage_before = producer(name)
            assert stage_before is not None
            written = work.written_by(stage_before)
            for path in {name.replace("{id}", one) for one in ids}:
                found[path] = UNKNOWN if written is None else written.get(path, "")
    return found


def previous_output(
    work: Workspace, stage: Stage, output: str, settings: tuple[str, ...], inputs: tuple[str, ...]
) -> Callable[[str], Path | None]:
    """For a stage with an output that depends on some of its settings and inputs only.

    Returns:
        the function of an id that gives the file of that output from the last run; None where one of these settings
        and inputs has changed since then, or the file is not as it was written.
    """
    record = work.record(stage)

    def part(found: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in found.items() if key.split(".")[0] in ("format", *settings)}

    same_settings = record is not None and part(BEFORE | record.settings) == part(settings_of(work, stage))

    def previous(id: str) -> Path | None:
        item = record.items.get(id) if record and same_settings else None
        if item is None:
            return None
        path, now = output.replace("{id}", id), inputs_of(work, stage, id)
        names = [f"{IMAGE}:{id}" if name == IMAGE else name.replace("{id}", id) for name in inputs]
        same = all(item.inputs.get(name) == now[name] for name in names)
        return work.root / path if same and work.contents.hash(work.root / path) == item.outputs.get(path) else None

    return previous


def _content(work: Workspace, dataset: Dataset, kind: str, id: str) -> str:
    if kind == LABELS:
        return "".join("01"[int(value)] for value in dataset.labels(id))
    if kind == MASK:
        file: Path | None = Path(str(work.config.train_seg.masks)) / f"{id}.png"
    else:
        file = dataset.image_file(id) if kind == IMAGE else dataset.truth_file(id)
    return "" if file is None else work.contents.hash(file)


def _rules(config: Config, evaluated: bool) -> dict[str, Any]:
    """Options that say how a file is read; those that are text name files, which count by their content."""
    options = config.data.options | (config.eval_seg.options if evaluated else {})
    return {key: value for key, value in options.items() if not isinstance(value, str | None)}


def changes(before: Inputs, now: Inputs) -> list[str]:
    """What differs between two sets of inputs, in words: "3 images changed (a, b, c)"."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            what = "changed" if name in before and name in now else "added" if name in now else "removed"
            kind, _, id = name.partition(":")
            if (output := _output(name)) is not None:
                kind, id = output
            groups.setdefault((kind, what), []).append(id)
    listed = {what for kind, what in groups if kind == IMAGE}
    words = []
    for (kind, what), ids in groups.items():
        follows = what in listed and what != "changed" and kind != IMAGE
        if follows or (kind == "order of the ids" and listed & {"added", "removed"}):
            continue  # said with the images
        words.append(f"{kind} {what}" if ids == [""] else f"{_counted(kind, len(ids))} {what} ({_first(ids)})")
    return words


def _output(name: str) -> tuple[str, str] | None:
    """Of the path of an output of each image: what it is, and the id."""
    folder, _, rest = name.partition("/")
    pattern = next((p for s in STAGES for p in s.outputs if p.startswith(f"{folder}/{{id}}")), None)
    if pattern is None:
        return None
    stage = producer(pattern)
    assert stage is not None
    return f"output of {stage.name}", re.sub(r"\.[a-z]+$", "", rest)


def _counted(kind: str, count: int) -> str:
    if kind == GROUND_TRUTH:
        return f"ground truth of {count} image{'s' * (count > 1)}"
    if kind == TRUSTED:
        return f"{count} trusted mask{'s' * (count > 1)}"
    head, _, tail = kind.partition(" ")
    return f"{count} {head}{'s' * (count > 1)}{' ' + tail if tail else ''}"


def _first(ids: list[str], most: int = 5) -> str:
    return ", ".join(ids[:most]) + (", ..." if len(ids) > most else "")


def settings_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two sets of settings, in words: "train_cam.lr was 0.1, now 0.05"."""
    if before.get("format") != now["format"]:
        return ["it was made by another version of amn-fast"]
    before = {key: value for key, value in BEFORE.items() if key in now} | before
    return [
        f"{key} was {before.get(key)}, now {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not (key in WANTS_LESS and now.get(key) == WANTS_LESS[key])
    ]
