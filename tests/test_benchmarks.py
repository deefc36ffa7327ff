"""`pytest benchmarks` measures something, asserts parity, and fails where a kernel is wrong."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra 'pipeline'")
pytest.importorskip("pytest_benchmark", reason="needs the extra 'test'")

ROOT = Path(__file__).parents[1]


def benchmarks(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks", "--quick", *options]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path):
    """The benchmarks and the package in a folder of their own, to be broken there."""
    ignored = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=ignored)
    shutil.copytree(ROOT / "amn_fast", tmp_path / "amn_fast", ignore=ignored)
    shutil.copytree(ROOT / "kernels", tmp_path / "amn_fast" / "kernels", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_a_wrong_kernel_fails_on_parity_and_a_right_one_passes(copy, tmp_path):
    results = tmp_path / "results.json"
    chosen = ("-k", "test_random_walk", "--results", str(results))
    right = benchmarks(copy, *chosen)
    assert right.returncode == 0, right.stdout
    assert "random_walk" in results.read_text()
    results.unlink()
    file = copy / "amn_fast" / "ops" / "random_walk.py"
    assert "TOLERANCE = 1e-6" in file.read_text()
    file.write_text(file.read_text().replace("TOLERANCE = 1e-6", "TOLERANCE = 1e-1"))
    wrong = benchmarks(copy, *chosen)
    assert wrong.returncode == 1
    assert "parity: largest error" in wrong.stdout
    assert not results.exists()


def test_a_benchmark_without_parity_or_without_a_race_fails(copy):
    file = copy / "benchmarks" / "test_bad.py"
    file.write_text(
        "from racing import Method\n"
        "def test_no_parity(race):\n    race.run('x', 'y', Method('ours', int))\n"
        "def test_no_race(race):\n    race.parity([], [], 0) if False else None\n"
    )
    found = benchmarks(copy, "-k", "test_bad")
    assert found.returncode == 1
    assert "no parity was asserted before the race" in found.stdout
    assert "the benchmark ended without a race" in found.stdout


def test_a_command_that_collects_nothing_fails(copy):
    assert benchmarks(copy, "-k", "no_such_benchmark").returncode not in (0, 5)
