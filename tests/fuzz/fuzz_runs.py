"""Runs of the pipeline under attack: killed at random points, on a full disk, with inputs and outputs that change.

Whatever happens, what a run ends with is bit-identical to an undisturbed run on the same inputs, and a file that
somebody else has put into the run folder is never lost. The networks are replaced by arithmetic that takes no time:
the subject is the run folder.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from amn_fast import pipeline
from amn_fast.config import Config
from amn_fast.data.masks import write_mask
from amn_fast.data.store import Activations
from amn_fast.errors import InputError
from amn_fast.pipeline import inference, trainings

RESULTS = ("weights", "cam", "cam_seed", "amn", "amn_seed", "edge", "masks", "evaluation.json")
CLASSES = ("cat", "cup")


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the pipeline may catch it."""


def make_data(rng: np.random.Generator, root: Path) -> None:
    """A few images with labels and ground truth."""
    ids = [f"im{k}" for k in range(int(rng.integers(3, 7)))]
    for id in ids:
        size = rng.integers(8, 24, 2)
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / "images" / f"{id}.png")
        write_mask(root / "masks" / f"{id}.png", rng.integers(0, 3, size))
    rows = [f"{id},{rng.integers(2)},{rng.integers(2)}" for id in ids]
    (root / "labels.csv").write_text("\n".join(["id,cat,cup", *rows]) + "\n")
    (root / "classes.txt").write_text("cat\ncup\n")


def configure(root: Path, run: Path, background: float) -> Config:
    return Config.model_validate(
        {
            "name": "fuzz",
            "run": run,
            "data": {"kind": "folder", "root": root, "options": {"masks": "masks", "classes": "classes.txt"}},
            "weights": None,
            "backbone": "resnet18",
            "device": "cpu",
            "cam_seed": {"fg": 0.3, "bg": 0.05},  # not chosen: there are no real weights
            "mask": {"background": background},
        }
    )


def _digest(*parts: Any) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(b"|".join(bytes(p) for p in parts)).digest()[:4], "big")


def _train(name: str) -> Any:
    """Weights that depend on all images, labels and seeds, as those of a training do."""

    def train(work: Any, new: Any) -> None:
        state = [np.ascontiguousarray(work.dataset.image(id)) for id in work.dataset.ids]
        state += [work.dataset.labels(id) for id in work.dataset.ids]
        if name != "cam":
            folder = work.root / {"amn": "cam_seed", "irn": "amn_seed"}[name]
            state += [np.frombuffer((folder / f"{id}.png").read_bytes(), np.uint8) for id in work.dataset.ids]
        from amn_fast.files import write_atomically

        write_atomically(new(work.weights(name)), lambda file: file.write(str(_digest(*state)).encode()))

    return train


def _activate(kind: str, weights: str) -> Any:
    def make(work: Any, new: Any) -> Any:
        seed = int(work.weights(weights).read_text())

        def one(id: str) -> None:
            image, labels = work.dataset.image(id), work.dataset.labels(id)
            keys = (np.flatnonzero(labels) + 1).astype(np.uint8)
            rng = np.random.default_rng([seed, _digest(image)])
            height, width = image.shape[:2]
            strided = rng.random((len(keys), (height - 1) // 4 + 1, (width - 1) // 4 + 1)).astype(np.float32)
            full = rng.random((len(keys), height, width)).astype(np.float32)
            inference.write_activations(new(work.item(kind, id)), Activations(keys, strided, full))

        return one

    return make


def _masks(work: Any, new: Any) -> Any:
    seed = int(work.weights("irn").read_text())

    def one(id: str) -> None:
        found = inference.read_strided(work.item("amn", id))
        edge = np.random.default_rng([seed, found.size[0]]).random(found.strided.shape[1:]).astype(np.float32)
        inference.write_edge(new(work.item("edge", id)), edge)
        write_mask(new(work.item("masks", id)), inference.mask.make_mask(found, edge, work.config.mask))

    return one


@contextmanager
def arithmetic_in_place_of_networks() -> Iterator[None]:
    with (
        mock.patch.object(trainings, "train_cam", _train("cam")),
        mock.patch.object(trainings, "train_amn", _train("amn")),
        mock.patch.object(trainings, "train_irn", _train("irn")),
        mock.patch.object(inference, "make_cam", _activate("cam", "cam")),
        mock.patch.object(inference, "make_amn_cam", _activate("amn", "amn")),
        mock.patch.object(inference, "make_masks", _masks),
        mock.patch("amn_fast.pipeline.runner._build_networks"),
        mock.patch("amn_fast.pipeline.reporting.write_report", lambda root, *_, **__: _page(root)),
        mock.patch("amn_fast.pipeline.engine.progress", _no_progress),
        mock.patch("amn_fast.pipeline.runner.console.print"),
        mock.patch("os.fsync"),
    ):
        yield


def _page(root: Path) -> Path:
    (root / "report.html").write_text("page")
    return root / "report.html"


@contextmanager
def _no_progress(shown: bool = True) -> Iterator[Any]:
    yield mock.MagicMock()


@contextmanager
def interrupted_at(step: int, failure: BaseException) -> Iterator[None]:
    """Raise `failure` at the `step`-th file that is written, moved or removed; a half-written file stays."""
    count = 0
    originals = {name: getattr(os, name) for name in ("replace", "unlink")}

    def counted(name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                raise failure
            return originals[name](*arguments, **options)

        return call

    with mock.patch("os.replace", counted("replace")), mock.patch("os.unlink", counted("unlink")):
        yield


def results(run: Path) -> dict[str, bytes]:
    """Every byte that the stages computed."""
    found = {}
    for name in RESULTS:
        path = run / name
        files = [path] if path.is_file() else path.rglob("*")
        found |= {str(f.relative_to(run)): f.read_bytes() for f in files if f.is_file() and f.name != "mine.png"}
    found.pop("evaluation.json", None)  # holds times
    return found


def change(rng: np.random.Generator, root: Path, run: Path) -> str:
    """Change something, as a user or an accident does; what it was."""
    images = sorted((root / "images").iterdir())
    victim = images[rng.integers(len(images))]
    outputs = sorted(p for name in RESULTS for p in (run / name).rglob("*.*") if p.name != "mine.png")
    kind = str(rng.choice(["image", "label", "truth", "remove", "empty", "swap", "delete", "touch", "nothing"]))
    if kind == "image":
        size = rng.integers(8, 24, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(victim)
        write_mask(root / "masks" / victim.name, rng.integers(0, 3, size))
    elif kind == "label":
        rows = (root / "labels.csv").read_text().splitlines()
        place = int(rng.integers(1, len(rows)))
        rows[place] = f"{rows[place].split(',')[0]},{rng.integers(2)},{rng.integers(2)}"
        (root / "labels.csv").write_text("\n".join(rows) + "\n")
    elif kind == "truth":
        write_mask(root / "masks" / victim.name, np.zeros(Image.open(victim).size[::-1], np.uint8))
    elif kind == "remove" and len(images) > 2:
        victim.unlink()
    elif kind == "touch":
        os.utime(victim, (1, 1))
    elif outputs and kind in ("empty", "swap", "delete"):
        path = outputs[rng.integers(len(outputs))]
        if kind == "empty":
            path.write_bytes(b"")
        elif kind == "delete":
            path.unlink()
        elif others := [output for output in outputs if output != path]:
            shutil.copyfile(others[rng.integers(len(others))], path)
    return kind


def one(rng: np.random.Generator, folder: Path) -> None:
    """One case: a run with kills, full disks and changes, against an undisturbed run on what is there at the end.

    Args:
        rng: decides everything.
        folder: an empty folder to work in.
    """
    torch.set_num_threads(1)
    root, run = folder / "data", folder / "run"
    make_data(rng, root)
    story = []
    with arithmetic_in_place_of_networks():
        for _ in range(int(rng.integers(2, 6))):
            background = float(rng.choice([0.1, 0.4]))
            failure = Killed() if rng.random() < 0.6 else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")
            step = int(rng.integers(1, 200))
            try:
                with interrupted_at(step, failure):
                    pipeline.run(configure(root, run, background), overwrite=True)
                story.append("done")
            except (Killed, OSError) as error:
                story.append(f"{type(error).__name__} at {step}")
            if (run / "masks").is_dir():
                (run / "masks" / "mine.png").write_bytes(b"mine")
            if rng.random() < 0.7:
                story.append(change(rng, root, run))
        config = configure(root, run, 0.25)
        if (run / "stages" / "make-mask.json").is_file():
            before, refusal = results(run), ""
            try:
                pipeline.run(config)
            except InputError as error:
                refusal = str(error)
            assert not refusal or ("--overwrite" in refusal and results(run) == before), (story, refusal)
        pipeline.run(config, overwrite=True)
        assert not list(run.rglob("*.tmp")), story
        undisturbed = configure(root, folder / "undisturbed", 0.25)
        pipeline.run(undisturbed)
        mine, theirs = results(run), results(undisturbed.run)
        assert sorted(mine) == sorted(theirs), story
        assert [name for name in mine if mine[name] != theirs[name]] == [], story
        pipeline.run(config)  # nothing to do
        assert results(run) == mine, story
    if any((run / "masks").glob("mine.png")):
        assert (run / "masks" / "mine.png").read_bytes() == b"mine", story
