"""The fast mode: linear models in place of trained networks, masks by CRF; the stages, their masks, new images."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml

import amn_fast
from amn_fast import pipeline
from amn_fast.calibrate.run import from_answers, from_masks, write_questions
from amn_fast.calibrate.sampling import ScoredRun
from amn_fast.config import SHIPPED, Config, read_config
from amn_fast.data.image import read_mask
from amn_fast.data.masks import write_mask
from amn_fast.data.store import read_activations
from amn_fast.errors import InputError
from amn_fast.metrics import Confusion
from amn_fast.pipeline import fitting
from amn_fast.pipeline.chosen import choice_file, chosen_mask
from amn_fast.pipeline.dependencies import input_names, settings_of, stages_of
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.table import stage_named
from amn_fast.steps.choice import crf_threshold, separation
from amn_fast.steps.mask import make_crf_mask
from amn_fast.steps.regions import find_regions


@pytest.fixture
def configuration(images, tmp_path):
    options = {"masks": "masks", "classes": "classes.txt", "ids": "ids.txt"}
    data = {"kind": "folder", "root": str(images), "options": options}
    values = {"base": "fast", "name": "mine", "data": data, "run": "run", "cam": {"scales": [1.0]}, "device": "cpu"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "mine.yaml"


def test_a_transformer_serves_too(configuration, small_grid):
    config = read_config(configuration, ["backbone=test_vit", "weights=null"])
    pipeline.run(config)
    assert len(list((config.run / "masks").glob("*.png"))) == 11


def test_trusted_masks_stay_in_every_round(configuration, tmp_path, monkeypatch):
    trusted = tmp_path / "trusted"
    settings = ["train_amn.rounds=3", "cam_seed={fg: 0.3, bg: 0.1}", f"trusted={trusted}"]
    work = Workspace(read_config(configuration, settings))
    kept = [id for id in work.dataset.ids if work.dataset.labels(id).any()][1]
    write_mask(trusted / f"{kept}.png", work.dataset.ground_truth(kept))
    rounds, fit = [], fitting.heads.fit

    def recorded(cells, labels, n_classes, **options):
        rounds.append(labels)
        return fit(cells, labels, n_classes, **options)

    monkeypatch.setattr(fitting.heads, "fit", recorded)
    for stage in ("train-cam", "make-cam", "refine-seed", "train-amn"):
        pipeline.run_stage(work.config, stage)
    ids = fitting.subset(work, fitting.MOST_IMAGES)
    first, *others = (dict(zip(ids, labels[0].chunk(len(ids)), strict=True)) for labels in rounds)
    assert len(others) == 2
    for labels in others:
        assert [id for id in ids if torch.equal(labels[id], first[id])] == [kept]


def _is_calibrated(config, folder):
    """Cells and counts of `calibrate` are those of the masks."""
    work, scored = Workspace(config), ScoredRun(config.run)
    write_questions(config.run, folder / "questions.csv", points=24)
    scored.draw(24, 0)
    place, wrong, pixels = scored.edges.index(chosen_mask(config).threshold), 0, 0
    for id in work.dataset.ids:
        if work.dataset.labels(id).any():
            label, bins = scored.cells(id)
            mask = read_mask(config.run / f"masks/{id}.png")
            wrong += np.count_nonzero(np.where(bins > place, label, 0) != mask)
            pixels += mask.size
    assert wrong <= 1e-3 * pixels  # the CRF's foreground is not quite monotone in the threshold
    rows = list(csv.reader((folder / "questions.csv").read_text().splitlines()))
    names = ("background", *work.dataset.classes)
    for row in rows[1:]:
        row[3] = names[work.dataset.ground_truth(row[0])[int(row[2]), int(row[1])]]
    (folder / "answers.csv").write_text("\n".join(map(",".join, rows)))
    assert from_answers(config.run, folder / "answers.csv").used == 24
    miou = json.loads((config.run / "metrics.json").read_text())["mask"]["miou"]
    assert from_masks(config.run, config.data.root / "masks").current.miou.value == pytest.approx(miou, abs=1e-6)


def _masks_follow_regions(work):
    """The threshold of the masks is where these follow the regions of the images and promise a high IoU."""
    found = json.loads(choice_file(work.root, "mask").read_text())
    ids = [id for id in work.dataset.ids if work.dataset.labels(id).any()]
    assert (found["by"], found["images"]) == ("regions", len(ids))
    assert found["background"] == crf_threshold(np.array(found["regions"]), np.array(found["expected_iou"]))
    for threshold in (0.15, found["background"]):
        settings = work.config.mask.model_copy(update={"background": threshold})
        follows, certain, union = [], [], []
        for id in ids:
            image, maps = work.dataset.image(id), read_activations(work.item("amn", id))
            inside, p = make_crf_mask(image, maps, settings) > 0, maps.full.max(0).astype(float)
            follows += separation(inside.reshape(1, -1).astype(float), find_regions(image).ravel()).tolist()
            certain.append(p[inside].sum() / p.size)
            union.append((inside.sum() + p[~inside].sum()) / p.size)
        place = found["mask_thresholds"].index(threshold)
        assert found["regions"][place] == pytest.approx(np.mean(follows), abs=1e-6)
        assert found["expected_iou"][place] == pytest.approx(np.mean(certain) / np.mean(union), abs=1e-5)


def test_masks_without_training(configuration, small_grid, tmp_path):
    config = read_config(configuration)
    assert [s.name for s in stages_of(config)] == [
        "train-cam", "make-cam", "choose-seed", "refine-seed", "train-amn", "make-amn-cam",
        "choose-background", "make-mask", "check-run", "evaluate",
    ]  # fmt: skip
    pipeline.run(config)
    work, confusion = Workspace(config), Confusion(3)
    _masks_follow_regions(work)
    labeler, settings = amn_fast.Labeler(config.run), chosen_mask(config)
    for id in work.dataset.ids:
        image, found = work.dataset.image(id), read_activations(config.run / f"amn/{id}.npz")
        mask = read_mask(config.run / f"masks/{id}.png")
        np.testing.assert_array_equal(mask, make_crf_mask(image, found, settings))
        if id in work.dataset.ids[::3]:
            names = [work.dataset.classes[key - 1] for key in found.keys]
            np.testing.assert_array_equal(labeler.label(image, names).mask, mask)
        confusion.add(mask, work.dataset.ground_truth(id))
    assert confusion.scores().miou > 0.7  # ten images; the real backbone's features
    assert not (config.run / "edge").exists()
    _is_calibrated(config, tmp_path)
    report = (config.run / "report.html").read_text()
    assert "Seeds of the CAM: fg" in report
    assert "where they follow the images' regions and" in report
    assert "Refined seed" in report
    assert "Refined AMN seed" not in report
    other = read_config(configuration, [f"run={json.dumps(str(config.run.parent / 'other'))}", "store=minimal"])
    torch.set_num_threads(2)
    for stage in stages_of(other)[:-2]:  # without activations at full size, on other threads: the same
        pipeline.run_stage(other, stage.name)
    torch.set_num_threads(1)
    made = [path.relative_to(config.run) for path in config.run.rglob("*") if path.suffix in (".png", ".safetensors")]
    assert len(made) > 2 * 11
    for path in made:
        assert (other.run / path).read_bytes() == (config.run / path).read_bytes(), path
    assert not pipeline.run_stage(config, "make-mask")


def test_kinds_change_what_stages_depend_on(configuration, finished):
    fast = read_config(configuration)
    assert "weights/cam.safetensors" in input_names(fast, stage_named("train-amn"))
    assert "weights/cam.safetensors" not in input_names(finished, stage_named("train-amn"))
    with pytest.raises(InputError, match=r"train-irn is not a stage of this configuration, expected mask.kind: walk"):
        pipeline.run_stage(fast, "train-irn")
    # Runs of earlier versions, which did not have these settings, stay up to date.
    for key, stage in (("train_cam.kind", "train-cam"), ("train_amn.kind", "train-amn"), ("mask.kind", "make-mask")):
        assert key not in settings_of(Workspace(finished), stage_named(stage))
        assert key in settings_of(Workspace(fast), stage_named(stage))


def test_a_base_gives_what_a_file_leaves_out(configuration, tmp_path):
    fast, shipped = read_config(configuration), read_config(SHIPPED / "fast.yaml")
    assert (fast.train_amn, fast.mask) == (shipped.train_amn, shipped.mask)
    assert fast.cam.scales == (1.0,)
    assert fast.run == tmp_path / "run"
    (tmp_path / "other.yaml").write_text("base: quick\nname: a\ndata: {kind: folder}\nrun: run\n")
    with pytest.raises(InputError, match=r"base is 'quick', expected one of .*fast"):
        read_config(tmp_path / "other.yaml")
    assert Config(name="a", data={"kind": "voc"}, run=tmp_path).mask.kind == "walk"
