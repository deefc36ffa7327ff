"""A process that computes shards: it gets tasks through a connection and reports each image."""

import contextlib
import os
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from amn_fast.errors import BackendError, InputError, MissingExtra
from amn_fast.label.listing import Given, Part
from amn_fast.label.places import Place
from amn_fast.label.shards import OK, Outcome, Row, mask_name, read_masks, read_rows, shard_name, write_shard

if TYPE_CHECKING:
    from amn_fast.label.labeler import Labeler

GIVEN, SIDECARS, PREDICTED = "given", "sidecars", "predicted"
"""Where labels come from: the label file, files beside the images, the run's classifier."""


@dataclass(frozen=True)
class Setup:
    """What a worker needs for every shard of a job.

    Attributes:
        run: folder of the finished run.
        out: where outputs go.
        job: the job's hash.
        labels: GIVEN, SIDECARS or PREDICTED.
        thresholds: of the classifier, by class; None unless labels are predicted.
        archives: whether the masks of a shard are one tar.
        threads: images at a time; the network takes one thread for each.
        device: of the networks; None takes the run's setting.
    """

    run: str
    out: str
    job: str
    labels: str
    thresholds: dict[str, float] | None
    archives: bool
    threads: int
    device: str | None


@dataclass(frozen=True)
class Task:
    """A shard to compute.

    Attributes:
        shard: its number.
        part: its images.
        failures: sentences by id, of images that are not to be tried again.
        retry: compute only the images that the shard's table has as errors.
    """

    shard: int
    part: Part
    failures: dict[str, str] = field(default_factory=dict)
    retry: bool = False


@dataclass(frozen=True)
class Begun:
    """An image is in work."""

    id: str


@dataclass(frozen=True)
class Ended:
    """An image is finished."""

    id: str
    ok: bool


@dataclass(frozen=True)
class Ready:
    """The networks are loaded."""


@dataclass(frozen=True)
class Broken:
    """The worker cannot go on: a sentence for the user."""

    message: str


Report = Callable[[Any], None]


def main(connection: Connection, setup: Setup, number: int) -> None:
    """Compute the shards that come through the connection until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = threading.Lock()

    def report(message: Any) -> None:
        with lock:
            connection.send(message)

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            labeler = load(setup, number)
            report(Ready())
            while True:
                report(compute(setup, labeler, connection.recv(), report))
        except (InputError, BackendError, MissingExtra) as error:
            report(Broken(str(error)))
        except OSError as error:
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                raise
            report(Broken(f"{error.filename}: {error.strerror}" if error.filename else str(error)))


def load(setup: Setup, number: int = 0) -> "Labeler":
    """Load the networks, and set this process up for bit-identical results.

    Args:
        number: of the worker; it chooses among several GPUs.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported, for threads that start later
    import cv2
    import torch

    from amn_fast.label.labeler import Labeler
    from amn_fast.pipeline.engine import make_deterministic

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    make_deterministic()
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    return Labeler(setup.run, device=setup.device, thresholds=setup.thresholds)


def compute(setup: Setup, labeler: "Labeler", task: Task, report: Report) -> Outcome:
    """Compute a shard and write its outputs.

    Raises:
        OSError: an output cannot be written.
        BackendError, MissingExtra: the installation cannot do it. What is wrong with one image is its row alone.
    """
    from amn_fast._pool import thread_pool

    place, owner, start = Place(setup.out), shard_name(task.shard), time.monotonic()
    place.clean(owner)
    rows: dict[str, Row] = {}
    masks: dict[str, bytes] = {}
    if task.retry:
        rows = {row.id: row for row in read_rows(place, task.shard) if row.status == OK}
        masks = {id: mask for id, mask in read_masks(place, task.shard).items() if id in rows}
    seconds: dict[str, float] = {}

    def one(given: Given) -> None:
        begun = time.monotonic()
        report(Begun(given.id))
        row, mask = label_one(setup, labeler, given)
        if mask is not None and setup.archives:
            masks[given.id] = mask
        elif mask is not None:
            place.write(mask_name(given.id), mask, owner)
        rows[given.id] = row
        seconds[given.id] = round(time.monotonic() - begun, 4)
        report(Ended(given.id, row.status == OK))

    kept = set(rows)
    with thread_pool(setup.threads) as pool:
        pending: deque[Future[None]] = deque()
        for given in task.part.images(labeler.classes, setup.labels == SIDECARS):
            if given.id in kept:
                report(Ended(given.id, True))
            elif given.id in task.failures:
                rows[given.id] = Row.failed(given.id, task.failures[given.id])
                report(Ended(given.id, False))
            else:
                pending.append(pool.submit(one, given))
            while len(pending) > setup.threads:
                pending.popleft().result()
        for future in pending:
            future.result()
    log = [{"host": platform.node(), "pid": os.getpid(), "seconds": round(time.monotonic() - start, 3)}]
    log += [{"id": id, "seconds": taken} for id, taken in sorted(seconds.items())]
    ordered = [rows[id] for id in sorted(rows)]
    return write_shard(place, task.shard, setup.job, ordered, masks if setup.archives else None, log)


def label_one(setup: Setup, labeler: "Labeler", given: Given) -> tuple[Row, bytes | None]:
    """The row and the mask, as PNG, of one image; a row with an error, and no mask, where it cannot be used."""
    from amn_fast.data.image import read_image
    from amn_fast.data.masks import encode_mask

    try:
        image = read_image(given.image())
        found = labeler.label(image, None if setup.labels == PREDICTED else given.labels())
        height, width = found.mask.shape
        mask = encode_mask(found.mask, given.id)
        row = Row(given.id, OK, found.labels, found.predicted, height, width, found.areas, round(found.doubt, 6))
        return row, mask
    except InputError as error:
        return Row.failed(given.id, error), None
    except (BackendError, MissingExtra):
        raise
    except Exception as error:  # this image alone: too large for the memory, for example
        return Row.failed(given.id, f"{type(error).__name__}: {error}"), None


def _end_with_parent() -> None:
    """End this process when its parent does, whatever it is doing."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
