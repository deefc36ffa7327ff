"""Runs stages: finds out what is up to date, validates before anything is touched, replaces results when complete."""

import errno
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amn_fast._pool import thread_pool
from amn_fast.config import Config, to_yaml
from amn_fast.data.base import list_ids
from amn_fast.errors import InputError
from amn_fast.files import remove_leftovers, write_text
from amn_fast.ops._arrays import default_backend
from amn_fast.pipeline.dependencies import (
    FORMAT,
    UNKNOWN,
    changes,
    exists,
    ids_of,
    input_names,
    inputs_of,
    item_key,
    settings_changes,
    settings_of,
    stages_of,
)
from amn_fast.pipeline.engine import console, cores, for_each, make_deterministic, peak_memory_mb, reset_peak_memory
from amn_fast.pipeline.folder import Workspace, check_apart, check_free, check_names, claim, only_one_run
from amn_fast.pipeline.processes import joined, require_single
from amn_fast.pipeline.records import RECORDS, Inputs, Item, Record
from amn_fast.pipeline.staging import Staging
from amn_fast.pipeline.table import Stage, ancestors, stage_named, upstream
from amn_fast.pipeline.trusted import check_trusted


@dataclass
class Status:
    """How a stage stands.

    Attributes:
        record: of its last run; None when it has never finished.
        settings, inputs: what its outputs depend on now; inputs by item.
        due: items to compute.
        gone: items that the data set does not have any more.
        new_settings, changed, damaged: why, in words: settings and inputs since the last run, and outputs that are not
            as they were written.
    """

    record: Record | None
    settings: dict[str, Any]
    inputs: dict[str, Inputs]
    due: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    new_settings: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def up_to_date(self) -> bool:
        return not (self.due or self.gone)


def status_of(work: Workspace, stage: Stage) -> Status:
    """Compare a stage's record with the configuration, the data set and the files in the run folder."""
    record = work.record(stage)
    found = Status(record, settings_of(work, stage), {id: inputs_of(work, stage, id) for id in ids_of(work, stage)})
    if record is None:
        found.due = list(found.inputs)
        return found
    if not record.imported:
        found.new_settings = settings_changes(record.settings, found.settings)
    before: Inputs = {}
    now: Inputs = {}
    for id, inputs in found.inputs.items():
        item = record.items.get(id, Item({}, {}))
        if record.imported:  # what it was computed from is not known; what it was imported for is
            inputs = {name: inputs.get(name, "") for name in item.inputs or inputs}
        inputs = {n: item.inputs.get(n, value) if value == UNKNOWN else value for n, value in inputs.items()}
        damaged = [path for path, written in item.outputs.items() if work.contents.hash(work.root / path) != written]
        if id not in record.items or item.inputs != inputs:
            before, now = before | item.inputs, now | inputs
        if id not in record.items or item.inputs != inputs or damaged or found.new_settings:
            found.due.append(id)
        found.damaged += damaged
    found.gone = [id for id in record.items if id not in found.inputs]
    for id in found.gone:
        before |= record.items[id].inputs
    if record.settings.get("format") == FORMAT or record.imported:
        found.changed = changes(before, now)
    return found


def run_all(config: Config, *, overwrite: bool = False) -> None:
    """Run every stage of a configuration; see `amn_fast.pipeline.run`."""
    require_single("amn-fast run")
    _run(Workspace(config), stages_of(config), overwrite, alone=False)


def run_one(config: Config, name: str, *, overwrite: bool = False) -> bool:
    """Run one stage; see `amn_fast.pipeline.run_stage`. Under torchrun the processes of a stage meet here."""
    stage, work = stage_named(name), Workspace(config)
    if not exists(config, stage):
        wanted = " and ".join(f"{key}: {value}" for key, value in stage.when)
        raise InputError(f"{name} is not a stage of this configuration, expected {wanted}")
    if not stage.together:
        require_single(stage.name)
        return _run(work, [stage], overwrite, alone=True)
    with joined(work.device) as processes:
        work.processes = processes
        if processes.rank > 0:
            return _follow(work, stage)
        try:
            return _run(work, [stage], overwrite, alone=True)
        finally:
            processes.tell(False)


def _follow(work: Workspace, stage: Stage) -> bool:
    begin = work.processes.told()
    if begin:
        make_deterministic()
        with default_backend(work.config.backend):
            stage.load()(work, Staging(work.root, stage, work.contents).new)
    return begin


def is_up_to_date(config: Config, name: str) -> bool:
    """Whether a stage has finished under this configuration, on this data, and its outputs are as it wrote them."""
    return status_of(Workspace(config), stage_named(name)).up_to_date


def _run(work: Workspace, stages: Sequence[Stage], overwrite: bool, alone: bool) -> bool:
    validate(work, stages)
    with only_one_run(work.root) as writable, default_backend(work.config.backend):
        if alone:
            require_upstream(work, stages[0])
        due, loss = plan(work, stages)
        _build_networks(work, due)
        if loss and not overwrite:
            raise InputError(loss)
        if due and not writable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(work.root))
        ran: list[bool] = []
        for stage in stages:
            if stage in due or any(ran):  # until something is computed, the plan's word stands
                ran.append(_advance(work, stage, overwrite))
            else:
                _skip(stage)
        if any(stage.scores for stage in stages):
            from amn_fast.pipeline.reporting import publish

            publish(work, writable)
        if writable and any(ran):
            work.contents.save()
    return any(ran)


def validate(work: Workspace, stages: Sequence[Stage], sources: dict[str, Path] | None = None) -> None:
    """Check everything that can be checked without computing: data sets, names, places, device, masks.

    Args:
        sources: what else is read, by what it is.

    Raises:
        InputError: something is wrong; nothing has been touched.
    """
    check_free(work.config)
    check_names(work.dataset)
    check_apart(work, sources)
    work.device  # noqa: B018  (raises when it is not there)
    names = {name for stage in stages for name in input_names(work.config, stage)}
    if "mask" in names and work.config.train_seg.masks is not None:
        folder, ids = work.config.train_seg.masks, work.dataset.ids
        missing = [id for id in ids if not (folder / f"{id}.png").is_file()]
        if missing:
            raise InputError(f"{folder}: {list_ids(missing)} of {len(ids)} have no mask")
    check_trusted(work)
    files = [file for id in work.dataset.ids if (file := work.dataset.image_file(id)) is not None]
    if any(name.startswith("evaluated ") for name in names):
        check_names(work.evaluated)
        files += [file for id in work.evaluated.ids if (file := work.evaluated.image_file(id)) is not None]
    with thread_pool(cores()) as pool:
        list(pool.map(work.contents.hash, files))


def require_upstream(work: Workspace, stage: Stage) -> None:
    """Check that the stages before `stage` are up to date.

    An imported stage stands for those before it.

    Raises:
        InputError: one is not; the message names it and says what changed.
    """
    waiting, seen = [stage], set()
    while waiting:
        for needed in reversed(upstream(last := waiting.pop(), input_names(work.config, last))):
            if needed.name in seen:
                continue
            seen.add(needed.name)
            found = status_of(work, needed)
            if not found.up_to_date:
                reasons = [*found.new_settings, *found.changed, *_named(found.damaged)]
                why = f" ({'; '.join(reasons)})" if reasons else ""
                raise InputError(
                    f"{last.name} needs the outputs of {needed.name}, and {work.root} has none under this"
                    f" configuration{why}; run `amn-fast {needed.name}` first, or `amn-fast run` for all stages"
                )
            if found.record is None or not found.record.imported:
                waiting.append(needed)


def plan(work: Workspace, stages: Sequence[Stage]) -> tuple[list[Stage], str]:
    """The stages that have something to compute, and why that would be a loss: a sentence, or ""."""
    due, changing, loss = [], set(), ""
    for stage in stages:
        found = status_of(work, stage)
        earlier = [s.name for s in ancestors(stage) if s.name in changing]
        if found.record is not None and earlier:
            found.changed.append(f"{earlier[-1]} will be computed again")
        loss = loss or loss_of(work, stage, found)
        if found.record is not None and (found.new_settings or found.changed):
            changing.add(stage.name)
        if not found.up_to_date or earlier:
            due.append(stage)
    return due, loss


def loss_of(work: Workspace, stage: Stage, found: Status) -> str:
    """Why computing a stage would replace results that took hours, or that other settings gave: a sentence, or ""."""
    if found.record is None or stage.scores:
        return ""
    reasons = list(found.new_settings)
    if stage.trains or found.record.imported:
        reasons += found.changed
    if not reasons:
        return ""
    origin = f"was imported from {found.record.measured['from']}" if found.record.imported else "is finished"
    return (
        f"run folder {work.root}: {stage.name} {origin}, and since then {'; '.join(reasons)};"
        " pass --overwrite to compute it again and replace its results, or another folder as --run"
    )


def _build_networks(work: Workspace, due: Sequence[Stage]) -> None:
    """Build the networks of the stages that will run: an unknown backbone or unfit weights are errors now."""
    config = work.config
    uses = {key for stage in due for key in stage.settings}
    if uses & {"backbone", "train_seg"}:
        from amn_fast.models import DeepLabV2
        from amn_fast.models.backbone import make_backbone

        if "backbone" in uses:
            make_backbone(config.backbone, config.weights)
        if "train_seg" in uses:
            DeepLabV2(len(work.dataset.classes), config.train_seg.backbone, config.train_seg.weights)


def _advance(work: Workspace, stage: Stage, overwrite: bool) -> bool:
    """Bring one stage up to date. Returns whether there was anything to do."""
    found = status_of(work, stage)
    if found.up_to_date:
        _skip(stage)
        return False
    if not overwrite and (loss := loss_of(work, stage, found)):  # an earlier stage came out different than before
        raise InputError(loss)
    prepare(work, stage)
    staging = Staging(work.root, stage, work.contents)
    keys = {id: item_key(found.settings, found.inputs[id]) for id in found.due}
    resumed = staging.begin(keys, found.record)
    reasons = [*found.new_settings, *found.changed, *_named(found.damaged)]
    _announce(stage, found, reasons, resumed)
    work.log("start", stage=stage.name, resumed=resumed, **({"because": reasons} if reasons else {}))
    make_deterministic()
    reset_peak_memory()
    start = time.monotonic()
    _compute(work, stage, staging, keys)
    measured = {
        "resumed": resumed,
        "seconds": round(time.monotonic() - start, 2),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
    commit(work, stage, staging, found, measured)
    work.log("done", stage=stage.name, **measured)
    return True


def _skip(stage: Stage) -> None:
    console.print(f"{stage.name}: skipped (up to date)", style="dim")


def prepare(work: Workspace, stage: Stage) -> None:
    """Mark the run folder, clean up after killed runs, and keep the configuration."""
    claim(work.root)
    for folder in {work.root, work.root / RECORDS, *((work.root / path).parent for path in stage.outputs)}:
        remove_leftovers(folder)
    write_text(work.root / "config.yaml", to_yaml(work.config, work.root))


def _announce(stage: Stage, found: Status, reasons: list[str], resumed: bool) -> None:
    text = stage.name
    if found.record is not None and reasons:
        text += f": {'; '.join(reasons)}"
        text += f"; computing {len(found.due)} of {len(found.inputs)} images" if stage.per_image and found.due else ""
        text += "; training again" if stage.trains else ""
    console.print(text + (" (resuming)" if resumed else ""), style="bold")


def _named(damaged: list[str]) -> list[str]:
    if not damaged:
        return []
    shown = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
    return [f"{shown} {'is' if len(damaged) == 1 else 'are'} not as written"]


def _compute(work: Workspace, stage: Stage, staging: Staging, keys: dict[str, str]) -> None:
    todo = [id for id, key in keys.items() if not staging.has(id, key)]
    if not todo:
        return
    if stage.together:
        work.processes.tell(True)
    function = stage.load()(work, staging.new)
    if not stage.per_image:
        staging.finish("", keys[""])
        return

    def one(id: str) -> None:
        function(id)
        staging.finish(id, keys[id])

    for_each(stage.name, todo, one, cores())


def commit(work: Workspace, stage: Stage, staging: Staging, found: Status, measured: dict[str, Any]) -> None:
    """Put the computed items in the place of the previous ones, and write the record."""
    kept = {id: item for id, item in (found.record.items if found.record else {}).items() if id in found.inputs}
    items = kept | {id: Item(found.inputs[id], staging.outputs(id)) for id in found.due}
    staging.move(items, found.record)
    work.set_record(stage, Record(found.settings, items, measured))
    staging.clear()
    work.contents.save()
