"""The stage that chooses seed thresholds: its outputs, its determinism, what depends on it, what it refuses."""

import json

import numpy as np
import pytest
import torch

from amn_fast import pipeline, refine_seed
from amn_fast.config import Config
from amn_fast.data.image import read_mask
from amn_fast.data.store import read_activations
from amn_fast.errors import InputError
from amn_fast.metrics import Confusion, ThresholdCurve
from amn_fast.ops.mask import mask_from_scores
from amn_fast.pipeline import choosing, evaluation
from amn_fast.pipeline.chosen import chosen_seed, heads_file, neighbours
from amn_fast.pipeline.dependencies import input_names, stages_of
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.inference import read_edge
from amn_fast.pipeline.table import stage_named
from amn_fast.steps import choice, mask

CHOICE = "thresholds/cam_seed.json"


def test_seeds_follow_the_choice(copy_of_run, finished, small_grid):
    config, _ = copy_of_run("auto", (), "cam_seed=auto")
    assert [s.name for s in stages_of(config)][1:4] == ["make-cam", "choose-seed", "refine-seed"]
    assert "choose-seed" not in [s.name for s in stages_of(finished)]  # fixed thresholds: nothing to choose
    assert CHOICE not in input_names(finished, stage_named("refine-seed"))
    with pytest.raises(InputError, match="refine-seed needs the outputs of choose-seed"):
        pipeline.run_stage(config, "refine-seed")
    with pytest.raises(
        InputError, match=r"choose-seed is not a stage of this configuration, expected cam_seed.fg: auto"
    ):
        pipeline.run_stage(finished, "choose-seed")
    assert pipeline.run_stage(config, "choose-seed")
    assert not pipeline.run_stage(config, "choose-seed")
    first = {path: path.read_bytes() for path in (config.run / "thresholds").rglob("*.*")}
    found = json.loads(first[config.run / CHOICE])
    scores = {(row["fg"], row["bg"]): row["score"] for row in found["scores"]}
    assert set(scores) == {(0.4, 0.1), (0.4, 0.3), (0.7, 0.1), (0.7, 0.3)}
    assert scores[tuple(found["pair"])] == max(scores.values())
    assert found["images"] == found["of"] - 1 == 10  # one shows no class
    row = found["scores"][0]
    assert len(row["foreground"]) == len(row["expected_iou"]) == len(found["mask_thresholds"]) == 19
    assert row["foreground"] == sorted(row["foreground"], reverse=True)
    id, looser = found["examples"][0], neighbours(tuple(found["pair"]))["looser"]
    cam, image = read_activations(config.run / f"cam/{id}.npz"), Workspace(config).dataset.image(id)
    expected = refine_seed(image, cam.full, cam.keys, fg=looser[0], bg=looser[1])
    np.testing.assert_array_equal(read_mask(config.run / "thresholds/cam_seed/0.looser.png"), expected)
    (config.run / CHOICE).unlink()
    torch.set_num_threads(2)  # the same bytes for any thread count
    assert pipeline.run_stage(config, "choose-seed")
    torch.set_num_threads(1)
    assert first == {path: path.read_bytes() for path in (config.run / "thresholds").rglob("*.*")}
    _heads_are_scored_beside_amn(config)
    assert pipeline.run_stage(config, "refine-seed", overwrite=True)
    fg, bg = chosen_seed(config, "cam_seed").pair
    expected = refine_seed(image, cam.full, cam.keys, fg=fg, bg=bg)
    np.testing.assert_array_equal(read_mask(config.run / f"cam_seed/{id}.png"), expected)


def _heads_are_scored_beside_amn(config):
    work = Workspace(config)
    evaluation.evaluate(work, lambda path: path)
    curves = {name: ThresholdCurve(3) for name in ("heads", "amn")}
    for id in work.dataset.ids:
        if work.dataset.labels(id).any():
            heads = read_activations(heads_file(config.run, "cam_seed", id))
            for name, found in (("heads", heads), ("amn", read_activations(config.run / f"amn/{id}.npz"))):
                curves[name].add(found.full, found.keys, work.dataset.ground_truth(id))
    expected = {"miou": curves["heads"].result().best_miou, "amn": curves["amn"].result().best_miou, "images": 10}
    assert json.loads((config.run / "evaluation.json").read_text())["heads"] == pytest.approx(expected)
    assert expected["miou"] > 0.7
    _masks_agree_with_the_heads(work)


def _masks_agree_with_the_heads(work):
    choosing.choose_background(work, lambda path: path)
    found = json.loads((work.root / "thresholds/mask.json").read_text())
    assert found["by"] == "heads"
    agreement = []
    for threshold in (0.3, found["background"]):
        confusion = Confusion(3)
        for id in filter(lambda id: work.dataset.labels(id).any(), work.dataset.ids):
            amn, edge = read_activations(work.item("amn", id)), read_edge(work.item("edge", id))
            heads = read_activations(heads_file(work.root, "cam_seed", id))
            masks = ((mask.scores(amn, edge, work.config.mask), threshold), (heads.full, 0.5))
            confusion.add(*(mask_from_scores(maps, [0, *amn.keys], at) for maps, at in masks))
        agreement.append(confusion.scores().miou)
        assert found["heads"][found["mask_thresholds"].index(threshold)] == pytest.approx(agreement[-1], abs=1e-3)
    assert agreement[1] == pytest.approx(max(found["heads"]), abs=1e-3)
    (work.root / "thresholds/mask.json").unlink()


def test_all_thresholds_of_a_trained_run(copy_of_run, small_grid):
    config, _ = copy_of_run("all", (), "amn_seed=auto")
    assert pipeline.run_stage(config, "choose-amn-seed")
    assert pipeline.run_stage(config, "refine-amn-seed", overwrite=True)
    pair, id = chosen_seed(config, "amn_seed").pair, "demo_000"
    amn, image = read_activations(config.run / f"amn/{id}.npz"), Workspace(config).dataset.image(id)
    expected = refine_seed(image, amn.full, amn.keys, fg=pair[0], bg=pair[1])
    np.testing.assert_array_equal(read_mask(config.run / f"amn_seed/{id}.png"), expected)
    config, _ = copy_of_run("background", (), "mask.background=auto")
    pipeline.run(config, overwrite=True)
    found = json.loads((config.run / "thresholds/mask.json").read_text())
    assert found["expected_iou"][found["mask_thresholds"].index(found["background"])] == max(found["expected_iou"])
    scores = mask.scores(amn, read_edge(config.run / f"edge/{id}.npz"), config.mask)
    expected = mask_from_scores(scores, [0, *amn.keys], found["background"])
    np.testing.assert_array_equal(read_mask(config.run / f"masks/{id}.png"), expected)
    assert f"Masks: {found['background']}" in (config.run / "report.html").read_text()


def test_the_expected_iou_is_that_of_its_formula():
    p = np.random.default_rng(0).random((2, 3, 50))  # two images, three maps
    found = choice.expected_iou([choice.promise(one) for one in p])
    for k, t in ((0, 0.05), (9, 0.5)):
        above = p > t
        expected = (p * above).sum((0, 2)) / (above.sum((0, 2)) + (p * ~above).sum((0, 2)))
        np.testing.assert_allclose(found[:, k], expected)


def test_the_threshold_of_crf_masks_is_the_usual_one_where_nothing_speaks_against_it():
    at, flat = np.array(choice.CRF_THRESHOLDS), np.ones(len(choice.CRF_THRESHOLDS))
    assert choice.crf_threshold(flat, flat) == choice.USUAL
    assert choice.crf_threshold(flat - 0.001 * (at < 0.4), flat) == choice.USUAL
    assert choice.crf_threshold(flat, 1 - (at - 0.6) ** 2) == 0.5
    assert choice.crf_threshold(flat - 0.5 * (at != 0.15), flat) == 0.15


def test_what_a_choice_refuses(tmp_path):
    config = Config(name="a", data={"kind": "folder"}, run=tmp_path)
    assert config.cam_seed.fg == config.cam_seed.bg == "auto"  # the default of a user's own images
    assert Config(name="a", data={"kind": "voc"}, run=tmp_path).cam_seed.pair == (0.3, 0.05)
    for text, message in (
        (None, "does not exist"), ("{", "cannot be read"), ("{}", "cannot be read"),
        ('{"pair": [0.1, 0.4]}', "expected 0 <= bg <= fg <= 1"),
    ):  # fmt: skip
        if text is not None:
            (tmp_path / "thresholds").mkdir(exist_ok=True)
            (tmp_path / CHOICE).write_text(text)
        with pytest.raises(InputError, match=message):
            chosen_seed(config, "cam_seed")


def test_the_grid_grows_where_the_winner_lies_on_its_edge():
    inside, fg, bg = (0.3, 0.1), choice.FG, choice.BG
    for pair, expected in (
        (inside, ([], [])),
        ((0.8, 0.2), ([0.85], [])),
        ((0.1, 0.05), ([0.07], [0.03])),
        ((0.5, 0.4), ([], [0.5])),
    ):
        assert choice.beyond_edge(pair, fg, bg) == expected
    assert choice.beyond_edge((0.01, 0.0), (0.01, 0.5), (0.0, 0.5)) == ([], [])
