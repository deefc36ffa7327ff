"""A labelling job from its arguments to its outputs: `label_images`, and how far it is: `job_status`."""

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amn_fast._console import errors as console
from amn_fast._extras import require
from amn_fast.errors import InputError
from amn_fast.label.engines import Crew, Event, run_on_ray
from amn_fast.label.finished import classes_of, identity_of
from amn_fast.label.inputs import open_listing
from amn_fast.label.listing import Listing
from amn_fast.label.places import Place, is_url
from amn_fast.label.progress import Progress, Reporter, progress_name
from amn_fast.label.shards import (
    ERROR,
    Row,
    claim,
    finished_shards,
    read_job,
    read_manifest,
    read_rows,
)
from amn_fast.label.worker import GIVEN, PREDICTED, SIDECARS, Setup, Task
from amn_fast.ops._arrays import number, thread_count


@dataclass(frozen=True)
class Options:
    """How a job is computed; outputs depend on the first five alone.

    Attributes:
        labels: a file of image-level labels.
        sidecars: take labels from files beside the images.
        predict: take labels from the run's classifier, at thresholds of this precision on its training images.
        shard_size: images in a shard.
        archives: write the masks of a shard as one tar, in place of a PNG each.
        workers: processes; None takes all CPUs, one each.
        threads: images at a time in each process; None shares the CPUs among the processes.
        share: (i, n): compute the shards whose number leaves i when divided by n.
        ray: address of a Ray cluster, or "local".
        gpus: share of a GPU for each of Ray's tasks.
        device: of the networks; None takes the run's setting.
        timeout: seconds for an image; None sets no limit.
        max_errors: end the job when more images are errors.
        retry_failed: compute the images again that finished shards have as errors.
        quiet: print nothing.
    """

    labels: Path | None = None
    sidecars: bool = False
    predict: float | None = None
    shard_size: int = 1000
    archives: bool = False
    workers: int | None = None
    threads: int | None = None
    share: tuple[int, int] = (0, 1)
    ray: str | None = None
    gpus: float = 0.0
    device: str | None = None
    timeout: float | None = 600.0
    max_errors: int | None = None
    retry_failed: bool = False
    quiet: bool = False


def label_images(run: Path | str, source: str, out: str, options: Options) -> Progress:
    """Label the images at `source` with the networks of a finished run, and write masks and tables to `out`.

    Finished shards are skipped. Whatever ends the process, the same call resumes; the outputs are the same bytes.

    Args:
        run: folder of the run.
        source: see `amn_fast.label.inputs.open_listing`.
        out: folder of the outputs, a path or a URL; see `amn_fast.label.shards`.
        options: how.

    Returns:
        counts of images and errors, those of earlier calls included.

    Raises:
        InputError: an argument is not valid, `out` belongs to another job, or there are too many errors.
    """
    require("fsspec", "label")
    require("pyarrow", "label")
    labels = _label_source(options)
    run, place = Path(run).absolute(), Place(out)
    source = source if is_url(source) else os.path.abspath(source)  # workers may have another working directory
    identity = identity_of(run)
    _check_apart(source, out, run)
    listing = open_listing(source, options.shard_size, options.labels, classes_of(run))
    predicted = _predicted(run, place, options)
    identity |= {"listing": listing.identity, "labels": labels, "predicted": predicted, "archives": options.archives}
    job = claim(place, identity)
    processes, threads = _processes(options)
    thresholds = {name: found["threshold"] for name, found in predicted["classes"].items()} if predicted else None
    where = place.location if is_url(place.location) else os.path.abspath(place.location)
    setup = Setup(str(run), where, job, labels, thresholds, options.archives, threads, options.device)
    i, n = options.share
    share = f"{i}of{n}"
    for owner in ("job", progress_name(share)):
        place.clean(owner)
    mine = [shard for shard in range(listing.shards) if shard % n == i]
    progress, todo = _begin(place, listing, mine, options.retry_failed)
    reporter = Reporter(place, share, progress, options.quiet)
    tasks = (Task(shard, listing.part(shard), retry=retry) for shard, retry in todo)
    crew = Crew(setup, min(processes, len(todo)), options.timeout) if todo and options.ray is None else None
    with crew or nullcontext(), reporter.shown():
        for event in _events(crew, setup, tasks, options) if todo else ():
            progress.take(event)
            reporter.update()
            if options.max_errors is not None and progress.all_errors > options.max_errors:
                raise InputError(
                    f"{place}: {progress.all_errors} images are errors, more than --max-errors {options.max_errors};"
                    " amn-fast label-status shows them"
                )
    place.remove_empty("tmp")
    return progress


def _events(crew: Crew | None, setup: Setup, tasks: Iterator[Task], options: Options) -> Iterator[Event]:
    if crew is not None:
        return crew.run(tasks)
    assert options.ray is not None

    def announce(line: str) -> None:
        if not options.quiet:
            console.print(line)

    return run_on_ray(options.ray, setup, tasks, options.timeout, options.gpus, announce)


def _label_source(options: Options) -> str:
    given = {GIVEN: options.labels is not None, SIDECARS: options.sidecars, PREDICTED: options.predict is not None}
    chosen = [name for name, on in given.items() if on]
    if len(chosen) != 1:
        raise InputError(
            f"labels: found {len(chosen)} sources, expected one of --labels FILE, --sidecars and --predict-labels"
        )
    if options.shard_size < 1:
        raise InputError(f"shard size is {options.shard_size}, expected 1 or more")
    i, n = options.share
    if not 0 <= i < n:
        raise InputError(f"shard is {i}/{n}, expected i/n with i in 0..n-1")
    if options.timeout is not None:
        number("timeout", options.timeout, "(0, inf)")
    return chosen[0]


def _processes(options: Options) -> tuple[int, int]:
    """Processes, and images at a time in each."""
    cpus = thread_count(None)
    processes = thread_count(options.workers)
    return processes, thread_count(options.threads) if options.threads is not None else max(1, cpus // processes)


def _check_apart(source: str, out: str, run: Path) -> None:
    """Check that outputs neither lie among the images nor around them or the run."""
    if is_url(out):
        if is_url(source) and f"{out.rstrip('/')}/".startswith(f"{source.rstrip('/')}/"):
            raise InputError(f"{out}: lies in {source}, where the images are; expected a folder apart")
        return
    target = Path(out).resolve()
    places = [(run, "run folder")] + ([] if is_url(source) else [(Path(source), "input")])
    for path, what in places:
        found = path.resolve()
        if found.is_relative_to(target) or (found.is_dir() and target.is_relative_to(found)):
            raise InputError(f"{out}: overlaps the {what}, {path}; expected a folder apart")


def _predicted(run: Path, place: Place, options: Options) -> dict[str, Any] | None:
    """The classifier's thresholds: those of the job that the folder belongs to, or new ones."""
    if options.predict is None:
        return None
    job = read_job(place)
    known = (job or {}).get("predicted")
    if isinstance(known, dict) and known.get("precision") == options.predict:
        return known
    from amn_fast.label.labeler import Labeler
    from amn_fast.label.prediction import choose_thresholds

    if not options.quiet:
        console.print(f"choosing thresholds on the training images of {run}")
    found = choose_thresholds(Labeler(run, device=options.device), options.predict)
    return {"precision": options.predict, "classes": {name: asdict(each) for name, each in found.items()}}


def _begin(place: Place, listing: Listing, mine: list[int], retry: bool) -> tuple[Progress, list[tuple[int, bool]]]:
    """Counts of the shards that are finished, and the others: number, and whether failed images alone are computed."""
    total = None if listing.images is None else sum(listing.size(shard) for shard in mine)
    progress = Progress(total, len(mine))
    there, todo = finished_shards(place), []
    for shard in mine:
        found = read_manifest(place, shard) if shard in there else None
        if found is None:
            todo.append((shard, False))
        elif retry and found.errors:
            todo.append((shard, True))
        else:
            progress.add(found)
    progress.earlier = progress.finished
    return progress, todo


@dataclass(frozen=True)
class JobStatus:
    """How far a job is.

    Attributes:
        shards: finished shards.
        of_shards: all shards.
        images, errors: in finished shards.
        of_images: all images; None where they are in archives.
        failed: the first rows with errors.
        running: the last states that processes have written.
    """

    shards: int
    of_shards: int
    images: int
    of_images: int | None
    errors: int
    failed: list[Row]
    running: list[dict[str, Any]]


def job_status(out: str, most: int = 10) -> JobStatus:
    """Read how far the job in a folder is.

    Args:
        out: the folder, a path or a URL.
        most: failed images to list.

    Raises:
        InputError: no job has written it.
    """
    place = Place(out)
    job = read_job(place)
    if job is None:
        raise InputError(f"{out}: holds no labelling job")
    listing = job["listing"]
    images = listing.get("images")
    of_shards = len(listing["archives"]) if images is None else -(-images // listing["shard_size"])
    outcomes = [found for shard in sorted(finished_shards(place)) if (found := read_manifest(place, shard))]
    failed: list[Row] = []
    for outcome in outcomes:
        if outcome.errors and len(failed) < most:
            failed += [row for row in read_rows(place, outcome.shard) if row.status == ERROR]
    running = []
    for name in place.names("logs"):
        if name.startswith("progress-") and (content := place.read(f"logs/{name}")):
            running.append({"share": name.removeprefix("progress-").removesuffix(".json"), **json.loads(content)})
    counts = sum(found.images for found in outcomes), sum(found.errors for found in outcomes)
    return JobStatus(len(outcomes), of_shards, counts[0], images, counts[1], failed[:most], running)
