"""A pool of threads that an error or Ctrl-C ends."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def thread_pool(
    workers: int, stop: Callable[[], None] = lambda: None, begin: Callable[[], None] = lambda: None
) -> Iterator[ThreadPoolExecutor]:
    """A pool of `workers` threads; whatever ends the block early, tasks that have not begun are cancelled.

    Ctrl-C reaches the main thread alone, at any moment, so the tasks are to be submitted inside the block.

    Args:
        stop: called then, to end the tasks that are running; they are waited for.
        begin: called by each thread before its first task.
    """
    with ThreadPoolExecutor(workers, initializer=begin) as pool:
        try:
            yield pool
        except BaseException:
            stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
