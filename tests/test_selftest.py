"""The self-test finds a wrong kernel, and `backend="auto"` then takes another way."""

import inspect
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'pipeline'")

import torch
from rich.console import Console

import amn_fast
from amn_fast import _selftest
from amn_fast.cli.selftest import _table
from amn_fast.errors import BackendError, InputError
from amn_fast.ops import _arrays, _detour, _verdicts

OPERATIONS = {check.operation for check in _selftest.CHECKS}


def test_every_operation_passes_on_the_cpu(tmp_path):
    report = _selftest.selftest("cpu")
    assert {result.operation for result in report.results} == OPERATIONS
    assert [(r.operation, r.reason) for r in report.results if r.status != "pass"] == []
    report.save(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["machine"]["amn_fast"].startswith(f"amn_fast {amn_fast.__version__}")
    assert len(read["results"]) == len(report.results)
    interpreted = [replace(one, backend="triton", device=_selftest.INTERPRETED) for one in report.results]
    console = Console(width=80, file=io.StringIO())  # a log's width
    console.print(_table(_selftest.Report({}, interpreted)))
    rows = [line.split()[:5] for line in console.file.getvalue().splitlines()]
    assert all([one.operation, "triton", one.device, "pass", f"{one.error:.1e}"] in rows for one in interpreted)


def test_every_public_operation_with_a_backend_has_a_check():
    public = [name for name in amn_fast.__all__ if inspect.isfunction(getattr(amn_fast, name))]
    chosen = {name for name in public if "backend" in inspect.signature(getattr(amn_fast, name)).parameters}
    assert chosen <= OPERATIONS | {"make_mask"}  # which is a random walk and a threshold


def test_devices_that_are_not_there_are_refused():
    for device in ("gpu", 0, None):
        with pytest.raises(InputError, match="device is"):
            _selftest.selftest(device)
    if not _selftest._gpu_name():
        with pytest.raises(InputError, match="device is 'cuda', but"):
            _selftest.selftest("cuda")


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """The report of a package whose Triton kernel of `pixel_loss` has one constant changed."""
    folder = tmp_path_factory.mktemp("broken")
    package, kernels = Path(amn_fast.__file__).parent, Path(_verdicts.amn_fast.kernels.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, folder / "amn_fast", ignore=ignored)
    shutil.copytree(kernels, folder / "amn_fast" / "kernels", ignore=ignored, dirs_exist_ok=True)
    source = folder / "amn_fast" / "kernels" / "pixel_loss" / "triton.py"
    right = "loss = log_sum - ON * own - OFF * (total - own)"
    assert right in source.read_text()
    source.write_text(source.read_text().replace(right, right.replace("- OFF", "- 1.01 * OFF")))
    script = (
        "import sys; from amn_fast import _selftest; from amn_fast.cli import main;"
        "_selftest.CHECKS = tuple(c for c in _selftest.CHECKS if c.operation in ('pixel_loss', 'merge_cam')); main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, "selftest", "--device", "cpu", "--json", str(folder / "report.json")],
        cwd=folder,  # where `-c` finds the copy before the package that is tested
        env=os.environ | {"PYTHONPATH": str(folder), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stderr
    assert "pixel_loss, triton on interpreted: fail: error" in run.stdout
    return folder / "report.json"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine that seems to have a GPU; the self-test's process is stood in for. Gives the list of its runs."""
    runs: list[object] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(_verdicts.SWITCH, raising=False)
    monkeypatch.delenv(_arrays.SWITCH, raising=False)
    monkeypatch.setattr(_arrays, "triton_obstacle", lambda: "")
    monkeypatch.setattr(_verdicts, "_identity", lambda index: "one GPU")
    monkeypatch.setattr(_verdicts, "_warned", set())
    _verdicts._verdicts.cache_clear()
    yield runs
    _verdicts._verdicts.cache_clear()


def stand_in(monkeypatch, runs, answer):
    def run(command, **options):
        runs.append(command)
        return answer(Path(command[-1]))

    monkeypatch.setattr(_verdicts.subprocess, "run", run)


def chosen(operation):
    return _arrays.tensor_backend("auto", operation, "cuda")


def test_auto_routes_around_a_kernel_that_failed(broken, gpu, monkeypatch, caplog):
    stand_in(monkeypatch, gpu, lambda report: shutil.copy(broken, report))
    with caplog.at_level(logging.WARNING, "amn_fast"):
        assert [chosen("pixel_loss") for _ in range(3)] == ["reference"] * 3
        assert chosen("merge_cam") == "triton"
    (warning,) = caplog.messages
    assert warning.startswith("pixel_loss: backend 'triton' is not used on this GPU: error")
    assert chosen("an_operation_it_does_not_know") == "reference"
    assert _arrays.tensor_backend("triton", "pixel_loss", "cuda") == "triton"  # asked for by name
    assert len(gpu) == 1

    _verdicts._verdicts.cache_clear()  # the next process reads what this one kept
    assert chosen("pixel_loss") == "reference"
    assert len(gpu) == 1
    monkeypatch.setattr(_verdicts, "_identity", lambda index: "another driver")
    assert chosen("pixel_loss") == "reference"
    assert len(gpu) == 2

    monkeypatch.setenv(_verdicts.SWITCH, "0")
    assert chosen("pixel_loss") == "triton"
    monkeypatch.setenv(_verdicts.SWITCH, "1")
    assert chosen("pixel_loss") == "reference"
    assert len(gpu) == 3
    monkeypatch.setenv(_verdicts.SWITCH, "yes")
    with pytest.raises(InputError, match="AMN_FAST_SELFTEST is 'yes', expected 0 or 1"):
        chosen("pixel_loss")


def crashed(report):
    return subprocess.CompletedProcess([], -11, "", "CUDA error: an illegal memory access\n")


def hung(report):
    raise subprocess.TimeoutExpired([], 1)


@pytest.mark.parametrize(("answer", "reason"), [(crashed, "illegal memory access"), (hung, "did not end within")])
def test_a_self_test_that_cannot_run_is_not_kept(answer, reason, gpu, monkeypatch, caplog):
    stand_in(monkeypatch, gpu, answer)
    with caplog.at_level(logging.WARNING, "amn_fast"):
        assert chosen("pixel_loss") == "reference"
    assert reason in caplog.text
    _verdicts._verdicts.cache_clear()
    chosen("pixel_loss")
    assert len(gpu) == 2


def test_the_environment_switch_names_a_backend_unchecked(gpu, monkeypatch):
    stand_in(monkeypatch, gpu, crashed)
    monkeypatch.setenv(_arrays.SWITCH, "triton")
    assert chosen("pixel_loss") == "triton"
    monkeypatch.setenv(_arrays.SWITCH, "cuda")
    with pytest.raises(BackendError, match="does not have it"):
        chosen("pixel_loss")
    assert gpu == []


def test_dense_crf_goes_over_the_cpu_where_its_kernel_failed(gpu, monkeypatch):
    """The tensors are on the CPU and taken for GPU tensors."""
    failed = {"dense_crf/cuda": "error 1", "refine_seed/cuda": "error 2"}
    monkeypatch.setattr(_verdicts, "_check", lambda: failed)
    rng = np.random.default_rng(0)
    image, scores = rng.integers(0, 256, (20, 30, 3), np.uint8), rng.random((2, 20, 30), np.float32)
    tensors = torch.from_numpy(image), torch.from_numpy(scores)
    expected = amn_fast.dense_crf(image, scores), amn_fast.refine_seed(image, scores, [3, 4], fg=0.7, bg=0.4)
    monkeypatch.setattr(_detour, "on_gpu", _arrays.is_tensor)
    found = amn_fast.dense_crf(*tensors), amn_fast.refine_seed(*tensors, [3, 4], fg=0.7, bg=0.4)
    (in_list,) = amn_fast.dense_crf([tensors[0]], [tensors[1]])
    assert all(isinstance(one, torch.Tensor) for one in (*found, in_list))
    for one, other in zip((*found, in_list), (*expected, expected[0]), strict=True):
        np.testing.assert_array_equal(one.numpy(), other)
