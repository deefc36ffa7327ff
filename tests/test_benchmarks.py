"""`pytest benchmarks` measures something, asserts parity, and fails where a kernel is wrong."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra 'pipeline'")
pytest.importorskip("pytest_benchmark", reason="needs the extra 'test'")

ROOT = Path(__file__).parents[1]


def benchmarks(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """`pytest --quick` on files of the benchmarks: collecting all of them takes longer than one of them runs."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--quick", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path):
    """The benchmarks and the package in a folder of their own, to be broken there."""
    ignored = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=ignored)
    shutil.copytree(ROOT / "amn_fast", tmp_path / "amn_fast", ignore=ignored)
    shutil.copytree(ROOT / "kernels", tmp_path / "amn_fast" / "kernels", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_parity_races_and_results(copy, tmp_path):
    """A right kernel passes. A wrong one, a benchmark without parity or without a race, and no benchmark fail."""
    results = tmp_path / "results.json"
    words = ("benchmarks/test_random_walk.py", "--results", results)
    right = benchmarks(copy, *words)
    assert right.returncode == 0, right.stdout
    assert "random_walk" in results.read_text()
    results.unlink()
    file = copy / "amn_fast" / "ops" / "random_walk.py"
    assert "TOLERANCE = 1e-6" in file.read_text()
    file.write_text(file.read_text().replace("TOLERANCE = 1e-6", "TOLERANCE = 1e-1"))
    (copy / "benchmarks" / "test_bad.py").write_text(
        "from racing import Method\n"
        "def test_no_parity(race):\n    race.run('x', 'y', Method('ours', int))\n"
        "def test_no_race(race):\n    race.parity([], [], 0) if False else None\n"
    )
    wrong = benchmarks(copy, *words, "benchmarks/test_bad.py")
    assert wrong.returncode == 1
    assert "parity: largest error" in wrong.stdout
    assert "no parity was asserted before the race" in wrong.stdout
    assert "the benchmark ended without a race" in wrong.stdout
    assert not results.exists()
    assert benchmarks(copy, "benchmarks/test_bad.py", "-k", "no_such_benchmark").returncode not in (0, 5)
