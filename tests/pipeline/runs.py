"""What tests of whole runs share: a run's bytes, its log, and what is due."""

import json

from amn_fast import pipeline
from amn_fast.data import open_dataset
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.runner import plan
from amn_fast.pipeline.table import ancestors

RESULTS = ("weights", "cam", "cam_seed", "amn", "amn_seed", "edge", "masks")
STAGES = {s.name: s for s in pipeline.STAGES if not (s.segmentation or "auto" in dict(s.when).values())}
NAMES = list(STAGES)
PASSES = ("make-cam", "refine-seed", "make-amn-cam", "refine-amn-seed")


def results(run):
    """Every byte that a run computed, by file; times and the like are elsewhere."""
    return {str(path.relative_to(run)): path.read_bytes() for kind in RESULTS for path in (run / kind).rglob("*.*")}


def assert_same(run, other):
    mine, theirs = results(run), results(other)
    assert sorted(mine) == sorted(theirs)
    assert [name for name in mine if mine[name] != theirs[name]] == []


def snapshot(folder):
    """Every file with its bytes and mode, but the lock."""
    return {p: (p.read_bytes(), p.stat().st_mode) for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def events(run, kind="start"):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def started(run):
    return [event["stage"] for event in events(run)]


def dataset_of(config):
    return open_dataset(config.data.kind, config.data.root, **config.data.options)


def due(config):
    """The stages that a run would compute."""
    return [stage.name for stage in plan(Workspace(config), list(STAGES.values()))[0]]


def from_(name):
    """A stage and all that build on it."""
    return [n for n in NAMES if n == name or STAGES[name] in ancestors(STAGES[n])]


def spoil(path, data=b""):
    path.write_bytes(data)


def remove_from_list(root, id):
    ids = (root / "ids.txt").read_text().splitlines()
    (root / "ids.txt").write_text("\n".join(i for i in ids if i != id) + "\n")
