"""The whole pipeline on a tiny set: complete, skipped when up to date, resumed to the same bytes, nothing lost."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from amn_fast import pipeline
from amn_fast.config import read_config
from amn_fast.data import open_dataset
from amn_fast.data.image import read_mask
from amn_fast.data.masks import check_masks, write_mask
from amn_fast.errors import InputError
from amn_fast.pipeline import engine, inference, runner
from amn_fast.pipeline.contents import Contents
from amn_fast.pipeline.folder import Workspace, check_free, check_names
from amn_fast.pipeline.records import read_record, write_record
from amn_fast.pipeline.runner import plan
from amn_fast.pipeline.staging import Staging
from amn_fast.pipeline.table import ancestors, stage_named
from amn_fast.steps import items
from command_line import command, refusal

from .conftest import configure, start

RESULTS = ("weights", "cam", "cam_seed", "amn", "amn_seed", "edge", "masks")
STAGES = {s.name: s for s in pipeline.STAGES if not (s.segmentation or "auto" in dict(s.when).values())}
NAMES = list(STAGES)
PASSES = ("make-cam", "refine-seed", "make-amn-cam", "refine-amn-seed")


def results(run):
    """Every byte that a run computed, by file; times and the like are elsewhere."""
    return {str(path.relative_to(run)): path.read_bytes() for kind in RESULTS for path in (run / kind).rglob("*.*")}


def assert_same(run, other):
    mine, theirs = results(run), results(other)
    assert sorted(mine) == sorted(theirs)
    assert [name for name in mine if mine[name] != theirs[name]] == []


def snapshot(folder):
    """Every file with its bytes and mode, but the lock."""
    return {p: (p.read_bytes(), p.stat().st_mode) for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def events(run, kind="start"):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def started(run):
    return [event["stage"] for event in events(run)]


def dataset_of(config):
    return open_dataset(config.data.kind, config.data.root, **config.data.options)


def due(config):
    """The stages that a run would compute."""
    return [stage.name for stage in plan(Workspace(config), list(STAGES.values()))[0]]


def from_(name):
    """A stage and all that build on it."""
    return [n for n in NAMES if n == name or STAGES[name] in ancestors(STAGES[n])]


# What a run makes


def test_a_run_is_complete(finished):
    dataset = dataset_of(finished)
    assert len(dataset.ids) == 11
    check_masks(finished.run / "masks", dataset)
    for kind in RESULTS[1:]:
        assert sorted(path.stem for path in (finished.run / kind).iterdir()) == sorted(dataset.ids)
    assert sorted(path.name for path in (finished.run / "weights").iterdir()) == [
        "amn.safetensors", "cam.safetensors", "irn.safetensors",
    ]  # fmt: skip
    assert started(finished.run) == NAMES
    assert not list(finished.run.rglob("*.new")) + list(finished.run.rglob("*.tmp"))
    found = set()
    for id in dataset.ids:
        mask = read_mask(finished.run / "masks" / f"{id}.png")
        labels = set(np.unique(mask).tolist())
        assert labels <= {0, *(np.flatnonzero(dataset.labels(id)) + 1).tolist()}
        found |= labels
        with Image.open(finished.run / "masks" / f"{id}.png") as image:
            assert image.mode == "P"
    assert len(found) > 1  # something is found at all
    metrics = json.loads((finished.run / "metrics.json").read_text())
    assert set(metrics["mask"]["per_image"]) == {id for id in dataset.ids if dataset.labels(id).any()}
    for stage in STAGES.values():
        if stage.result:
            assert 0 < metrics[stage.result]["miou"] <= 1
    assert list(metrics["stages"]) == sorted(name for name, stage in STAGES.items() if not stage.scores)
    assert (metrics["seed"], metrics["dataset"]["images"], metrics["dataset"]["scored"]) == (finished.seed, 11, 11)
    assert metrics["dataset"]["images_per_class"] == [int(n) for n in sum(dataset.labels(id) for id in dataset.ids)]
    assert len(metrics["training"]["amn"]["loss"]) == finished.train_amn.epochs
    assert all(0 <= share <= 1 for share in metrics["training"]["cam"]["accuracy"])
    assert "demo_003" in (finished.run / "report.html").read_text()
    assert read_config(finished.run / "config.yaml") == finished


def test_a_second_run_skips_every_stage_and_touches_nothing(copy_of_run, capfd):
    config, _ = copy_of_run("run")
    pipeline.run(config)  # a copy has other change times: files are hashed once more
    before = {path: path.stat().st_mtime_ns for path in config.run.rglob("*") if path.name != ".lock"}
    capfd.readouterr()
    pipeline.run(config)
    assert {path: path.stat().st_mtime_ns for path in config.run.rglob("*") if path.name != ".lock"} == before
    said = capfd.readouterr().err
    assert [name for name in NAMES if f"{name}: skipped (up to date)" in said] == NAMES
    for name in NAMES:
        assert pipeline.run_stage(config, name) is False


# What changes, and what is computed again


def spoil(path, data=b""):
    path.write_bytes(data)


def edit_labels(root, id, row):
    table = (root / "labels.csv").read_text().splitlines()
    (root / "labels.csv").write_text("\n".join(row if line.startswith(id) else line for line in table) + "\n")


def swap_names(root):
    for name in ("classes.txt", "labels.csv"):
        text = (root / name).read_text()
        swapped = text.replace("cat", "*").replace("cup", "cat").replace("*", "cup")
        (root / name).write_text(swapped)


def recolour(root, id):
    with Image.open(root / "images" / f"{id}.jpg") as image:
        Image.fromarray(255 - np.asarray(image)).save(root / "images" / f"{id}.jpg")


def remove_from_list(root, id):
    ids = (root / "ids.txt").read_text().splitlines()
    (root / "ids.txt").write_text("\n".join(i for i in ids if i != id) + "\n")


def touch(root):
    for path in root.rglob("*.*"):
        os.utime(path, (1, 1))


EVERYTHING, SCORES, MASKS = NAMES, ["evaluate"], ["make-mask", "check-run", "evaluate"]

# Change of the data set, the run folder or a setting; the stages that are computed again; what the message names.
CHANGES = {
    "nothing": (lambda root, run: None, [], ""),
    "an image": (lambda root, run: recolour(root, "demo_003"), EVERYTHING, "1 image changed (demo_003)"),
    "an image replaced by another one": (
        lambda root, run: shutil.copy(root / "images/demo_001.jpg", root / "images/demo_002.jpg"),
        EVERYTHING,
        "1 image changed (demo_002)",
    ),
    "a label": (
        lambda root, run: edit_labels(root, "demo_004", "demo_004,1,1,1"), EVERYTHING, "1 label changed (demo_004)",
    ),
    "names of classes": (lambda root, run: swap_names(root), EVERYTHING, "class names changed"),
    "an image removed": (
        lambda root, run: remove_from_list(root, "demo_005"), EVERYTHING, "1 image removed (demo_005)",
    ),
    "time stamps": (lambda root, run: touch(root), [], ""),
    "ground truth": (
        lambda root, run: write_mask(root / "masks/demo_000.png", 0 * read_mask(root / "masks/demo_000.png")),
        SCORES,
        "ground truth of 1 image changed (demo_000)",
    ),
    "ground truth removed": (
        lambda root, run: (root / "masks/demo_000.png").unlink(), SCORES, "ground truth of 1 image changed (demo_000)",
    ),
    "a mask emptied": (lambda root, run: spoil(run / "masks/demo_001.png"), ["make-mask"], "masks/demo_001.png"),
    "a mask overwritten": (
        lambda root, run: shutil.copy(run / "masks/demo_001.png", run / "masks/demo_002.png"),
        ["make-mask"],
        "masks/demo_002.png is not as written",
    ),
    "a mask deleted beside a foreign file": (
        lambda root, run: (run / "masks/demo_001.png").rename(run / "masks/mine.png"),
        ["make-mask"],
        "masks/demo_001.png",
    ),
    "all seeds deleted": (lambda root, run: shutil.rmtree(run / "cam_seed"), ["refine-seed"], "cam_seed/demo_000"),
    "weights truncated": (
        lambda root, run: spoil(run / "weights/cam.safetensors", b"x" * 1000), ["train-cam"], "weights/cam",
    ),
    "scores deleted": (lambda root, run: (run / "evaluation.json").unlink(), SCORES, "evaluation.json"),
    "foreign files": (lambda root, run: spoil(run / "masks/mine.txt", b"mine"), [], ""),
    "edge.pad=64": (None, MASKS, "edge.pad was 0, now 64"),
    "mask.background=0.6": (None, MASKS, "mask.background was 0.25, now 0.6"),
    "amn.scales=[1.0, 0.5]": (None, from_("make-amn-cam"), "amn.scales was"),
    "cam_seed.fg=0.5": (None, from_("refine-seed"), "cam_seed.fg was 0.6, now 0.5"),
    "train_irn.lr=0.01": (None, from_("train-irn"), "train_irn.lr was 0.1, now 0.01"),
    "seed=1": (None, EVERYTHING, "seed was 0, now 1"),
    "weights=null": (None, EVERYTHING, "weights was imagenet, now None"),
    "workers=2": (None, [], ""),
    "name=other": (None, [], ""),
    "backend=cpu": (None, [], ""),
    "eval_seg.iterations=3": (None, [], ""),
    "train_seg.lr=3": (None, [], ""),
}  # fmt: skip


def test_what_changes_and_what_is_computed_again(copy_of_run, finished, my_images, tmp_path, capfd):
    """The data set lies elsewhere than in the finished run: that alone changes nothing."""
    config, _ = copy_of_run("run")
    for name, (change, expected, sentence) in CHANGES.items():
        shutil.rmtree(my_images)
        shutil.copytree(finished.data.root, my_images)
        shutil.rmtree(config.run)
        shutil.copytree(finished.run, config.run)
        changed = configure(tmp_path / "a.yaml", my_images, config.run, *([] if change else [name]))
        if change:
            change(my_images, config.run)
        assert due(changed) == expected, name
        before = snapshot(config.run)
        asks = [s for s in expected if STAGES[s].trains or (change is None and not STAGES[s].scores)]
        if asks and "/" not in sentence:  # what is damaged is lost already
            # A finished training, or what other settings gave, is not replaced unasked; and nothing has been touched.
            with pytest.raises(InputError, match="pass --overwrite") as caught:
                pipeline.run(changed)
            assert sentence in str(caught.value), name
            assert snapshot(config.run) == before, name
        elif expected:
            capfd.readouterr()
            pipeline.run(changed)
            assert sentence in capfd.readouterr().err, name
            assert due(changed) == [], name
            assert started(config.run) == NAMES + expected, name
            if expected != SCORES:
                assert_same_but(config.run, finished.run, {"masks/mine.png"})


def assert_same_but(run, other, foreign):
    mine, theirs = results(run), results(other)
    assert set(mine) - foreign == set(theirs)
    assert all(mine[name] == theirs[name] for name in theirs)


def test_only_images_that_changed_are_computed_again(copy_of_run, finished):
    """Inference stages work image by image: what one image gave does not concern the others."""
    config, _ = copy_of_run("run")
    times = {path: path.stat().st_mtime_ns for path in (config.run / "masks").iterdir()}
    spoil(config.run / "masks/demo_001.png")
    spoil(config.run / "edge/demo_004.npz", b"somebody's work")
    pipeline.run(config)
    assert_same(config.run, finished.run)
    assert {p.stem for p, t in times.items() if p.stat().st_mtime_ns != t} == {"demo_001", "demo_004"}
    # A file that somebody else has put there is kept.
    assert (config.run / "replaced/edge/demo_004.npz").read_bytes() == b"somebody's work"
    assert not (config.run / "replaced/masks").exists()
    assert "masks/demo_001.png" in events(config.run)[-1]["because"][0]


def test_edge_maps_are_computed_again_only_where_what_they_depend_on_changed(copy_of_run, monkeypatch):
    config, _ = copy_of_run("run")
    computed, before = [], results(config.run)
    find_edge = inference.irn.find_edge
    monkeypatch.setattr(inference.irn, "find_edge", lambda *given: computed.append(1) or find_edge(*given))

    def count(*settings):
        computed.clear()
        pipeline.run(read_config(config.run / "config.yaml", settings), overwrite=True)
        return len(computed)

    assert count("mask.background=0.6") == 0
    assert {name.split("/")[0] for name, data in results(config.run).items() if data != before[name]} == {"masks"}
    spoil(config.run / "edge/demo_004.npz")
    assert count("mask.background=0.25") == 1
    assert results(config.run) == before
    assert count("edge.pad=64", "mask.background=0.6") == count("train_irn.lr=0.01") == len(dataset_of(config).ids)


@pytest.mark.parametrize("threads", [1, 3])
def test_activations_do_not_depend_on_the_number_of_threads(threads, copy_of_run, finished, monkeypatch):
    """Neither of the stage nor of PyTorch; the finished run has as many as there are cores."""
    config, _ = copy_of_run(f"run{threads}", ("make-cam",))
    monkeypatch.setattr(runner, "cores", lambda: threads)
    torch.set_num_threads(4 - threads)
    try:
        pipeline.run_stage(config, "make-cam")
        assert torch.get_num_threads() == 4 - threads
    finally:
        torch.set_num_threads(1)
    assert_same(config.run, finished.run)


def test_a_minimal_store_gives_the_same_seeds_and_masks(copy_of_run, finished, monkeypatch):
    computed, activate = [], inference.cam.activate
    monkeypatch.setattr(inference.cam, "activate", lambda *given: computed.append(1) or activate(*given))
    config, _ = copy_of_run("run", PASSES, "store=minimal")
    pipeline.run(config)
    assert len(computed) == 11  # once for activations and seeds
    before, now = results(finished.run), results(config.run)
    assert {name.split("/")[0] for name in before if now[name] != before[name]} == {"cam", "amn"}
    assert len(now["cam/demo_000.npz"]) < len(before["cam/demo_000.npz"]) / 4
    assert not list(config.run.rglob("*.new"))
    # Seeds alone: the network computes what was not kept.
    full, _ = copy_of_run("full", (), "cam_seed.fg=0.5")
    again = read_config(config.run / "config.yaml", ["cam_seed.fg=0.5"])
    for changed in (full, again):
        assert pipeline.run_stage(changed, "refine-seed", overwrite=True)
    assert len(computed) == 22
    seeds = {name for name in before if name.startswith("cam_seed/")}
    assert all(results(full.run)[name] == results(again.run)[name] for name in seeds)
    with pytest.raises(InputError, match="make-cam is finished, and since then store was minimal, now full"):
        pipeline.run_stage(read_config(config.run / "config.yaml", ["store=full"]), "make-cam")


def test_overwrite_replaces_and_removes_what_is_not_made_any_more(copy_of_run, my_images, tmp_path):
    copied, _ = copy_of_run("run")
    quick = ("train_cam.epochs=1", "train_amn.epochs=1")
    config = configure(tmp_path / "a.yaml", my_images, copied.run, *quick)
    remove_from_list(my_images, "demo_005")
    (config.run / "masks/mine.png").write_bytes(b"mine")
    pipeline.run(config, overwrite=True)
    assert due(config) == []
    for kind in RESULTS[1:]:
        assert {p.stem for p in (config.run / kind).iterdir()} - {"mine"} == set(dataset_of(config).ids)
    assert (config.run / "masks/mine.png").read_bytes() == b"mine"
    assert read_config(config.run / "config.yaml") == config


def test_previous_results_stay_until_the_new_ones_are_complete(copy_of_run, monkeypatch):
    config, _ = copy_of_run("run", (), "mask.background=0.6")
    before = results(config.run)
    make, calls, made = inference.mask.make_mask, itertools.count(1), []

    def fail(*arguments, **options):
        if next(calls) == 5:
            raise InputError("the disk is on fire")
        found = make(*arguments, **options)
        made.append(1)
        return found

    monkeypatch.setattr(inference.mask, "make_mask", fail)
    with pytest.raises(InputError, match=r"^image 'demo_00.': the disk is on fire$"):
        pipeline.run(config, overwrite=True)
    assert 4 <= len(made) < 9
    assert results(config.run) == before
    old = read_config(config.run / "config.yaml", ["mask.background=0.25"])
    assert due(old) == []
    pipeline.run(config, overwrite=True)
    assert len(made) == 11  # those made before were kept
    changed = {name.split("/")[0] for name, data in results(config.run).items() if data != before[name]}
    assert changed == {"masks"}


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


# What is refused before anything is touched


def test_a_refused_command_leaves_every_byte(copy_of_run, tmp_path):
    """One mistake in a value costs nothing, whatever it is."""
    config, file = copy_of_run("run")
    (tmp_path / "garbage.pth").write_bytes(b"garbage")
    absent = tmp_path / "absent"
    cases = [
        (["--root", absent], "there is no such folder"),
        (["--set", "weights=nosuch.pth"], "weights"),
        (["--set", f"weights={tmp_path / 'garbage.pth'}"], "garbage.pth"),
        (["--set", "backbone=nosuch"], "backbone"),
        (["--set", "train_cam.lr=0.5"], "train_cam.lr was 0.02, now 0.5; pass --overwrite"),
        (["--set", "mask.background=0.9"], "make-mask is finished, and since then mask.background was 0.25, now 0.9"),
        (["--set", "mask.exp_times=31"], "mask.exp_times is 31"),
        (["--set", "mask.radius=65"], "mask.radius is 65"),
        (["--set", "workers=100000"], "workers is 100000"),
        (["--set", "data.options.ids=nosuch.txt"], "nosuch.txt"),
        (["--set", "segmentation=true", "--set", f"train_seg.masks={absent}"], "and 1 more) of 11 have no mask"),
        (["--set", "segmentation=true", "--set", "eval_seg.options.ids=nosuch.txt"], "nosuch.txt"),
        (["--set", "segmentation=true", "--set", "train_seg.backbone=nosuch"], "backbone"),
        (["--set", "segmentation=true", "--set", "train_seg.weights=nosuch.pth"], "nosuch.pth"),
    ]
    if not torch.cuda.is_available():
        cases.append((["--set", "device=cuda"], "device is 'cuda', but PyTorch sees no CUDA device here"))
    before = snapshot(config.run)
    for words, sentence in cases:
        for overwrite in ([], ["--overwrite"]):
            if (overwrite and "--overwrite" in sentence) or ("is finished" in sentence and overwrite):
                continue
            errors = refusal("run", file, *words, *overwrite)
            assert sentence in errors, words
            assert snapshot(config.run) == before, words


def test_a_run_folder_is_apart_from_everything_that_is_read(my_images, tmp_path):
    """Neither in it nor around it, links followed; a folder with anything else in it is nobody's run folder."""
    (tmp_path / "link").symlink_to(my_images)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "masks").mkdir()
    for path in (my_images / "masks").iterdir():
        shutil.copy(path, tmp_path / "masks")
    file = tmp_path / "a.yaml"
    configure(file, my_images, tmp_path / "unused")
    before = snapshot(tmp_path)
    for folder, words in (
        (my_images, []),
        (my_images / "images", []),
        (my_images / "masks" / "deeper", []),
        (my_images / "images" / "run", []),
        (tmp_path / "link", []),
        (tmp_path / "link" / "images" / "run", []),
        (tmp_path, []),
        (tmp_path / "full", []),
        (tmp_path / "masks" / "run", ["--set", f"train_seg.masks={tmp_path / 'masks'}"]),
    ):
        sentence = refusal("run", file, "--run", folder, *words)
        assert "expected a folder apart from all that is read" in sentence or "that no run has made" in sentence
        assert {p: v for p, v in snapshot(tmp_path).items() if p != file} == {
            p: v for p, v in before.items() if p != file
        }
    taken = tmp_path / "taken"
    taken.write_text("")
    assert refusal("run", file, "--run", taken) == f"{taken}: File exists"


def test_names_that_cannot_be_files_of_a_run_are_refused_at_the_start(my_images, tmp_path):
    names = dataclasses.make_dataclass("Names", ["ids", "name"])
    for id, sentence in (
        ("a" * 252, "has 252 bytes, expected at most 251"),
        ("\u00e9" * 126, "has 252 bytes, expected at most 251"),
        ("caf\udce9", "is not valid UTF-8, rename the file"),
        *((id, "is no name of a file inside a folder") for id in ("../out", "/etc/x", "a//b", "", ".", "a\0b")),
    ):
        with pytest.raises(InputError, match=sentence):
            check_names(names((id,), "mine"))
    longest = "a" * 251
    check_names(names((longest, "a/b"), "mine"))
    image = (my_images / "images" / "demo_000.jpg").read_bytes()
    (my_images / "images" / f"{longest}.jpg").write_bytes(image)
    with (my_images / "labels.csv").open("a") as labels:
        labels.write(f"{longest},1,0,0\n")
    (my_images / "ids.txt").write_text(f"{longest}\ndemo_001\n")
    config = configure(tmp_path / "a.yaml", my_images, tmp_path / "run", "train_cam.epochs=1")
    for stage in ("train-cam", "make-cam", "refine-seed"):
        pipeline.run_stage(config, stage)
    assert (config.run / "cam_seed" / f"{longest}.png").exists()
    Path(os.fsdecode(os.fsencode(my_images / "images") + b"/caf\xe9.jpg")).write_bytes(image)
    assert "is not UTF-8; rename the file" in refusal("run", tmp_path / "a.yaml", "--run", tmp_path / "other")


def test_a_stage_alone_names_the_one_it_needs(finished, tmp_path, copy_of_run):
    empty = finished.model_copy(update={"run": tmp_path / "empty"})
    for stage, before in (
        ("make-cam", "train-cam"), ("train-amn", "refine-seed"), ("train-irn", "refine-amn-seed"),
        ("make-mask", "train-irn"), ("evaluate", "make-mask"),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            pipeline.run_stage(empty, stage)
        assert str(caught.value) == (
            f"{stage} needs the outputs of {before}, and {empty.run} has none under this configuration;"
            f" run `amn-fast {before}` first, or `amn-fast run` for all stages"
        )
    config, _ = copy_of_run("run", (), "train_cam.lr=0.1")
    for stage in NAMES[1:]:
        with pytest.raises(InputError, match=r"needs the outputs of train-cam, .*\(train_cam.lr was 0.02, now 0.1\)"):
            pipeline.run_stage(config, stage)


def test_an_earlier_versions_run_is_not_overwritten_unasked(copy_of_run):
    config, _ = copy_of_run("run")
    for name in NAMES:
        record = {"fingerprint": "0123456789abcdef", "done": True, "seconds": 1.0, "outputs": {"masks": 11}}
        (config.run / "stages" / f"{name}.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"train-cam is finished, .* made by another version of amn-fast; pass --over"):
        pipeline.run(config)


# Killed, full, read-only


def killed_in_the_middle(copy_of_run, without, overrides, begun, finished_too_soon):
    """A run that was killed with SIGKILL after `begun` and before it had `finished_too_soon`; tries until it hits."""
    for attempt in range(10):
        config, file = copy_of_run(f"run{attempt}", without)
        process = start("run", file, *(word for override in overrides for word in ("--set", override)))
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
        NAMES[NAMES.index("train-amn") :],
        ["workers=2"],  # those processes outlive a kill for some seconds, and must not keep the folder
        begun=lambda run: amn_epochs(run) >= 1,
        finished_too_soon=lambda run: (run / "weights" / "amn.safetensors").exists() or amn_epochs(run) == 4,
    )
    (config.run / f".amn-fast-{'0' * 16}.tmp").write_bytes(b"half a file")
    before = amn_epochs(config.run)
    status, _, errors = command("run", file)
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


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_folder_serves_one_process_at_a_time(copy_of_run):
    config, _ = copy_of_run("run")
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLDER, str(config.run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        try:
            with pytest.raises(InputError) as caught:
                pipeline.run(config)
        finally:
            holder.kill()
    assert str(caught.value) == f"run folder {config.run} is in use by another process, expected one at a time"
    pipeline.run(config)


@pytest.fixture
def tmpfs(tmp_path):
    """Mounts a small file system in memory; gives a function of its size and further options."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
        return place

    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    yield mount
    subprocess.run(["umount", place], capture_output=True)


def test_a_read_only_disk(copy_of_run, finished, tmpfs):
    """A finished run shows its results; anything to compute is refused with one sentence."""
    _, file = copy_of_run("run")
    place = tmpfs("size=400m")
    shutil.copytree(finished.run, place / "run")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    status, output, errors = command("run", file, "--run", place / "run")
    assert status == 0, errors
    assert f"report: {place / 'run' / 'report.html'}" in output
    assert refusal("run", file, "--run", place / "run", "--set", "mask.background=0.6", "--overwrite") == (
        f"{place / 'run'}: Read-only file system"
    )
    assert refusal("run", file, "--run", place / "new") == f"{place / 'new'}: Read-only file system"


# What a run holds grows from stage to stage, so that each size is full at another place: at the weights and their
# checkpoint (some 20 MB), in the middle of a folder of small files.
@pytest.mark.parametrize(("without", "room_kb"), [("train-cam", 300), ("refine-seed", 40), ("make-mask", 60)])
def test_a_full_disk(copy_of_run, tmpfs, finished, without, room_kb):
    config, file = copy_of_run("run", (without,))
    place = tmpfs("size=400m")
    shutil.copytree(config.run, place / "run", copy_function=shutil.copy)
    space = os.statvfs(place)
    filler = place / "filler"
    with filler.open("wb") as fill:
        os.posix_fallocate(fill.fileno(), 0, max(0, space.f_bavail * space.f_frsize - room_kb * 1024))
    status, _, errors = command(without, file, "--run", place / "run")
    assert status == 1
    assert errors.splitlines()[-1].startswith(f"amn-fast: {place / 'run'}"), errors
    assert errors.splitlines()[-1].endswith(": No space left on device")
    assert not list((place / "run").rglob("*.tmp"))  # nothing half-written stays
    filler.unlink()
    pipeline.run(config.model_copy(update={"run": place / "run"}))
    assert_same(place / "run", finished.run)


def test_files_have_the_permissions_of_the_umask(copy_of_run):
    config, _ = copy_of_run("run", ("make-mask", "evaluate"))
    before = os.umask(0o077)
    try:
        pipeline.run(config)
    finally:
        os.umask(before)
    new = [config.run / "masks/demo_000.png", config.run / "report.html", config.run / "stages/make-mask.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in new} == {0o600}


# Bad images, labels and files of earlier stages


def test_bad_input_is_one_sentence_that_names_it(my_images, tmp_path, finished):
    root = my_images

    def cut(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    for spoil_it, words, sentence in (
        (lambda: cut(root / "images/demo_004.jpg"), [], "demo_004.jpg: is "),
        (lambda: cut(root / "images/demo_004.jpg"), ["workers=2"], "demo_004.jpg: is "),
        (
            lambda: (root / "labels.csv").write_text(
                (root / "labels.csv").read_text().replace("id,cat,cup,person", "id,cat,cup,unicorn")
            ),
            [],
            "unicorn",
        ),
        (lambda: (root / "ids.txt").open("a").write("ghost\n"), [], "1 id ('ghost') of 12 have no image"),
        (lambda: None, ["data.options.split=train"], "has no option 'split', expected images, labels"),
        (
            lambda: None,
            ["train_cam.lr=1e30", "train_cam.new_lr=1e30"],
            "cam: loss is NaN or infinite",
        ),
    ):
        shutil.rmtree(root)
        shutil.copytree(finished.data.root, root)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        config = configure(tmp_path / "a.yaml", root, tmp_path / "run", *words)
        spoil_it()
        with pytest.raises(InputError) as caught:
            pipeline.run_stage(config, "train-cam")
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run" / "weights").exists()


def replace(work, path, change):
    """Change an output as if its stage had made it so: a bad file that no record tells of."""
    change(path)
    stage = next(s for s in pipeline.STAGES if any(o.startswith(f"{path.parent.name}/") for o in s.outputs))
    stage = next((s for s in pipeline.STAGES if str(path.relative_to(work.root)) in s.outputs), stage)
    record = read_record(work.root, stage)
    for item in record.items.values():
        if str(path.relative_to(work.root)) in item.outputs:
            item.outputs[str(path.relative_to(work.root))] = work.contents.hash(path)
    write_record(work.root, stage, record)


def test_bad_files_of_earlier_stages_are_named(copy_of_run, monkeypatch):
    monkeypatch.setattr(runner, "require_upstream", lambda work, stage: None)

    def shorter(path):
        path.write_bytes(path.read_bytes()[:-30])

    def cut(path):
        path.write_bytes(path.read_bytes()[:100])

    def larger(path):
        height, width = read_mask(path).shape
        write_mask(path, np.zeros((height + 1, width), np.uint8))

    def unknown(path):
        write_mask(path, np.full(read_mask(path).shape, 4, np.uint8))

    def other_image(path):
        shutil.copyfile(path.parent / "nothing.npz", path)

    def other_network(path):
        shutil.copyfile(path.parent / "irn.safetensors", path)

    for number, (stage, name, change, sentence) in enumerate(
        (
            ("train-amn", "cam_seed/demo_002.png", larger, "seed of image 'demo_002': found"),
            ("train-amn", "cam_seed/demo_002.png", unknown, "'demo_002': holds label 4, expected 0..3 or 255"),
            ("refine-seed", "cam/demo_005.npz", shorter, "cam/demo_005.npz cannot be read: "),
            ("make-mask", "amn/demo_005.npz", shorter, "amn/demo_005.npz cannot be read: "),
            ("make-mask", "amn/demo_002.npz", other_image, "amn/demo_002.npz: found activations of (90, 111)"),
            ("evaluate", "edge/demo_005.npz", shorter, "edge/demo_005.npz cannot be read: "),
            ("evaluate", "masks/demo_002.png", larger, "but the ground truth of demo_002 is"),
            ("make-cam", "weights/cam.safetensors", other_network, "weights/cam.safetensors do not fit: "),
            ("make-cam", "weights/cam.safetensors", cut, "weights/cam.safetensors do not fit: "),
        )
    ):
        config, _ = copy_of_run(f"run{number}", (stage,))
        replace(Workspace(config), config.run / name, change)
        with pytest.raises(InputError) as caught:
            pipeline.run_stage(config, stage)
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "another network's", "no checkpoint"])
def test_a_checkpoint_that_does_not_fit(copy_of_run, damage, monkeypatch):
    from amn_fast.models import CamNet
    from amn_fast.pipeline import training

    config, _ = copy_of_run("run", ("train-amn",))
    save = training._save

    def stop(path, net, *arguments):
        save(path, net, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_stage(config, "train-amn")
    monkeypatch.undo()
    (checkpoint,) = config.run.rglob("*.checkpoint.pt")
    if damage == "no checkpoint":
        checkpoint.write_bytes(b"not a checkpoint")
    elif damage == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    else:
        torch.save({"net": CamNet(3, "efficientnet_lite0").state_dict(), "optimizer": {}, "epochs": 1}, checkpoint)
    with pytest.raises(InputError) as caught:
        pipeline.run_stage(config, "train-amn")
    assert str(caught.value).startswith(f"checkpoint {checkpoint} does not fit: ")
    assert str(caught.value).endswith("; remove it to train from the start")
    checkpoint.unlink()
    assert pipeline.run_stage(config, "train-amn")


def test_a_damaged_record_is_named(copy_of_run):
    config, file = copy_of_run("run")
    record = config.run / "stages" / "make-cam.json"
    for text in ('{"done": tr', "[]", '{"items": 3}', '{"items": {"a": 1}, "settings": {}, "measured": {}}', "\xff"):
        record.write_text(text, encoding="latin-1")
        assert refusal("run", file) == f"{record} is no record of a stage, remove it to run make-cam again"


def test_the_smallest_and_the_longest_image_and_no_ground_truth(my_images, tmp_path):
    sizes = {"dot": (1, 1), "tower": (3000, 20), "strip": (20, 3000)}
    rng = np.random.default_rng(0)
    (my_images / "classes.txt").write_text("cat\ncup\nperson\nunicorn\n")  # and a class without any image
    with (my_images / "labels.csv").open("a") as labels:
        for id, size in sizes.items():
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(my_images / "images" / f"{id}.png")
            write_mask(my_images / "masks" / f"{id}.png", rng.integers(0, 2, size))
            labels.write(f"{id},1,0,0\n")
    (my_images / "ids.txt").write_text("".join(f"{id}\n" for id in ("demo_000", "demo_001", "demo_002", *sizes)))
    scales = ["cam.scales=[1.0, 0.5]", "amn.scales=[1.0, 0.5]", "train_irn.displacement=true"]
    config = configure(
        tmp_path / "a.yaml", my_images, tmp_path / "run", "train_cam.epochs=1", "train_amn.epochs=1", *scales
    )
    pipeline.run(config)
    for id, size in sizes.items():
        mask = read_mask(config.run / "masks" / f"{id}.png")
        assert mask.shape == size
        assert set(np.unique(mask)) <= {0, 1}
    metrics = json.loads((config.run / "metrics.json").read_text())
    assert set(metrics["mask"]["per_image"]) >= set(sizes)
    assert metrics["mask"]["scores"]["iou"][4] is None  # neither in the ground truth nor in a mask: absent
    # Masks do not need ground truth; without it there is nothing to score.
    for mask in (my_images / "masks").iterdir():
        mask.unlink()
    pipeline.run(config)
    assert started(config.run) == [*NAMES, "evaluate"]
    metrics = json.loads((config.run / "metrics.json").read_text())
    assert ("mask" in metrics, metrics["dataset"]["scored"]) == (False, 0)
    assert metrics["label_maps"]["mask"]["images"] == 6


# Errors on threads and in processes


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


def test_outputs_of_images_that_are_gone_are_removed_or_kept_apart(tmp_path):
    """An emptied file counts as ours: a full disk leaves such files. What somebody put in its place is kept."""
    (tmp_path / "masks").mkdir()
    contents, written = Contents(tmp_path / "files.json"), {}
    for name, later in (("kept", b"one"), ("emptied", b""), ("replaced", b"mine")):
        path = tmp_path / "masks" / f"{name}.png"
        path.write_bytes(b"one")
        written[f"masks/{name}.png"] = contents.hash(path)
        path.write_bytes(later)
    previous = SimpleNamespace(outputs=lambda: written)
    Staging(tmp_path, stage_named("make-mask"), Contents(tmp_path / "files.json")).move({}, previous)
    assert {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*.png")} == {
        "replaced/masks/replaced.png": b"mine"
    }
