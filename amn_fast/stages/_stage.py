"""What all stages share: the run folder, skipping and resuming, progress, time and memory."""

import fcntl
import functools
import hashlib
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import TaskID

from amn_fast._console import errors as console
from amn_fast._console import progress_bar as progress
from amn_fast.config import Config, to_yaml
from amn_fast.data import open_dataset
from amn_fast.data.base import Dataset, require_complete
from amn_fast.errors import BackendError, InputError, MissingExtra
from amn_fast.files import remove_leftovers, write_json, write_text
from amn_fast.stages._processes import require_single

FORMAT = 1
"""Raised when a stage computes something else than before under the same configuration."""

T = TypeVar("T")


class Workspace:
    """The run folder and everything that a stage reads and writes in it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = config.run

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data set; every id has its picture and label.

        Raises:
            InputError: it is not what it has to be, or lacks something; the message lists the ids.
        """
        dataset = open_dataset(self.config.data.kind, self.config.data.root, **self.config.data.options)
        require_complete(dataset)
        return dataset

    @functools.cached_property
    def device(self) -> torch.device:
        wanted = self.config.device
        if wanted == "cuda" and not torch.cuda.is_available():
            raise InputError("device is 'cuda', but PyTorch sees no CUDA device here; expected 'cpu' or 'auto'")
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(wanted)

    def weights(self, name: str) -> Path:
        """Trained weights of network `name`."""
        return self.root / "weights" / f"{name}.safetensors"

    def item(self, kind: str, id: str) -> Path:
        """The file that holds picture `id`'s part of `kind`."""
        suffix = ".npz" if kind in ("cam", "amn", "edge") else ".png"
        return self.root / kind / f"{id}{suffix}"

    def require(self, kind: str) -> None:
        """Check, before a stage starts, that an earlier one has covered every picture.

        Raises:
            InputError: files are missing; the first ids are listed.
        """
        missing = [id for id in self.dataset.ids if not self.item(kind, id).exists()]
        if missing:
            shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
            raise InputError(f"{self.root / kind} lacks {len(missing)} of {len(self.dataset.ids)} pictures: {shown}")

    def log(self, event: str, **fields: Any) -> None:
        """Append one line to log.jsonl."""
        path = self.root / "log.jsonl"
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "event": event, **fields}
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # a full disk does not say whose write failed
            raise OSError(error.errno, error.strerror, str(path)) from error

    def for_each(self, title: str, ids: Iterable[str], work: Callable[[str], None], threads: int = 1) -> None:
        """Do `work` for every picture, on several threads if asked; the first error names its picture and ends all."""
        ids = list(ids)

        def named(id: str) -> None:
            with naming_picture(id):
                work(id)

        with progress() as bar, ThreadPoolExecutor(threads) as pool:
            task = bar.add_task(title, total=len(ids), note="")
            try:
                for future in as_completed([pool.submit(named, id) for id in ids]):
                    future.result()
                    bar.advance(task)
            finally:  # an error or Ctrl-C waits for the pictures in work, not for the rest
                pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: the command's name.
        uses: names in the configuration that its result depends on, beside the data set and the seed.
        needs: the stages whose outputs it reads.
        makes: what it owns in the run folder: files and folders, removed when its configuration changes.
        work: does it; skips pictures whose output is there.
        together: whether several processes of torchrun may do it together; they meet in `work`.
    """

    name: str
    uses: tuple[str, ...]
    needs: tuple["Stage", ...]
    makes: tuple[str, ...]
    work: Callable[[Workspace], None]
    together: bool = False

    def fingerprint(self, config: Config) -> str:
        """Names everything that the stage's outputs depend on."""
        values = config.model_dump(mode="json")
        content = {
            "format": FORMAT,
            "stage": self.name,
            "data": values["data"],
            "seed": values["seed"],
            "uses": {name: values[name] for name in self.uses},
            "needs": [stage.fingerprint(config) for stage in self.needs],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def record(self, config: Config) -> dict[str, Any]:
        """What is known of the stage's last run: fingerprint, whether it is done, seconds, peak memory."""
        try:
            return json.loads(self._record_path(config).read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise InputError(
                f"{self._record_path(config)} is not JSON ({error}); remove it to run {self.name} again"
            ) from error

    def run(self, config: Config) -> bool:
        """Run the stage, or go on where it was stopped.

        Returns:
            whether it ran; False when its outputs exist under the same configuration.

        Raises:
            InputError: a stage that it needs has not run under this configuration, its input is wrong, or torchrun
                has started it in several processes and it knows only one.
        """
        if not self.together:
            require_single(self.name)
        with _only_one_run(config.run):
            for needed in self.needs:
                if not needed.is_done(config):
                    raise InputError(
                        f"{self.name} needs the outputs of {needed.name}, and {config.run} has none under this"
                        f" configuration; run `amn-fast {needed.name}` first, or `amn-fast run` for all stages"
                    )
            if self.is_done(config):
                console.print(f"{self.name}: done already under this configuration, skipped", style="dim")
                return False
            self._measured(config)
        return True

    def is_done(self, config: Config) -> bool:
        """Whether the stage has finished under this configuration and nothing that it made has been removed since."""
        record = self.record(config)
        if not record.get("done") or record["fingerprint"] != self.fingerprint(config):
            return False
        found = self._outputs(config)
        return all(found[name] >= count for name, count in record.get("outputs", {}).items())

    def adopt(self, config: Config, origin: str, take: Callable[[], None]) -> None:
        """Let `take` write the stage's outputs from elsewhere, and record them as done, with their origin."""
        with _only_one_run(config.run):
            write_json(self._record_path(config), {"fingerprint": "", "done": False, "from": origin})
            for name in self.makes:
                _remove(config.run / name)
            take()
            record = {"fingerprint": self.fingerprint(config), "done": True, "from": origin}
            write_json(self._record_path(config), {**record, "outputs": self._outputs(config)})

    def _outputs(self, config: Config) -> dict[str, int]:
        """The number of files of each thing that the stage makes."""
        paths = {name: config.run / name for name in self.makes}
        return {name: len(os.listdir(p)) if p.is_dir() else int(p.exists()) for name, p in paths.items()}

    def _measured(self, config: Config) -> None:
        workspace = Workspace(config)
        fingerprint = self.fingerprint(config)
        resumed = self.record(config).get("fingerprint") == fingerprint
        if not resumed:
            # The record is emptied before anything is removed: a kill in between must not leave half of it as done.
            write_json(self._record_path(config), {"fingerprint": "", "done": False})
            for name in self.makes:
                _remove(config.run / name)
            write_json(self._record_path(config), {"fingerprint": fingerprint, "done": False})
        for name in (*self.makes, "stages", "config.yaml"):
            remove_leftovers(config.run / name)
        write_text(config.run / "config.yaml", to_yaml(config))
        console.print(self.name + (" (going on where it was stopped)" if resumed else ""), style="bold")
        workspace.log("start", stage=self.name, resumed=resumed)
        make_deterministic()
        _reset_peak_memory()
        start = time.monotonic()
        self.work(workspace)
        record = {
            "fingerprint": fingerprint,
            "done": True,
            "resumed": resumed,
            "seconds": round(time.monotonic() - start, 2),
            "peak_memory_mb": round(_peak_memory_mb(), 1),
            "outputs": self._outputs(config),
        }
        write_json(self._record_path(config), record)
        workspace.log("done", stage=self.name, **record)

    def _record_path(self, config: Config) -> Path:
        return config.run / "stages" / f"{self.name}.json"


@contextmanager
def naming_picture(id: str) -> Iterator[None]:
    """Make every error say which picture it came from, on whatever thread or process it happens."""
    try:
        yield
    except InputError as error:
        if id in str(error):
            raise
        raise InputError(f"picture {id!r}: {error}") from error
    except (BackendError, MissingExtra, OSError):
        raise  # the installation or the disk, not the picture
    except Exception as error:
        raise RuntimeError(f"picture {id!r}: {type(error).__name__}: {error}") from error


def track(title: str, items: Iterable[T], total: int) -> Iterator[T]:
    """Show progress while iterating."""
    with progress() as bar:
        task: TaskID = bar.add_task(title, total=total, note="")
        for item in items:
            yield item
            bar.advance(task)


def make_deterministic() -> None:
    """Same input, same bits, also on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def _only_one_run(root: Path) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as file:
        try:
            # Not flock: the processes that load pictures would inherit it and keep it for a while after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise InputError(f"run folder {root} is in use by another process, expected one at a time") from None
        yield


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the highest resident size
    except OSError:
        return  # not Linux, or not allowed: the peak is then the process's, an upper bound


def _peak_memory_mb() -> float:
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
