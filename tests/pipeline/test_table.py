"""The table of stages is the only place that lists them: order, commands, dependencies and names derive from it."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import amn_fast
from amn_fast import pipeline
from amn_fast.cli import app
from amn_fast.config import Config
from amn_fast.errors import InputError
from amn_fast.pipeline.table import (
    CLASSES,
    GROUND_TRUTH,
    IMAGE,
    LABELS,
    REPORT,
    STAGES,
    TRUSTED,
    ancestors,
    producer,
    upstream,
)

SOURCE = Path(amn_fast.__file__).parent


def test_every_input_is_of_the_data_set_or_the_output_of_an_earlier_stage():
    written = set()
    for stage in STAGES:
        for name in stage.inputs:
            assert (
                name.removeprefix("evaluated ") in (IMAGE, LABELS, GROUND_TRUTH, TRUSTED, CLASSES) or name in written
            ), stage.name
        assert not written.intersection(stage.outputs)
        assert stage.per_image == any("{id}" in path for path in stage.outputs)
        assert callable(stage.load())
        for key in (*stage.settings, *(key for key, _ in stage.when)):
            field, section = key.split(".")[0], Config.model_fields
            assert field in section
        written.update(stage.outputs)
    assert set(REPORT.inputs) <= written


def test_dependencies():
    found = {stage.name: [s.name for s in upstream(stage, stage.inputs)] for stage in STAGES}
    assert found["make-mask"] == ["make-amn-cam", "train-irn", "choose-background"]
    assert found["refine-seed"] == ["make-cam", "choose-seed"]
    assert found["train-cam"] == []
    assert found["eval-seg"] == ["train-seg"]
    everything = [stage.name for stage in STAGES]
    assert [s.name for s in ancestors(STAGES[10])] == everything[:10]
    assert producer("masks/{id}.png") is STAGES[10]


def test_commands_and_their_help_come_from_the_table():
    commands = {command.name: command.help for command in app.registered_commands}
    for stage in (*STAGES, REPORT):
        assert commands[stage.name] == stage.help
    for stage in STAGES:  # the import path of earlier versions
        old = importlib.import_module(f"amn_fast.stages.{stage.name.replace('-', '_')}")
        assert (old.stage, old.run.func) == (stage, pipeline.run_stage)


def test_each_name_occurs_once_outside_the_table_and_its_own_module():
    """Comments and docstrings may speak of stages; code may not list them."""
    names = {stage.name for stage in STAGES}
    places = {name: [] for name in names}
    for path in SOURCE.rglob("*.py"):
        if path.name == "table.py" or "kernels" in path.parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in docstrings and node.value in names:
                places[node.value].append((path.name, f"{path.relative_to(SOURCE)}:{node.lineno}"))
    for stage in STAGES:
        own = f"{stage.function.split(':')[0]}.py"
        found = [place for file, place in places[stage.name] if file != own]
        assert len(found) <= 1, (stage.name, found)


def imports_of(path):
    """Modules of this package that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("amn_fast"):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_layers_point_one_way_and_there_is_no_import_circle():
    modules = {}
    for folder in ("pipeline", "steps"):
        for path in (SOURCE / folder).glob("*.py"):
            name = f"amn_fast.{folder}" + ("" if path.stem == "__init__" else f".{path.stem}")
            modules[name] = imports_of(path)
    for name, imported in modules.items():
        if name.startswith("amn_fast.steps"):
            upper = ("amn_fast.pipeline", "amn_fast.cli", "amn_fast.files", "amn_fast.report")
            assert not [i for i in imported if i.startswith(upper)], name
    seen = {}

    def visit(name, above):
        assert name not in above, " -> ".join((*above, name))
        if name not in seen:
            seen[name] = [visit(i, (*above, name)) for i in modules[name] if i in modules and i != name]
        return name

    del modules["amn_fast.pipeline"]  # its functions import the runner when they are called
    for name in modules:
        visit(name, ())
    functions = {stage.function.split(":")[0] for stage in STAGES}
    for one in functions:
        others = {f"amn_fast.pipeline.{other}" for other in functions - {one}}
        mine = modules[f"amn_fast.pipeline.{one}"] & others
        assert mine <= {"amn_fast.pipeline.inference", "amn_fast.pipeline.evaluation", "amn_fast.pipeline.trainings"}


def test_the_command_line_starts_without_pytorch():
    code = "import sys, amn_fast.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_run_keeps_its_old_path():
    assert amn_fast.run is pipeline.run
    with pytest.raises(InputError, match="stage is 'no-such-stage', expected one of train-cam, make-cam"):
        pipeline.run_stage(None, "no-such-stage")
