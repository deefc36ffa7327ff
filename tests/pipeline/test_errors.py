"""Errors on threads and in processes that load images."""

import threading
import time

import pytest

from amn_fast import pipeline
from amn_fast.errors import InputError
from amn_fast.pipeline import engine, inference
from amn_fast.pipeline.folder import Workspace
from amn_fast.steps import items

from .conftest import configure
from .runs import due


def test_a_crash_on_a_thread_names_the_image(copy_of_run, monkeypatch):
    config, _ = copy_of_run("run", ("refine-seed",))
    refine = inference.seed.refine
    shape = Workspace(config).dataset.image("demo_006").shape

    def crash(image, *arguments):
        if image.shape == shape:
            raise ZeroDivisionError("somewhere deep")
        return refine(image, *arguments)

    monkeypatch.setattr(inference.seed, "refine", crash)
    with pytest.raises(RuntimeError, match="image 'demo_006': ZeroDivisionError: somewhere deep") as caught:
        pipeline.run_stage(config, "refine-seed")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "refine-seed" in due(config)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_crash_in_a_process_that_loads_images_names_the_image(copy_of_run, monkeypatch, workers):
    config, _ = copy_of_run("run", ("train-amn",), f"workers={workers}")
    check = items.checked_labels

    def crash(labels, size, n_classes, name):
        if "demo_006" in name:
            raise ZeroDivisionError("somewhere deep")
        return check(labels, size, n_classes, name)

    monkeypatch.setattr(items, "checked_labels", crash)
    with pytest.raises(RuntimeError, match="image 'demo_006': ZeroDivisionError: somewhere deep"):
        pipeline.run_stage(config, "train-amn")


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_error_ends_the_work(threads):
    done, lock, failed = [], threading.Lock(), threading.Event()

    def work(id):
        if id == "3":
            failed.set()
            raise InputError("the activations are sad")
        if failed.is_set():
            time.sleep(0.2)  # long enough for the error to be noticed on a busy machine
        with lock:
            done.append(id)

    with pytest.raises(InputError, match=r"^image '3': the activations are sad$"):
        engine.for_each("title", [str(i) for i in range(500)], work, threads)
    assert len(done) < 100

    def named(id):
        raise InputError(f"images/{id}.jpg: cannot be read")

    with pytest.raises(InputError, match=r"^images/a1\.jpg: cannot be read$"):
        engine.for_each("title", ["a1"], named)


def test_processes_that_load_images_change_nothing(images, finished, tmp_path):
    config = configure(tmp_path / "workers.yaml", images, tmp_path / "run", "workers=2")
    pipeline.run_stage(config, "train-cam")
    weights = (config.run / "weights" / "cam.safetensors").read_bytes()
    assert weights == (finished.run / "weights" / "cam.safetensors").read_bytes()
