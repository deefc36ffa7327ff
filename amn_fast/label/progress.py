"""How far a job is: on the console, and in a file that can be read while it runs."""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from amn_fast._console import errors as console
from amn_fast._console import progress_bar
from amn_fast.label.engines import Computed, Event, Started
from amn_fast.label.places import Place
from amn_fast.label.shards import Outcome

EVERY = 10.0
"""Seconds between two states in the file, and two lines where the console is no terminal."""


@dataclass
class Progress:
    """Counts of images and errors.

    Attributes:
        total: images of this process's share; None where they are not known.
        shards, shards_done: of this share.
        finished, errors: images of finished shards, and errors among them; those of earlier runs count.
        running: images and errors of each shard in work.
        earlier: images that were finished before this process started.
    """

    total: int | None
    shards: int
    shards_done: int = 0
    finished: int = 0
    errors: int = 0
    running: dict[int, tuple[int, int]] = field(default_factory=dict)
    earlier: int = 0
    started: float = field(default_factory=time.monotonic)

    def take(self, event: Event) -> None:
        """Count an event of an engine."""
        if isinstance(event, Started):
            self.running[event.shard] = (0, 0)
        elif isinstance(event, Computed):
            images, errors = self.running[event.shard]
            self.running[event.shard] = (images + 1, errors + (not event.ok))
        else:
            self.running.pop(event.shard, None)
            self.add(event)

    def add(self, outcome: Outcome) -> None:
        """Count a finished shard."""
        self.shards_done += 1
        self.finished += outcome.images
        self.errors += outcome.errors

    @property
    def images(self) -> int:
        """Images so far, those of shards in work included."""
        return self.finished + sum(images for images, _ in self.running.values())

    @property
    def all_errors(self) -> int:
        """Errors so far, those of shards in work included."""
        return self.errors + sum(errors for _, errors in self.running.values())

    @property
    def speed(self) -> float:
        """Images per second since the start."""
        return (self.images - self.earlier) / max(1e-9, time.monotonic() - self.started)

    @property
    def remaining_seconds(self) -> float | None:
        """Expected time to the end; None where it is not known."""
        if self.total is None:
            done = self.shards_done / self.shards if self.shards else 1.0
            return (time.monotonic() - self.started) * (1 / done - 1) if done and not self.earlier else None
        return (self.total - self.images) / self.speed if self.images > self.earlier else None

    def __str__(self) -> str:
        of = f" of {self.total}" if self.total is not None else ""
        left = self.remaining_seconds
        text = f"{self.images}{of} images, {self.all_errors} errors, {self.speed:.1f} images/s"
        return text + (f", {duration(left)} left" if left is not None else "")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Examples:
        >>> duration(3725)
        '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def progress_name(share: str) -> str:
    """The name of a share's progress file, and the owner of what a killed process leaves of it."""
    return f"progress-{share}"


class Reporter:
    """Writes progress to OUT/logs/progress-SHARE.json, and to the console."""

    def __init__(self, place: Place, share: str, progress: Progress, quiet: bool) -> None:
        self._place, self._share, self._progress, self._quiet = place, share, progress, quiet
        self._next = 0.0
        self._bar = progress_bar(shown=not quiet and sys.stderr.isatty())
        self._task = self._bar.add_task("label", total=progress.total or progress.shards, note="")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar, and write the last state at the end, whatever ends the job."""
        with self._bar:
            try:
                yield
            finally:
                self.write()

    def update(self) -> None:
        """Show the present state; called at each event, it does little at most of them."""
        now = time.monotonic()
        if now < self._next:
            return
        first, self._next = self._next == 0.0, now + (EVERY if not sys.stderr.isatty() else min(EVERY, 1.0))
        done = self._progress.images if self._progress.total else self._progress.shards_done
        self._bar.update(self._task, completed=done, note=str(self._progress).partition("images, ")[2])
        if not first:
            self.write()
            if not self._quiet and not sys.stderr.isatty():
                console.print(str(self._progress))

    def write(self) -> None:
        """Write the state to the file."""
        state = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "host": platform.node(),
            "pid": os.getpid(),
            "images": self._progress.images,
            "of": self._progress.total,
            "shards": self._progress.shards_done,
            "of_shards": self._progress.shards,
            "errors": self._progress.all_errors,
            "images_per_second": round(self._progress.speed, 3),
            "seconds_left": self._progress.remaining_seconds,
        }
        name = progress_name(self._share)
        self._place.write(f"logs/{name}.json", (json.dumps(state) + "\n").encode(), name)
