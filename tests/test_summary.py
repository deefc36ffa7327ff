"""What the commands print of results: scores of how many images, and what is known without ground truth."""

import io
import json

import pytest

pytest.importorskip("jinja2", reason="results need the pipeline extra")
pytest.importorskip("typer", reason="the command line needs the pipeline extra")

from amn_fast.cli import summary

CLASSES = ["[red]cat", '<b>&"', "[/]"]
SCORED = {"scores": {"coverage": 0.5}, "miou": 0.25, "curve": {"best_threshold": 0.4}}
STAGES = {"train-cam": {"seconds": 12.34, "peak_memory_mb": 512.4}, "make-mask": {}}


def label_map(coverage, foreground):
    return {
        "images": 4,
        "coverage": coverage,
        "foreground": foreground,
        "share": [0.125, None, 0.5],
        "empty": [1, 0, 0],
    }


@pytest.fixture
def printed(tmp_path, monkeypatch):
    def show(metrics) -> list[str]:
        monkeypatch.setattr(summary.console, "_file", io.StringIO())  # not `file`: undoing it would fix the stream
        monkeypatch.setattr(summary.console, "_width", 200)
        (tmp_path / "metrics.json").write_text(json.dumps(metrics))
        summary.print_summary(tmp_path)
        lines = summary.console.file.getvalue().splitlines()
        return [" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in lines]

    return show


def test_scores_say_of_how_many_images(printed):
    dataset = {"name": "my [set]", "classes": CLASSES, "images": 10, "scored": 5}
    segmentation = {"dataset": {"name": "val", "pictures": 3}, "scored_pictures": 2, "without_crf": {"miou": 0.75}}
    metrics = {"dataset": dataset, "cam": SCORED, "mask": SCORED | {"miou": None}, "segmentation": segmentation}
    lines = printed(metrics)
    assert lines[0] == "my [set], scored on 5 of 10 images"
    assert "CAM, best threshold 0.250 0.40 0.50" in lines
    assert "mask - 0.50" in lines
    assert "val, segmentation network, scored on 2 of 3 images" in lines
    assert "network 0.750" in lines
    del segmentation["without_crf"]
    assert printed(metrics)[-1] == "val, segmentation network, scored on 2 of 3 images: no ground truth"
    earlier = {"dataset": {"name": "old", "classes": CLASSES, "pictures": 10}, "cam": SCORED}
    assert printed(earlier)[0] == "old, scored on its own images"


def test_without_ground_truth_what_is_known_is_printed(printed):
    metrics = {
        "dataset": {"name": "my [set]", "classes": CLASSES, "images": 4, "images_per_class": [3, 0, 1]},
        "label_maps": {"refined_seed": label_map(0.75, 0.25), "mask": label_map(1.0, None)},
        "training": {"cam": {"loss": [0.5, 0.123], "accuracy": [0.5, 0.75]}},
        "stages": STAGES,
    }
    lines = printed(metrics)
    assert lines[0] == "my [set], 4 images, no ground truth"
    for line in (
        "labelled of these foreground",
        "refined seed 75.0% 25.0%",
        "mask 100.0% -",
        "class images seed mask masks without it",
        "[red]cat 3 12.5% 12.5% 1",
        '<b>&" 0 - - 0',
        "[/] 1 50.0% 50.0% 0",
        "classifier on the training images, last epoch: loss 0.123, all labels right in 75% of the images",
        "train-cam 12.3 512",
        "make-mask - -",
    ):
        assert line in lines
    assert not any("mIoU" in line for line in lines)
    del metrics["training"]["cam"]["accuracy"]
    assert "classifier on the training images, last epoch: loss 0.123" in printed(metrics)
    assert printed({"dataset": {"name": "x", "classes": [], "pictures": 1}}) == ["x, 1 image, no ground truth"]
