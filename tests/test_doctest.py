"""The examples in the docstrings of the public names run and print what they claim."""

import doctest
import importlib

import pytest

import amn_fast

pytest.importorskip("torch")


def test_examples():
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
