"""The commands beside the stages: sweep, report, build-labels, check-masks."""

import csv
import json

import pytest

from amn_fast.data import open_dataset
from amn_fast.data.image import read_mask
from amn_fast.metrics import Confusion
from amn_fast.pipeline import sweep
from command_line import command


@pytest.fixture(scope="module")
def swept(finished):
    return sweep.run(finished, [10.0, 20.0], [2, 8], [1.3])


def test_the_sweep_scores_the_masks_that_the_stage_makes(finished, swept):
    """The run's own setting and threshold: the sweep's figure is that of the masks on disk."""
    _, results = swept
    curve = results[sweep.Setting(finished.mask.beta, finished.mask.exp_times, finished.mask.power)]
    dataset = open_dataset(finished.data.kind, finished.data.root, **finished.data.options)
    confusion = Confusion(len(dataset.classes))
    for id in dataset.ids:
        confusion.add(read_mask(finished.run / "masks" / f"{id}.png"), dataset.ground_truth(id))
    at = round(finished.mask.background * 100)
    assert curve.miou[at] == pytest.approx(confusion.scores().miou, abs=1e-3)


def test_the_table_holds_every_setting_and_threshold(swept):
    path, results = swept
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 2 * 2 * 101
    row = next(r for r in rows if (r["beta"], r["exp_times"], r["threshold"]) == ("20.0", "2", "0.50"))
    assert float(row["miou"]) == pytest.approx(results[sweep.Setting(20.0, 2, 1.3)].miou[50], abs=1e-6)


def test_sweep_prints_the_best_settings(copy_of_run):
    _, file = copy_of_run("swept")
    status, output, errors = command("sweep", file, "--beta", "10", "--exp-times", "3", "--power", "1.3")
    assert status == 0, errors
    assert "best mIoU" in output


def test_report_is_written_again(copy_of_run):
    config, file = copy_of_run("reported")
    page = config.run / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert command("report", file)[0] == 0
    again = page.read_text()
    assert again.count("<img") == before.decode().count("<img") > 0


def test_the_demo_runs_both_modes_and_its_reports_compare_them(tmp_path):
    """On four images, with thresholds given and trainings of a step or two."""
    settings = ["data.options={n: 4}", "cam_seed={fg: 0.6, bg: 0.2}", "cam.scales=[1.0]", "amn.scales=[1.0]"]
    settings += [
        f"train_{name}.{pair}" for name in ("cam", "amn", "irn") for pair in ("epochs=1", "batch=2", "crop=96")
    ]
    options = [option for setting in settings for option in ("--set", setting)]
    status, output, errors = command("demo", "--run", tmp_path / "demo", *options)
    assert status == 0, errors
    assert f"both modes compared: {tmp_path / 'demo' / 'report.html'}" in output
    rows = json.loads((tmp_path / "demo" / "comparison.json").read_text())["rows"]
    assert [row["run"] for row in rows] == [".", "full"]
    for row in rows:
        metrics = json.loads((tmp_path / "demo" / row["run"] / "metrics.json").read_text())
        assert row["mask"] == metrics["mask"]["miou"]
        assert row["seconds"] == pytest.approx(sum(stage["seconds"] for stage in metrics["stages"].values()), abs=0.1)
    assert '<a href="full/report.html">full, three networks trained</a>' in (tmp_path / "demo/report.html").read_text()
    assert '<a href="../report.html">fast, no network trained</a>' in (tmp_path / "demo/full/report.html").read_text()


def test_report_of_a_run_that_was_not_evaluated(copy_of_run):
    _, file = copy_of_run("unscored", ("evaluate",))
    status, _, errors = command("report", file)
    assert status == 1
    assert "run `amn-fast evaluate` first" in errors
    assert errors.count("\n") == 1


def test_labels_built_from_masks_are_the_sets_own(images, tmp_path):
    built = tmp_path / "labels.json"
    assert command("build-labels", images / "masks", built, "--classes", images / "classes.txt")[0] == 0
    options = {"masks": "masks", "classes": "classes.txt", "ids": "ids.txt"}
    first = open_dataset("folder", images, **options)
    second = open_dataset("folder", images, labels=str(built), **options)
    assert all((first.labels(id) == second.labels(id)).all() for id in first.ids)


def test_check_masks_counts_or_names_what_is_wrong(copy_of_run):
    config, file = copy_of_run("checked")
    status, output, _ = command("check-masks", file, config.run / "masks")
    assert (status, "11 masks" in output) == (0, True)
    (config.run / "masks" / "demo_003.png").unlink()
    status, _, errors = command("check-masks", file, config.run / "masks")
    assert status == 1
    assert "1 id ('demo_003') without a mask" in errors
