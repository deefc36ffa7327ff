"""What is refused before anything is touched."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from amn_fast import pipeline
from amn_fast.errors import InputError
from amn_fast.pipeline.folder import check_names
from command_line import refusal

from .conftest import configure
from .runs import (
    NAMES,
    snapshot,
)


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
