"""Work on all images with progress, threads and named errors; time, memory and determinism of a stage."""

import os
import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch

from amn_fast._console import errors as console
from amn_fast._console import progress_bar as progress
from amn_fast._pool import thread_pool
from amn_fast.ops._arrays import thread_count
from amn_fast.pipeline.folder import Workspace
from amn_fast.steps.items import naming_image

__all__ = ["console", "cores", "for_each", "make_deterministic", "naming_image", "on_device", "progress", "track"]

T = TypeVar("T")


def cores() -> int:
    """The number of CPUs that this process may use."""
    return thread_count(None)


def for_each(title: str, ids: Iterable[str], work: Callable[[str], None], threads: int = 1) -> None:
    """Do `work` for every image, on several threads if asked; the first error names its image and ends all.

    PyTorch computes an image on the thread that has it alone: two images on two cores finish sooner than one after the
    other on both, and results do not depend on the number of threads.
    """
    ids = list(ids)

    def named(id: str) -> None:
        with naming_image(id):
            work(id)

    with _torch_threads_restored(), progress() as bar, thread_pool(threads, begin=_one_torch_thread) as pool:
        task = bar.add_task(title, total=len(ids), note="")
        waiting: set[Future[None]] = set()

        def finished(futures: set[Future[None]], when: str) -> set[Future[None]]:
            done, rest = wait(futures, return_when=when)
            for future in done:
                future.result()
                bar.advance(task)
            return rest

        for id in ids:
            if len(waiting) == 2 * threads:
                waiting = finished(waiting, FIRST_COMPLETED)
            waiting.add(pool.submit(named, id))
        finished(waiting, FIRST_EXCEPTION)


def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@contextmanager
def _torch_threads_restored() -> Iterator[None]:
    """A thread that sets its number of threads changes that of threads to come and of libraries too."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


_GPU = threading.Lock()


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """A turn on a GPU for the network of one image, while others are read, refined and written.

    Its memory is then that of one image. On a CPU, all threads compute at once.
    """
    return _GPU if device.type == "cuda" else nullcontext()


def track(title: str, items: Iterable[T], total: int) -> Iterator[T]:
    """Show progress while iterating."""
    with progress() as bar:
        task = bar.add_task(title, total=total, note="")
        for item in items:
            yield item
            bar.advance(task)


class Warnings:
    """Remarks on single images: all go to log.jsonl, the first ones to the console too.

    Args:
        event: their name in the log.
    """

    SHOWN = 5

    def __init__(self, work: Workspace, event: str) -> None:
        self._work, self._event, self._count, self._lock = work, event, 0, threading.Lock()

    def add(self, id: str, text: str) -> None:
        """Take a remark on image `id`; several threads may."""
        with self._lock:
            self._work.log(self._event, image=id, warning=text)
            self._count += 1
            if self._count <= self.SHOWN:
                console.print(f"warning: {text}")
            if self._count == self.SHOWN:
                console.print(f"warning: further images are in {self._work.root / 'log.jsonl'}")


def make_deterministic() -> None:
    """Same input, same bits, also on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Nothing reads uninitialised memory here, and filling it takes 4 % of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def reset_peak_memory() -> None:
    """Forget the highest memory so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the highest resident size
    except OSError:
        return  # not Linux, or not allowed: the peak is then the process's, an upper bound


def peak_memory_mb() -> float:
    """Highest resident memory of this process in MiB, plus the GPU's highest allocation."""
    peak = 0.0
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = int(line.split()[1]) / 1024
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak += torch.cuda.max_memory_allocated() / 2**20
    return peak
