"""The run folder: its paths, its data sets, its log, and who may use it."""

import functools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from amn_fast._console import errors as console
from amn_fast.config import Config, is_path
from amn_fast.data import open_dataset
from amn_fast.data.base import Dataset, list_ids, require_complete
from amn_fast.errors import InputError
from amn_fast.files import holds_leftovers_alone, locked, write_json
from amn_fast.pipeline.contents import Contents
from amn_fast.pipeline.processes import Processes
from amn_fast.pipeline.records import RECORDS, Record, read_record, write_record
from amn_fast.pipeline.table import STAGES, Stage
from amn_fast.steps.health import Finding

SUFFIXES = {path.split("/")[0]: path.split("{id}")[1] for s in STAGES for path in s.outputs if "{id}" in path}
"""Folder of a stage's outputs -> ending of its files."""


class Workspace:
    """The run folder and everything that a stage reads in it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = config.run
        self.processes = Processes()
        self._records: dict[str, Record | None] = {}
        self._written: dict[str, dict[str, str] | None] = {}
        self.contents = Contents(self.root / RECORDS / "files.json")

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data set; every id has its image and label.

        Raises:
            InputError: it is not what it has to be, or lacks something; the message lists the ids.
        """
        dataset = open_dataset(self.config.data.kind, self.config.data.root, **self.config.data.options)
        require_complete(dataset)
        return dataset

    @functools.cached_property
    def evaluated(self) -> Dataset:
        """The set to evaluate the segmentation network on. It needs images only, neither labels nor ground truth.

        Raises:
            InputError: images are missing, or its classes are not those that the network is trained on.
        """
        settings = self.config.eval_seg
        if settings.data is None and not settings.options:
            return self.dataset
        data = settings.data or self.config.data
        dataset = open_dataset(data.kind, data.root, **data.options | settings.options)
        if missing := dataset.missing()["image"]:
            raise InputError(f"data set {dataset.name}: {list_ids(missing)} of {len(dataset.ids)} have no image")
        if dataset.classes != self.dataset.classes:
            raise InputError(
                f"data set {dataset.name} has the classes {', '.join(dataset.classes)},"
                f" expected those that the network was trained on: {', '.join(self.dataset.classes)}"
            )
        return dataset

    @functools.cached_property
    def device(self) -> torch.device:
        wanted = self.config.device
        if wanted == "cuda" and not torch.cuda.is_available():
            raise InputError("device is 'cuda', but PyTorch sees no CUDA device here; expected 'cpu' or 'auto'")
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        if wanted == "cpu" and self.config.precision == "float16":
            raise InputError("precision is 'float16' on device 'cpu', expected 'bfloat16' or 'float32' there")
        return torch.device(wanted)

    def record(self, stage: Stage) -> Record | None:
        """The record of a stage; None where it has not finished."""
        if stage.name not in self._records:
            self._records[stage.name] = read_record(self.root, stage)
        return self._records[stage.name]

    def set_record(self, stage: Stage, record: Record) -> None:
        """Write the record of a stage."""
        write_record(self.root, stage, record)
        self._records.pop(stage.name, None)
        self._written.pop(stage.name, None)

    def written_by(self, stage: Stage) -> dict[str, str] | None:
        """Hashes of what a stage wrote, by path; None where it has not finished."""
        if stage.name not in self._written:
            record = self.record(stage)
            self._written[stage.name] = record.outputs() if record else None
        return self._written[stage.name]

    def weights(self, name: str) -> Path:
        """Trained weights of network `name`."""
        return self.root / "weights" / f"{name}.safetensors"

    def item(self, kind: str, id: str) -> Path:
        """The file that holds the part of image `id` in folder `kind`."""
        return self.root / kind / f"{id}{SUFFIXES[kind]}"

    def trusted(self, id: str) -> Path | None:
        """The trusted mask of image `id`; None where there is none."""
        if self.config.trusted is None:
            return None
        path = self.config.trusted / f"{id}.png"
        return path if path.is_file() else None

    def require(self, kind: str) -> None:
        """Check that folder `kind` covers every image.

        Raises:
            InputError: files are missing; the first ids are listed.
        """
        missing = [id for id in self.dataset.ids if not self.item(kind, id).exists()]
        if missing:
            raise InputError(f"{self.root / kind}: {list_ids(missing)} of {len(self.dataset.ids)} have no file")

    def log(self, event: str, **fields: Any) -> None:
        """Append one line to log.jsonl."""
        path = self.root / "log.jsonl"
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "event": event, **fields}
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # a full disk does not say whose write failed
            raise OSError(error.errno, error.strerror, str(path)) from error

    def tell(self, found: Finding) -> None:
        """Say what a health check found, on the console and in the log."""
        console.print(f"{found.word}: {found.text}", soft_wrap=True)
        self.log("health", **found.to_json())


@contextmanager
def only_one_run(root: Path) -> Iterator[bool]:
    """Keep other processes out of a run folder, which is made when it is not there.

    Yields:
        whether it can be written; a folder on a read-only disk can still be looked at.

    Raises:
        InputError: another process uses it.
        OSError: it is not there and cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    if not os.access(root, os.W_OK) and is_run_folder(root):
        yield False
        return
    with locked(root / ".lock") as alone:
        if not alone:
            raise InputError(f"run folder {root} is in use by another process, expected one at a time")
        yield True


def claim(root: Path) -> None:
    """Mark a folder as a run folder."""
    marker = root / RECORDS / "run.json"
    if not marker.exists():
        write_json(marker, {"made_by": "amn-fast", "since": time.strftime("%Y-%m-%d")})


def check_free(config: Config) -> None:
    """Check that the run folder is new, empty, or one that an earlier run has made.

    Raises:
        InputError: it holds something else.
    """
    root = config.run
    if not root.is_dir() or is_run_folder(root):
        return
    demo = config.data.root.resolve() if config.data.kind == "demo" else None  # the demo makes its own images
    begun = root / RECORDS if holds_leftovers_alone(root / RECORDS) else None  # by a run that was killed at once
    others = sorted(p.name for p in root.iterdir() if p.name != ".lock" and p != begun and p.resolve() != demo)
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise InputError(
            f"run folder {root} holds {len(others)} files that no run has made ({shown}),"
            " expected a new or empty folder, or one of an earlier run"
        )


def check_apart(work: Workspace, sources: dict[str, Path] | None = None) -> None:
    """Check that the run folder is apart from everything that is read.

    It may lie beside the folder of images in the data folder, but neither in a folder that is read nor around one.

    Args:
        sources: what else is read, by what it is: the folder of an import.

    Raises:
        InputError: it overlaps what is read; links are followed.
    """
    config, root = work.config, work.root.resolve()
    inside = {"data folder": config.data.root}
    around = dict(sources or {})
    if config.eval_seg.data is not None:
        inside["data folder of eval_seg"] = config.eval_seg.data.root
    if config.train_seg.masks is not None:
        around["folder of train_seg.masks"] = config.train_seg.masks
    if config.trusted is not None:
        around["folder of trusted"] = config.trusted
    for name, weights in (("weights", config.weights), ("train_seg.weights", config.train_seg.weights)):
        if weights is not None and is_path(weights):
            inside[name] = Path(weights)
    if config.data.kind == "demo":  # its images are made, not given; they may lie in the run folder
        del inside["data folder"]
        around["data folder"] = config.data.root
        if config.data.root.resolve() != root and config.data.root.resolve().is_relative_to(root):
            del around["data folder"]
    else:
        dataset = work.dataset
        for what, file_of in (("folder of images", dataset.image_file), ("ground truth", dataset.truth_file)):
            folders = {file.parent for id in dataset.ids if (file := file_of(id)) is not None}
            around |= {f"{what} {k}" if k else what: folder for k, folder in enumerate(sorted(folders))}
        for name, value in config.data.options.items():
            if isinstance(value, str) and value and (config.data.root / value).exists():
                inside[f"data.options.{name}"] = config.data.root / value
    for what, path in {**inside, **around}.items():
        found = path.resolve()
        if found.is_relative_to(root) or (what in around and root.is_relative_to(found)):
            raise InputError(
                f"run folder {work.root} overlaps the {what}, {path}; expected a folder apart from all that is read"
            )


def is_run_folder(root: Path) -> bool:
    """Whether a run has made this folder; one of an earlier version counts."""
    records = root / RECORDS
    return (records / "run.json").is_file() or any((records / f"{stage.name}.json").is_file() for stage in STAGES)


def check_names(dataset: Dataset) -> None:
    """Check that every id can name a file of a run.

    Raises:
        InputError: an id is not UTF-8, leaves its folder, or is too long.
    """
    longest = 255 - max(len(suffix) for suffix in SUFFIXES.values())
    for id in dataset.ids:
        try:
            parts = [os.fsencode(part.encode("utf-8")) for part in id.split("/")]
        except UnicodeEncodeError:
            raise InputError(
                f"data set {dataset.name}: the name of image {id!a} is not valid UTF-8, rename the file"
            ) from None
        if "\0" in id or any(part in (b"", b".", b"..") for part in parts):
            raise InputError(f"data set {dataset.name}: the id {id!r} is no name of a file inside a folder")
        if any(len(part) > longest for part in parts):
            raise InputError(
                f"data set {dataset.name}: the id {id[:40]}... has {len(parts[-1])} bytes, expected at most {longest}"
            )
