"""The examples in the docstrings of the public names run and print what they claim."""

import doctest
import importlib
import re
import tempfile
from pathlib import Path

import pytest

import amn_fast
import amn_fast.kernels

pytest.importorskip("torch")


def test_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    steps = {f"amn_fast.steps.{name}" for name in ("choice", "heads", "linear_cam", "regions")}
    modules = sorted({*amn_fast._NAMES.values(), "amn_fast.nn", "amn_fast.compat.irn", *steps})
    attempted = 0
    for name in modules:
        result = doctest.testmod(
            importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE, extraglobs={"amn_fast": amn_fast}
        )
        assert result.failed == 0, f"{name}: see the printed report"
        attempted += result.attempted
    assert attempted > 20


def test_the_reference_shows_examples_as_code():
    """Its generator reads `>>>` under "Examples:" alone; under "Example:" it makes a quotation of it."""
    package = Path(amn_fast.__file__).parent
    sources = [*package.rglob("*.py"), *Path(amn_fast.kernels.__file__).parent.rglob("*.py")]
    assert len(sources) > 150
    assert not [path for path in sources if re.search(r"^ *Example:$", path.read_text("utf-8"), re.MULTILINE)]
