"""What changes, what is computed again, and what stays until then."""

import itertools
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from amn_fast import pipeline
from amn_fast.config import read_config
from amn_fast.data.image import read_mask
from amn_fast.data.masks import write_mask
from amn_fast.errors import InputError
from amn_fast.pipeline import inference
from amn_fast.pipeline.contents import Contents
from amn_fast.pipeline.staging import Staging
from amn_fast.pipeline.table import stage_named

from .conftest import configure
from .runs import (
    NAMES,
    RESULTS,
    STAGES,
    assert_same,
    dataset_of,
    due,
    events,
    from_,
    remove_from_list,
    results,
    snapshot,
    spoil,
    started,
)


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

    def count(*settings, stages=("make-mask",)):
        computed.clear()
        changed = read_config(config.run / "config.yaml", settings)
        for stage in stages:
            pipeline.run_stage(changed, stage, overwrite=True)
        return len(computed)

    assert count("mask.background=0.6") == 0
    assert {name.split("/")[0] for name, data in results(config.run).items() if data != before[name]} == {"masks"}
    spoil(config.run / "edge/demo_004.npz")
    assert count("mask.background=0.25") == 1
    assert results(config.run) == before
    everything = len(dataset_of(config).ids)
    assert count("edge.pad=64", "mask.background=0.6") == everything
    assert count("train_irn.lr=0.01", stages=("train-irn", "make-mask")) == everything


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
