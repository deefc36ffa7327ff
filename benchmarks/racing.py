"""Methods side by side: rounds interleave, ratios are medians of paired rounds, memory stands beside time.

A benchmark first holds our answer against the reference (`Race.parity`), then runs (`Race.run`); one that skips the
first fails. Times of CUDA work are taken with events, after the second-level cache was overwritten.
"""

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MIB = 2**20
PAUSE_S = 0.02  # before each run: PyTorch's threads spin for milliseconds after their work, in the next method's time
FLUSH_BYTES = 256 * MIB  # more than any GPU's second-level cache


@dataclass(frozen=True)
class Method:
    """One way of computing the same thing.

    Attributes:
        name: as the table shows it.
        run: computes it; the result is thrown away.
        threads: how many threads it may use.
        in_process: False if other processes do part of the work; the memory of this one then says nothing.
    """

    name: str
    run: Callable[[], object]
    threads: int = 1
    in_process: bool = True


@dataclass
class Row:
    """A line of the final table: one method against ours."""

    operation: str
    case: str
    device: str
    method: str
    threads: int
    ms: float
    ours_ms: float
    ours_threads: int
    ratio: float
    interval: tuple[float, float]
    rounds: int
    mib: float | None
    ours_mib: float | None
    error: float
    bandwidth: float | None = None
    """Achieved bytes per second of our kernel over those of a copy in the same run; CUDA only."""


@dataclass
class Results:
    """All rows of a session."""

    rows: list[Row] = field(default_factory=list)

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]


class Race:
    """What the fixture `race` gives a benchmark."""

    def __init__(self, benchmark: Any, results: Results, rounds: int, device: str) -> None:
        self.benchmark, self.results, self.rounds, self.device = benchmark, results, rounds, device
        self.error: float | None = None
        self.finished = False

    def parity(self, expected: Any, found: Any, tolerance: float) -> None:
        """Hold our answer against the expected one, relative to the largest expected value of each array.

        Raises:
            AssertionError: it is farther away than `tolerance`.
        """
        self.error = max(_largest_error(expected, found, tolerance), self.error or 0.0)

    def same_task(self, expected: Any, found: Any, tolerance: float) -> None:
        """Hold a peer's answer against the expected one: a ratio to something else would say nothing.

        Raises:
            AssertionError: it is farther away than `tolerance`.
        """
        _largest_error(expected, found, tolerance)

    def run(
        self, operation: str, case: str, ours: Method, *others: Method, rounds: int | None = None, moved: int = 0
    ) -> None:
        """Race `ours` against the others and add a row for each.

        Args:
            operation: the name in the table.
            case: sizes and settings.
            rounds: instead of the profile's.
            moved: bytes that ours has to read and write at least, for the bandwidth on a GPU.
        """
        assert self.error is not None, f"{operation}: no parity was asserted before the race"
        methods = [ours, *others]
        memory = [self._warm_and_measure(method) for method in methods]
        times: list[list[float]] = [[] for _ in methods]

        def rivals() -> None:
            for other, column in zip(others, times[1:], strict=True):
                column.append(self._timed(other))
            time.sleep(PAUSE_S)
            self._flush()

        def own() -> None:
            times[0].append(self._timed(ours, fresh=False))

        count = rounds or self.rounds
        self.benchmark.pedantic(own, setup=rivals, rounds=count, iterations=1, warmup_rounds=0)
        for method, column, mib in zip(others, times[1:], memory[1:], strict=True):
            ratios = sorted(theirs / mine for theirs, mine in zip(column, times[0], strict=True))
            row = Row(
                operation,
                case,
                self.device,
                method.name,
                method.threads,
                1e3 * statistics.median(column),
                1e3 * statistics.median(times[0]),
                ours.threads,
                statistics.median(ratios),
                interval_of_median(ratios),
                count,
                mib,
                memory[0],
                self.error,
                self._bandwidth(moved, statistics.median(times[0])),
            )
            self.results.rows.append(row)
        self.benchmark.extra_info |= {"operation": operation, "case": case, "largest_error": self.error}
        self.finished = True

    def _timed(self, method: Method, fresh: bool = True) -> float:
        if fresh:
            time.sleep(PAUSE_S)
            self._flush()
        if self.device != "cuda":
            start = time.perf_counter()
            method.run()
            return time.perf_counter() - start
        import torch

        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        method.run()
        end_event.record()
        torch.cuda.synchronize()
        return start_event.elapsed_time(end_event) / 1e3

    def _flush(self) -> None:
        """Overwrite the GPU's second-level cache, so that every run starts cold."""
        if self.device == "cuda":
            import torch

            torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda").zero_()
            torch.cuda.synchronize()

    def _warm_and_measure(self, method: Method) -> float | None:
        """Run once to compile and fill caches; the peak memory in MiB that a second run adds, or None if unknown."""
        method.run()
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            method.run()
            return (torch.cuda.max_memory_allocated() - before) / MIB
        return host_peak_mib(method.run) if method.in_process else None

    def _bandwidth(self, moved: int, seconds: float) -> float | None:
        if self.device != "cuda" or not moved:
            return None
        import torch

        source = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        copies = [self._timed(Method("copy", lambda: target.copy_(source))) for _ in range(5)]
        return (moved / seconds) / (2 * FLUSH_BYTES / statistics.median(copies))


def devices() -> list[str]:
    """Where operations can be measured here: "cpu", and "cuda" where there is a GPU."""
    try:
        import torch
    except ImportError:
        return ["cpu"]
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def interval_of_median(values: list[float]) -> tuple[float, float]:
    """The order statistics that hold the median with a probability of 95 % or as near as so few values allow."""
    count = len(values)
    for below in range(count // 2, -1, -1):
        covered = 1 - 2 * sum(math.comb(count, k) for k in range(below + 1)) / 2**count
        if covered >= 0.95:
            return values[below], values[count - 1 - below]
    return values[0], values[-1]


def host_peak_mib(run: Callable[[], object]) -> float | None:
    """MiB by which this process grows at most while `run` runs; None where the system does not tell (not Linux)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status_kib("VmRSS")
        run()
        return (_status_kib("VmHWM") - before) / 1024
    except (OSError, AttributeError):
        return None


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def _arrays(values: Any) -> Iterable[np.ndarray]:
    """Arrays and tensors, alone or in a list, as double precision."""
    many = values if isinstance(values, list | tuple) else [values]
    for one in many:
        array = one if isinstance(one, np.ndarray) else one.detach().cpu().numpy()
        yield array.astype(np.float64)


def _largest_error(expected: Any, found: Any, tolerance: float) -> float:
    largest = max(_difference(*pair) for pair in zip(_arrays(expected), _arrays(found), strict=True))
    assert largest <= tolerance, f"parity: largest error {largest:.2e}, expected {tolerance:.0e} or less"
    return largest


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape:
        return math.inf
    scale = max(float(np.abs(expected).max(initial=0)), 1e-30)
    worst = float(np.abs(expected - found).max(initial=0)) / scale
    return worst if math.isfinite(worst) else math.inf
