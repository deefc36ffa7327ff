"""For all tests: one thread a process, and no waiting for the disk."""

import os
import signal
from unittest import mock

import pytest

# Before PyTorch is imported: each xdist worker would start as many threads as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _files_stay_in_memory():
    """No test reads its files after a power cut."""
    with mock.patch("os.fsync"):
        yield


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
