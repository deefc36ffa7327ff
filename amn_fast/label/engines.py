"""What runs workers: processes of this machine, watched and replaced, or Ray, which does so on a cluster."""

import contextlib
import multiprocessing
import os
import sys
import time
import types
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from amn_fast._extras import require
from amn_fast.errors import BackendError, InputError
from amn_fast.label import worker
from amn_fast.label.shards import Outcome
from amn_fast.label.worker import Begun, Broken, Ended, Ready, Setup, Task

MOST_DEATHS = 3
"""An image in work at so many deaths of workers becomes an error; so many deaths before any image end the job."""


@dataclass(frozen=True)
class Started:
    """A shard is computed from its beginning, perhaps once more."""

    shard: int


@dataclass(frozen=True)
class Computed:
    """An image of a shard in work is finished."""

    shard: int
    ok: bool


Event = Started | Computed | Outcome


@dataclass
class _Worker:
    """A process, and what it is doing.

    Attributes:
        begun: the images in work and when each was begun.
    """

    number: int
    process: Any
    connection: Connection
    task: Task | None = None
    begun: dict[str, float] = field(default_factory=dict)
    ready: bool = False


class Crew:
    """Processes that compute shards. One that dies, or does not finish an image in time, is replaced.

    Its shard is then computed again from the beginning, without the image that took too long, or was in work at several
    deaths: that image becomes an error.

    Args:
        setup: of the job.
        size: number of processes.
        timeout: seconds for an image; None sets no limit.
    """

    def __init__(self, setup: Setup, size: int, timeout: float | None) -> None:
        self._setup, self._size, self._timeout = setup, size, timeout
        # Processes forked from a server that has imported the networks' modules start at once.
        self._context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            self._context.set_forkserver_preload(["amn_fast.label.labeler"])
        self._workers: list[_Worker] = []
        self._failures: dict[int, dict[str, str]] = {}
        self._deaths: Counter[tuple[int, str]] = Counter()
        self._unready_deaths = 0

    def run(self, tasks: Iterator[Task]) -> Iterator[Event]:
        """Compute the shards of all tasks; as many are in work as there are processes.

        Raises:
            InputError, BackendError: a worker cannot go on; the message says why.
        """
        again: deque[Task] = deque()
        while True:
            for each in self._workers or self._first():
                if each.task is None and (task := again.popleft() if again else next(tasks, None)) is not None:
                    yield from self._give(each, task)
            busy = [each for each in self._workers if each.task is not None]
            if not busy:
                return
            for connection in wait([each.connection for each in busy], self._patience(busy)):
                each = next(each for each in busy if each.connection is connection)
                try:
                    message = each.connection.recv()
                except (EOFError, OSError):
                    again.append(self._replace_dead(each))
                    continue
                yield from self._take(each, message)
            again.extend(self._replace_late(busy))

    def close(self) -> None:
        """End all processes at once; what they have not finished is lost."""
        for each in self._workers:
            self._end(each)
        self._workers.clear()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first(self) -> list[_Worker]:
        self._workers = [self._start(number) for number in range(self._size)]
        return self._workers

    def _start(self, number: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        with _one_thread(), _without_main():
            process = self._context.Process(target=worker.main, args=(theirs, self._setup, number), daemon=True)
            process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        return _Worker(number, process, ours)

    def _give(self, each: _Worker, task: Task) -> Iterator[Event]:
        each.task = Task(task.shard, task.part, self._failures.get(task.shard, {}), task.retry)
        with contextlib.suppress(OSError):  # of a process that has died; the end of its connection is noticed
            each.connection.send(each.task)
        yield Started(task.shard)

    def _take(self, each: _Worker, message: Any) -> Iterator[Event]:
        assert each.task is not None
        if isinstance(message, Broken):
            raise InputError(message.message)
        if isinstance(message, Ready):
            each.ready, self._unready_deaths = True, 0
        elif isinstance(message, Begun):
            each.begun[message.id] = time.monotonic()
        elif isinstance(message, Ended):
            each.begun.pop(message.id, None)
            yield Computed(each.task.shard, message.ok)
        elif isinstance(message, Outcome):
            self._failures.pop(message.shard, None)
            each.task = None
            yield message

    def _patience(self, busy: list[_Worker]) -> float | None:
        """Seconds until the first image has taken too long."""
        begun = [start for each in busy for start in each.begun.values()]
        if self._timeout is None or not begun:
            return self._timeout
        return max(0.0, min(begun) + self._timeout - time.monotonic())

    def _replace_dead(self, each: _Worker) -> Task:
        """Replace a worker that has died. Returns its task."""
        assert each.task is not None
        each.process.join()
        why = _describe_exit(each.process.exitcode)
        if not each.ready:
            self._unready_deaths += 1
            if self._unready_deaths >= MOST_DEATHS * self._size:
                raise BackendError(f"workers do not start: {self._unready_deaths} in a row ended ({why})")
        for id in each.begun:
            self._deaths[each.task.shard, id] += 1
            if self._deaths[each.task.shard, id] >= MOST_DEATHS:
                sentence = f"the process that computed it ended {MOST_DEATHS} times ({why})"
                self._failures.setdefault(each.task.shard, {})[id] = sentence
        return self._replace(each)

    def _replace_late(self, busy: list[_Worker]) -> Iterator[Task]:
        """Replace the workers with an image that takes too long. Gives their tasks."""
        for each in busy:
            late = [id for id, start in each.begun.items() if self._is_late(start)]
            if late and each.task is not None and each in self._workers:
                sentence = f"took longer than {self._timeout:g} seconds"
                self._failures.setdefault(each.task.shard, {}).update(dict.fromkeys(late, sentence))
                yield self._replace(each)

    def _is_late(self, start: float) -> bool:
        return self._timeout is not None and time.monotonic() - start >= self._timeout

    def _replace(self, each: _Worker) -> Task:
        assert each.task is not None
        self._end(each)
        self._workers[self._workers.index(each)] = self._start(each.number)
        return each.task

    @staticmethod
    def _end(each: _Worker) -> None:
        each.process.kill()
        each.process.join()
        each.connection.close()


def _describe_exit(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let the processes that start now use one thread for each image: set before their PyTorch is imported."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep the processes that start now from running the user's script again: what they need is in this package."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# ---------------------------------------------------------------------------------------------------------------- Ray

_crews: dict[tuple[str, float | None], Crew] = {}
"""The crew of a process of Ray's: the networks stay loaded from one shard to the next."""


def compute_on_ray(setup: Setup, task: Task, timeout: float | None) -> Outcome:
    """Compute one shard in a process of Ray's, by a worker of its own."""
    key = (repr(setup), timeout)
    if key not in _crews:
        _close_crews()
        _crews[key] = Crew(setup, 1, timeout)
    try:
        return next(event for event in _crews[key].run(iter([task])) if isinstance(event, Outcome))
    except BaseException:
        _close_crews()  # what they were doing is not known
        raise


def _close_crews() -> None:
    for crew in _crews.values():
        crew.close()
    _crews.clear()


def run_on_ray(
    address: str,
    setup: Setup,
    tasks: Iterator[Task],
    timeout: float | None,
    gpus: float,
    announce: Callable[[str], None],
) -> Iterator[Event]:
    """Compute the shards of all tasks as tasks of Ray, which moves those of a lost node to another.

    A few more are submitted than run at once, so that an autoscaler sees that there is work.

    Args:
        address: of the cluster, or "local" for this machine.
        gpus: share of a GPU for each task.
        announce: takes a line about the cluster.
    """
    ray = require("ray", "ray")
    if not ray.is_initialized():
        options: dict[str, Any] = {} if address == "local" else {"address": address}
        ray.init(logging_level="warning", log_to_driver=False, **options)
    announce(f"Ray: nodes: {len(ray.nodes())}, CPUs: {ray.cluster_resources().get('CPU', 0):g}")
    compute = ray.remote(num_cpus=setup.threads, num_gpus=gpus, max_retries=-1)(compute_on_ray)
    pending: dict[Any, int] = {}
    more = True
    while pending or more:
        room = int(ray.cluster_resources().get("CPU", 0) // setup.threads) + 2
        while more and len(pending) < room:
            task = next(tasks, None)
            if task is None:
                more = False
            else:
                pending[compute.remote(setup, task, timeout)] = task.shard
                yield Started(task.shard)
        done, _ = ray.wait(list(pending), num_returns=1, timeout=5) if pending else ([], [])
        for reference in done:
            del pending[reference]
            try:
                yield ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise InputError(" ".join(str(error.cause).split())) from error
