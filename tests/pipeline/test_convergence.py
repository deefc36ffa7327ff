"""train-cam starts again at lower rates where it learns nothing, and resumes to the same bytes after a kill."""

import json

import numpy as np
import pytest

from amn_fast.pipeline import run_stage, training
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.training import read_losses
from amn_fast.steps.convergence import guessing_loss, learns_nothing

from .conftest import configure

HIGH = ("train_cam.lr=0.6", "train_cam.new_lr=6", "train_cam.epochs=5", "train_cam.crop=64")


def train(config):
    run_stage(config, "train-cam")
    return (config.run / "weights" / "cam.safetensors").read_bytes()


def restarts(config):
    events = [json.loads(line) for line in (config.run / "log.jsonl").read_text().splitlines()]
    return [event["divisor"] for event in events if event["event"] == "restart"]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.13, 0.695, 0.693], True),  # two classes at rates too high: a constant answer
        ([0.97, 0.68, 0.743], True),
        ([244.3, 1526.6], True),
        ([float("nan")], True),
        ([0.7, 0.69, 0.68], True),
        ([1.13], False),  # too early to say
        ([0.75, 0.27, 0.07], False),
        ([0.735, 0.58, 0.48], False),
        ([0.69, 0.675], False),  # slow, but falling
    ],
)
def test_what_is_guessing(losses, expected):
    assert learns_nothing(losses, 0.688, 6, 6) == expected
    assert not learns_nothing([0.5, 0.5, 0.5], 0.0, 6, 6)  # every image shows every class: there is nothing to learn


def test_the_loss_of_guessing_is_the_lowest_of_a_constant_answer():
    labels = np.random.default_rng(0).random((50, 3)) < [0.2, 0.5, 1.0]
    found = []
    for probability in np.linspace(0.01, 0.99, 99):
        found.append([-np.where(column, np.log(probability), np.log(1 - probability)).mean() for column in labels.T])
    assert guessing_loss(labels) == pytest.approx(np.min(found, 0)[:2].sum() / 3, abs=1e-3)


def test_a_run_that_learns_nothing_starts_again_and_survives_kills(images, tmp_path, monkeypatch):
    calm = configure(tmp_path / "calm.yaml", images, tmp_path / "calm", *HIGH)
    expected = train(calm)
    assert restarts(calm)[0] == 3
    assert len(read_losses(Workspace(calm), "cam")) == 5

    config = configure(tmp_path / "killed.yaml", images, tmp_path / "killed", *HIGH)
    save, saved = training._save, []

    def kill(*arguments):
        save(*arguments)
        saved.append(arguments)
        if len(saved) in (1, 3):  # after a restart, or within an attempt
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", kill)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert train(config) == expected
    assert restarts(config) == restarts(calm)


def test_a_run_that_learns_is_left_alone(images, tmp_path, monkeypatch):
    low = ("train_cam.lr=0.005", "train_cam.new_lr=0.05", "train_cam.epochs=3")
    config = configure(tmp_path / "a.yaml", images, tmp_path / "a", *low)
    found = train(config)
    assert not restarts(config)
    monkeypatch.setattr(training, "RESTARTS", 0)
    assert train(configure(tmp_path / "b.yaml", images, tmp_path / "b", *low)) == found
