"""The Triton kernels under Triton's interpreter, on the CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

TESTS = Path(__file__).parents[1]
FILES = (
    "kernels/random_walk/interpreted.py", "ops/test_local_affinity.py", "ops/test_merge.py", "ops/test_pair_loss.py",
    "ops/test_pixel_loss.py",
)  # fmt: skip


def test_every_case_of_the_operations_under_the_interpreter():
    """In one process of its own: TRITON_INTERPRET must be set before Triton is imported."""
    options = ["-q", "--no-header", "-p", "no:cacheprovider", f"--rootdir={TESTS.parent}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(TESTS / name) for name in FILES)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout
