"""Runs killed at any time resume; the results are bit-identical to those of uninterrupted runs."""

import os
import signal
import time

import pytest

from amn_fast import pipeline
from amn_fast.config import read_config
from amn_fast.errors import InputError
from amn_fast.pipeline import inference, runner
from amn_fast.pipeline.folder import check_free
from amn_fast.pipeline.staging import Staging
from command_line import command

from .conftest import start
from .runs import PASSES, assert_same


def killed_in_the_middle(copy_of_run, without, overrides, begun, finished_too_soon, stage="run"):
    """A run that was killed with SIGKILL after `begun` and before it had `finished_too_soon`; tries until it hits."""
    for attempt in range(10):
        config, file = copy_of_run(f"run{attempt}", without)
        process = start(stage, file, *(word for override in overrides for word in ("--set", override)))
        try:
            while not begun(config.run) and process.poll() is None:
                time.sleep(0.001)
        finally:
            process.kill()
        process.communicate(timeout=60)  # ends when the last process that shares its pipes has ended
        if process.returncode == -9 and not finished_too_soon(config.run):
            assert begun(config.run)
            return config, file
    raise AssertionError("the kill came too late each time")


def amn_epochs(run):
    """How many epochs of AMN the log tells of since the copied run was."""
    path = run / "log.jsonl"
    return path.read_text().count('"network": "amn"') - 4


def test_killed_in_a_training_and_started_again(copy_of_run, finished):
    config, file = killed_in_the_middle(
        copy_of_run,
        ("train-amn",),
        ["workers=2"],  # those processes outlive a kill for some seconds, and must not keep the folder
        begun=lambda run: amn_epochs(run) >= 1,
        finished_too_soon=lambda run: (run / "weights" / "amn.safetensors").exists() or amn_epochs(run) == 4,
        stage="train-amn",
    )
    (config.run / f".amn-fast-{'0' * 16}.tmp").write_bytes(b"half a file")
    before = amn_epochs(config.run)
    status, _, errors = command("train-amn", file)
    assert status == 0, errors
    assert "train-amn (resuming)" in errors
    assert_same(config.run, finished.run)
    assert not list(config.run.rglob("*.tmp"))
    assert before <= 3
    # An epoch that was in the log but whose checkpoint was not yet written is trained again.
    assert 4 <= amn_epochs(config.run) <= 5


def masks_in_work(run):
    return len(list((run / "stages" / "make-mask.new" / "masks").glob("*.png")))


def test_killed_between_two_images_and_started_again(copy_of_run, finished):
    config, file = killed_in_the_middle(
        copy_of_run,
        ("make-mask", "evaluate"),
        [],
        begun=lambda run: masks_in_work(run) >= 2,
        finished_too_soon=lambda run: masks_in_work(run) > 8 or (run / "masks").exists(),
    )
    kept = (config.run / "stages" / "make-mask.new" / "journal.jsonl").read_text().count("\n")
    assert kept >= 1
    status, _, errors = command("run", file)
    assert status == 0, errors
    assert "make-mask (resuming)" in errors
    assert_same(config.run, finished.run)


def moves(stage):
    return lambda source, *_: f"{stage}.new" in str(source)


def works_on(stage):
    return lambda staging, *_: staging._stage.name == stage


# Function, which of its calls count, and the number of the call that a kill comes before. Each continues the last one.
KILLS = {
    "activations written, seed not": (inference, "write_mask", lambda *_: True, 4),
    "seed written, not noted": (Staging, "finish", works_on("refine-seed"), 3),
    "seed noted, activations not": (Staging, "finish", works_on("make-cam"), 3),
    "activations move": (os, "replace", moves("make-cam"), 5),
    "between the halves": (runner, "prepare", lambda _, stage: stage.name == "refine-seed", 1),
    "seeds move": (os, "replace", moves("refine-seed"), 5),
    "between AMN's halves": (runner, "prepare", lambda _, stage: stage.name == "refine-amn-seed", 1),
}


def test_killed_in_and_between_fused_halves(copy_of_run, finished, monkeypatch):
    """First with SIGKILL at some moment, then at the moments of the table, where a function never returns again."""
    expected, _ = copy_of_run("expected", PASSES, "store=minimal")
    pipeline.run(expected)

    def seeds_noted(run):
        journal = run / "stages" / "refine-seed.new" / "journal.jsonl"
        return journal.read_text().count("\n") if journal.exists() else 0

    _, file = killed_in_the_middle(
        copy_of_run,
        PASSES,
        ["store=minimal"],
        begun=lambda run: seeds_noted(run) >= 1,
        finished_too_soon=lambda run: seeds_noted(run) > 3 or (run / "cam").exists(),
    )
    config, computed, activate = read_config(file, ["store=minimal"]), [], inference.cam.activate
    monkeypatch.setattr(runner, "cores", lambda: 1)
    monkeypatch.setattr(inference.cam, "activate", lambda *given: computed.append(1) or activate(*given))
    for name, (owner, attribute, counts, number) in KILLS.items():
        calls: list[int] = []
        with monkeypatch.context() as patched:
            function = getattr(owner, attribute)

            def call(*given, function=function, counts=counts, number=number, calls=calls):
                if counts(*given):
                    calls.append(1)
                    if len(calls) >= number:
                        raise KeyboardInterrupt
                return function(*given)

            patched.setattr(owner, attribute, call)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(config)
        assert len(calls) >= number, name
    pipeline.run(config)
    assert_same(config.run, expected.run)
    assert len(computed) <= 11 + 3 * 2  # each of three kills among images costs the one in work and perhaps the next
    assert not list(config.run.rglob("*.new"))


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_stage_between_two_images_and_says_what_resumes(copy_of_run, finished):
    config, file = copy_of_run("run", ("make-mask", "evaluate"))
    process = start("run", file)
    while process.poll() is None and not masks_in_work(config.run):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "amn-fast: interrupted; the same command resumes"
    assert not (config.run / "masks").exists()
    pipeline.run(config)
    assert_same(config.run, finished.run)


def test_a_kill_while_results_move_to_their_places(copy_of_run, finished, monkeypatch):
    config, _ = copy_of_run("run", (), "mask.background=0.6")
    expected = copy_of_run("other", (), "mask.background=0.6")[0]
    pipeline.run(expected, overwrite=True)
    move, moved = os.replace, []

    def killed(source, target):
        if "make-mask.new" in str(source):
            moved.append(target)
            if len(moved) == 7:
                raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr("amn_fast.pipeline.contents.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config, overwrite=True)
    monkeypatch.undo()
    pipeline.run(config, overwrite=True)
    assert_same(config.run, expected.run)


def test_a_run_that_was_killed_at_its_first_write_does_not_block_the_next(tmp_path):
    """The folder of records is made before the file that marks it."""
    config = read_config("voc6", [f"run={tmp_path / 'run'}"])
    records = config.run / "stages"
    records.mkdir(parents=True)
    check_free(config)
    (records / f".amn-fast-{'0' * 16}.tmp").write_text("{")
    check_free(config)
    (records / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 1 files that no run has made \(stages\)"):
        check_free(config)
