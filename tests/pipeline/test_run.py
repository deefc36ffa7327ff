"""The whole pipeline on a tiny set: complete, then skipped; the same on any threads and with little stored."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from amn_fast import pipeline
from amn_fast.config import read_config
from amn_fast.data.image import read_mask
from amn_fast.data.masks import check_masks, write_mask
from amn_fast.errors import InputError
from amn_fast.pipeline import inference, runner

from .conftest import configure
from .runs import NAMES, PASSES, RESULTS, STAGES, assert_same, dataset_of, results, started


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
