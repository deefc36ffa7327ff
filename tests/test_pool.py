"""The pool of threads behind every batch."""

import threading
import time

import pytest

from amn_fast._pool import thread_pool


def test_an_error_cancels_what_has_not_begun_and_ends_what_runs():
    """Also one that comes while tasks are still being submitted, as Ctrl-C may."""
    for error in (KeyboardInterrupt, ValueError):
        began, stopped = [], threading.Event()

        def task(number, began=began, stopped=stopped):
            began.append(number)
            stopped.wait(30)

        start = time.monotonic()
        with pytest.raises(error), thread_pool(2, stopped.set) as pool:  # noqa: PT012
            for number in range(100):
                pool.submit(task, number)
            raise error
        assert time.monotonic() - start < 20
        assert len(began) <= 4


def test_results_come_in_order():
    with thread_pool(3) as pool:
        assert list(pool.map(lambda number: number * number, range(50))) == [n * n for n in range(50)]
