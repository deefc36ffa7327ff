"""check-run: what a finished run holds, and a collapsed classifier in the log, the report and the exit summary."""

import csv
import io
import json
import shutil

import numpy as np

from amn_fast.cli import summary
from amn_fast.data.store import Activations, read_activations, write_activations
from amn_fast.pipeline import health, reporting
from amn_fast.pipeline.folder import Workspace


def test_a_finished_run_has_its_masks_ranked_by_doubt(finished):
    rows = list(csv.DictReader((finished.run / "doubt.csv").open()))
    dataset = Workspace(finished).dataset
    assert {row["image"] for row in rows} == {id for id in dataset.ids if dataset.labels(id).any()}
    doubts = [float(row["doubt"]) for row in rows]
    assert doubts == sorted(doubts, reverse=True)
    assert 0 <= doubts[-1] < 0.5 < doubts[0] <= 1
    report = (finished.run / "report.html").read_text()
    assert "Doubtful masks" in report
    assert "Rank correlation with the IoU" in report


def test_a_collapsed_classifier_is_called_out(finished, tmp_path, monkeypatch):
    """Activations of one value everywhere, as a classifier leaves them whose learning rate was too high."""
    shutil.copytree(finished.run, tmp_path / "run")
    work = Workspace(finished.model_copy(update={"run": tmp_path / "run"}))
    for id in work.dataset.ids:
        found = read_activations(work.item("cam", id))
        write_activations(work.item("cam", id), Activations(found.keys, 0 * found.strided + 1, 0 * found.full + 1))
    health.check_run(work, lambda path: path)
    problems = [
        one["text"] for one in json.loads((work.root / "health.json").read_text())["findings"] if one["serious"]
    ]
    (text,) = (text for text in problems if text.startswith("activations: "))
    assert "have the same value at all pixels, most of cat, cup, person, and show no object" in text
    events = [json.loads(line) for line in (work.root / "log.jsonl").read_text().splitlines()]
    assert any(event["event"] == "health" and event["text"] == text for event in events)
    reporting.write(work)
    report = (work.root / "report.html").read_text()
    assert "These masks are not useful as they are" in report
    assert text in report
    metrics = json.loads((work.root / "metrics.json").read_text())
    scores = ("cam", "refined_seed", "amn", "amn_refined", "mask")
    unscored = {key: value for key, value in metrics.items() if key not in scores}
    (work.root / "metrics.json").write_text(json.dumps(unscored))
    monkeypatch.setattr(summary.console, "_file", io.StringIO())  # not `file`: undoing it would fix the stream
    summary.print_summary(work.root)
    printed = summary.console.file.getvalue()
    assert "these masks are not useful as they are" in printed
    assert text in printed
    assert "share of each class" not in printed  # no tables of a run that is worth nothing


def test_images_in_any_order_give_the_same_bytes(finished, tmp_path):
    shutil.copytree(finished.run, tmp_path / "run")
    work = Workspace(finished.model_copy(update={"run": tmp_path / "run"}))
    for name in ("doubt.csv", "health.json"):
        (work.root / name).unlink()
    health.check_run(work, lambda path: path)
    for name in ("doubt.csv", "health.json"):
        assert (work.root / name).read_bytes() == (finished.run / name).read_bytes()


def test_features_say_whether_labels_fit(finished):
    """Eleven images are too few to say anything; the same images three times over are enough."""
    work = Workspace(finished)
    assert health.separate(work) == []
    dataset = work.dataset
    ids = [id for id in dataset.ids if dataset.labels(id).any()] * 3
    order = np.random.default_rng(0).permutation(len(ids))
    labels = {f"{k}": dataset.labels(ids[j]) for k, j in enumerate(order)}

    class Shuffled:
        classes = dataset.classes

        def __init__(self):
            self.ids = tuple(labels)

        def image(self, id):
            return dataset.image(ids[int(id)])

        def labels(self, id):
            return labels[id]

    work.__dict__["dataset"] = Shuffled()
    (found,) = health.separate(work)
    assert found.serious
    assert "check that each label belongs to its image" in found.text
