"""The whole pipeline on a tiny set: complete, skipped when done, resumed to the same bytes after a kill."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from amn_fast import pipeline
from amn_fast.config import read_config
from amn_fast.data import open_dataset
from amn_fast.data.image import read_mask
from amn_fast.data.masks import check_masks
from amn_fast.errors import InputError

from .conftest import command, configure, start

RESULTS = ("weights", "cam", "cam_seed", "amn", "amn_seed", "edge", "masks")
STAGES = [stage.name for stage in pipeline.STAGES]


def results(run):
    """Every byte that a run made, by file; times and the like stand elsewhere."""
    return {
        str(path.relative_to(run)): path.read_bytes() for kind in RESULTS for path in sorted((run / kind).rglob("*"))
    }


def assert_same(run, other):
    mine, theirs = results(run), results(other)
    assert sorted(mine) == sorted(theirs)
    assert [name for name in mine if mine[name] != theirs[name]] == []


def events(run, kind="start"):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def started(run):
    return [event["stage"] for event in events(run)]


def dataset_of(config):
    return open_dataset(config.data.kind, config.data.root, **config.data.options)


def test_every_picture_gets_everything(finished):
    dataset = dataset_of(finished)
    assert len(dataset.ids) == 11
    check_masks(finished.run / "masks", dataset)
    for kind in RESULTS[1:]:
        assert sorted(path.stem for path in (finished.run / kind).iterdir()) == sorted(dataset.ids)
    assert sorted(path.name for path in (finished.run / "weights").iterdir()) == [
        "amn.safetensors", "cam.safetensors", "irn.safetensors",
    ]  # fmt: skip
    assert started(finished.run) == STAGES


def test_masks_hold_the_pictures_classes_and_nothing_else(finished):
    dataset = dataset_of(finished)
    found = set()
    for id in dataset.ids:
        path = finished.run / "masks" / f"{id}.png"
        ids = set(np.unique(read_mask(path)).tolist())
        assert ids <= {0, *(np.flatnonzero(dataset.labels(id)) + 1).tolist()}
        found |= ids
        with Image.open(path) as image:
            assert image.mode == "P"
    assert len(found) > 1  # something is found at all


def test_a_picture_without_any_class_is_background(finished):
    assert not dataset_of(finished).labels("nothing").any()
    assert not read_mask(finished.run / "masks" / "nothing.png").any()


def test_scores_and_the_report_are_there(finished):
    metrics = json.loads((finished.run / "metrics.json").read_text())
    dataset = dataset_of(finished)
    assert set(metrics["mask"]["per_picture"]) == {id for id in dataset.ids if dataset.labels(id).any()}
    for kind in ("cam", "refined_seed", "amn", "amn_refined", "mask"):
        assert 0 < metrics[kind]["miou"] <= 1
    assert set(metrics["stages"]) == set(STAGES[:-1])
    assert metrics["seed"] == finished.seed
    page = (finished.run / "report.html").read_text()
    assert "<html" in page
    assert "demo_003" in page


def test_the_resolved_configuration_is_kept(finished):
    assert read_config(finished.run / "config.yaml") == finished


def test_a_second_run_skips_every_stage(copy_of_run, capfd):
    config, _ = copy_of_run("run")
    before = {path: path.stat().st_mtime_ns for path in config.run.rglob("*") if path.name != ".lock"}
    pipeline.run(config)
    assert {path: path.stat().st_mtime_ns for path in config.run.rglob("*") if path.name != ".lock"} == before
    said = capfd.readouterr().err
    assert [stage for stage in STAGES if f"{stage}: done already under this configuration, skipped" in said] == STAGES


def test_a_changed_threshold_recomputes_the_masks_and_what_follows(copy_of_run, finished):
    config, _ = copy_of_run("run", (), "mask.background=0.6")
    pipeline.run(config)
    assert started(config.run) == [*STAGES, "make-mask", "evaluate"]
    mine, before = results(config.run), results(finished.run)
    changed = {name.split("/")[0] for name in mine if mine[name] != before[name]}
    assert changed == {"masks"}
    assert read_config(config.run / "config.yaml").mask.background == 0.6


def test_a_changed_seed_recomputes_everything(copy_of_run):
    config, _ = copy_of_run("run", (), "seed=1")
    assert not any(stage.is_done(config) for stage in pipeline.STAGES)


def test_settings_that_change_no_result_recompute_nothing(copy_of_run):
    config, _ = copy_of_run("run", (), "workers=2", "name=another", f"run={json.dumps('run')}")
    finished = read_config(copy_of_run("other")[1])
    for stage in pipeline.STAGES:
        assert stage.fingerprint(config) == stage.fingerprint(finished)


@pytest.mark.parametrize("stage", pipeline.STAGES[1:], ids=STAGES[1:])
def test_a_stage_alone_names_the_one_it_needs(stage, finished, tmp_path):
    before = STAGES[STAGES.index(stage.name) - 1]
    empty = finished.model_copy(update={"run": tmp_path / "empty"})
    with pytest.raises(InputError) as caught:
        stage.run(empty)
    assert str(caught.value) == (
        f"{stage.name} needs the outputs of {before}, and {empty.run} has none under this configuration;"
        f" run `amn-fast {before}` first, or `amn-fast run` for all stages"
    )


def test_outputs_of_another_configuration_do_not_count(copy_of_run):
    config, _ = copy_of_run("run", (), "train_amn.lr=0.1")
    with pytest.raises(InputError, match="make-amn-cam needs the outputs of train-amn"):
        pipeline.STAGES[STAGES.index("make-amn-cam")].run(config)
    assert (config.run / "amn" / "nothing.npz").exists()  # nothing is removed before it can be made again


@pytest.mark.parametrize(
    ("gone", "again"),
    [
        ("masks/demo_003.png", ["make-mask"]),
        ("cam_seed", ["refine-seed"]),
        ("weights/cam.safetensors", ["train-cam"]),
        ("report.html", ["evaluate"]),
    ],
)
def test_what_was_removed_is_made_again_and_nothing_else(copy_of_run, finished, gone, again):
    config, _ = copy_of_run("run")
    path = config.run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    pipeline.run(config)
    assert started(config.run) == [*STAGES, *again]
    assert path.exists()
    assert_same(config.run, finished.run)


def test_a_training_that_had_only_its_record_to_write_is_not_repeated(copy_of_run):
    config, _ = copy_of_run("run")
    record = config.run / "stages" / "train-cam.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"done": False}))
    checkpoint = config.run / "weights" / "cam.checkpoint.pt"
    checkpoint.write_bytes(b"left over")
    pipeline.STAGES[0].run(config)
    assert [event["network"] for event in events(config.run, "epoch")].count("cam") == config.train_cam.epochs
    assert not checkpoint.exists()


def test_processes_that_load_pictures_change_nothing(pictures, finished, tmp_path):
    config = configure(tmp_path / "workers.yaml", pictures, tmp_path / "run", "workers=2")
    pipeline.STAGES[0].run(config)
    weights = (config.run / "weights" / "cam.safetensors").read_bytes()
    assert weights == (finished.run / "weights" / "cam.safetensors").read_bytes()
    other = configure(tmp_path / "seed.yaml", pictures, tmp_path / "other", "seed=1")
    pipeline.STAGES[0].run(other)
    assert weights != (other.run / "weights" / "cam.safetensors").read_bytes()


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
        process.communicate()
        if process.returncode == -9 and not finished_too_soon(config.run):
            assert begun(config.run)
            return config, file
    raise AssertionError("the kill came too late each time")


def amn_epochs(run):
    """How many epochs of AMN the log tells of since the copied run was."""
    path = run / "log.jsonl"
    return path.read_text().count('"network": "amn"') - 4


def test_killed_in_train_amn_and_started_again(copy_of_run, finished):
    config, file = killed_in_the_middle(
        copy_of_run,
        STAGES[STAGES.index("train-amn") :],
        ["workers=2"],  # those processes outlive a kill for some seconds, and must not keep the folder
        begun=lambda run: amn_epochs(run) >= 1,
        finished_too_soon=lambda run: (run / "weights" / "amn.safetensors").exists() or amn_epochs(run) == 4,
    )
    (config.run / "weights" / ".amn.checkpoint.pt.ab12_xyz").write_bytes(b"half a checkpoint")
    before = amn_epochs(config.run)
    status, _, errors = command("run", file)
    assert status == 0, errors
    assert "train-amn (going on where it was stopped)" in errors
    assert_same(config.run, finished.run)
    assert before <= 3
    # An epoch that was in the log but whose checkpoint was not yet written is trained again.
    assert 4 <= amn_epochs(config.run) <= 5


def test_killed_in_make_mask_and_started_again(copy_of_run, finished):
    def count(run):
        return len(list((run / "masks").glob("*.png"))) if (run / "masks").is_dir() else 0

    config, file = killed_in_the_middle(
        copy_of_run,
        ("make-mask", "evaluate"),
        [],
        begun=lambda run: count(run) >= 2,
        finished_too_soon=lambda run: count(run) > 8,
    )
    kept = {path: path.stat().st_mtime_ns for path in (config.run / "masks").glob("*.png")}
    (config.run / "masks" / ".demo_009.png.ab12_xyz").write_bytes(b"half a mask")
    status, output, errors = command("run", file)
    assert status == 0, errors
    assert "make-mask (going on where it was stopped)" in errors
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # image by image: what was there stays
    assert_same(config.run, finished.run)
    assert f"masks:  {config.run / 'masks'}" in output


SEGMENTATION = (
    "segmentation=true", "train_seg.recipe=small", "train_seg.crop=64", "train_seg.batch=2", "train_seg.iterations=4",
    "train_seg.checkpoint_every=2", "eval_seg.options={ids: others.txt}",
)  # fmt: skip


@pytest.fixture
def others(pictures):
    """A list of pictures to evaluate on."""
    path = pictures / "others.txt"
    path.write_text("demo_001\ndemo_004\nnothing\n")
    yield path
    path.unlink()


def test_a_run_goes_on_to_the_segmentation_network_where_asked(copy_of_run, others, capfd):
    config, _ = copy_of_run("run", (), *SEGMENTATION)
    pipeline.run(config)
    assert started(config.run) == [*STAGES, "train-seg", "eval-seg"]  # those before are as they were
    found = json.loads((config.run / "metrics.json").read_text())
    assert (found["segmentation"]["scored_pictures"], len(found["segmentation"]["losses"])) == (3, 2)
    assert found["mask"]["miou"] > 0
    page = (config.run / "report.html").read_text()
    assert 'id="segmentation"' in page
    assert 'alt="Network and CRF of demo_004:' in page
    assert 'alt="Refined AMN seed of' in page
    assert ">train-seg</code>" in page
    capfd.readouterr()
    pipeline.run(config)
    said = capfd.readouterr().err
    assert said.count("done already under this configuration, skipped") == len(STAGES) + 2
    (config.run / "segmentation_shown").rename(config.run / "gone")
    pipeline.run(config)
    assert started(config.run)[-1] == "eval-seg"
    (config.run / "report.html").unlink()  # evaluate writes the same page, with what eval-seg found
    pipeline.run(config)
    assert started(config.run)[-1] == "evaluate"
    assert (config.run / "report.html").read_text() == page


def test_a_missing_list_for_the_evaluation_is_an_error_before_anything_runs(pictures, tmp_path):
    config = configure(tmp_path / "a.yaml", pictures, tmp_path / "run", *SEGMENTATION)
    with pytest.raises(InputError, match=r"others\.txt"):
        pipeline.run(config)
    assert not (tmp_path / "run").exists()


def test_shipped_runs_evaluate_on_other_pictures_and_the_demo_leaves_it_out():
    for name in ("voc12", "voc6", "msrc"):
        config = read_config(name)
        assert config.segmentation
        assert config.eval_seg.options["ids"] == "val" != config.data.options["ids"]
    assert read_config("coco14").eval_seg.options == {"split": "val2014"}
    assert not read_config("demo").segmentation
    assert pipeline.stages_of(read_config("demo")) == pipeline.STAGES
