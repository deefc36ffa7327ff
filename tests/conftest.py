"""For all tests: one thread a process, no waiting for the disk, and costly results made once for all processes."""

import fcntl
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

# Before PyTorch is imported: each xdist worker would start as many threads as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _files_stay_in_memory():
    """No test reads its files after a power cut."""
    with mock.patch("os.fsync"):
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """shared(name, make) -> a folder that `make(folder)` has filled, once for all xdist workers; nobody changes it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def once(name, make):
        folder, done = base / name, base / f"{name}.done"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that was killed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.load(Path(__file__).parent / "golden" / "amn" / "merge_cam.npz")["image"]


@pytest.fixture
def small_grid(monkeypatch):
    """Thresholds are chosen among two by two: the stage takes a second instead of ten."""
    from amn_fast.pipeline import choosing
    from amn_fast.steps import choice

    monkeypatch.setattr(choice, "FG", (0.4, 0.7))
    monkeypatch.setattr(choice, "BG", (0.1, 0.3))
    monkeypatch.setattr(choosing, "ROUNDS", 1)


@pytest.fixture
def interruptible():
    """Processes started from here heed Ctrl-C, also where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
