"""Whole jobs: every image exactly once and the same bytes, whatever is killed, hangs or is damaged."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from amn_fast.cli import app
from amn_fast.data.image import read_mask
from amn_fast.errors import InputError
from amn_fast.label import jobs
from amn_fast.label.engines import Computed, Crew, Started
from amn_fast.label.jobs import Options, job_status, label_images
from amn_fast.label.labeler import Labeler
from amn_fast.label.places import Place
from amn_fast.label.prediction import best_threshold
from amn_fast.label.progress import Progress, Reporter
from amn_fast.label.shards import Outcome, read_masks, read_rows
from amn_fast.label.worker import Begun
from tiny_run import InThisProcess, outputs, write_images

CLASSES = ("cat", "cup", "dog")


@pytest.fixture
def here(monkeypatch):
    """Jobs run in this process."""
    monkeypatch.setattr(jobs, "Crew", InThisProcess)
    return InThisProcess


def test_masks_tables_and_forms(run, images, tmp_path, here):
    labels = json.loads((tmp_path / "labels.json").read_text())["labels"]
    (images / "image_00003.png").write_bytes(b"\x89PNG")
    options = Options(labels=tmp_path / "labels.json", shard_size=12, quiet=True)
    found = label_images(run, str(images), str(tmp_path / "out"), options)
    assert (found.images, found.all_errors, found.shards_done) == (30, 1, 3)
    labeler = Labeler(run)
    tables = pyarrow.parquet.read_table(tmp_path / "out" / "shards").to_pylist()
    assert [row["id"] for row in tables] == sorted(labels)
    for row in tables:
        if row["id"] == "image_00003":
            assert row["status"] == "error"
            assert row["error"].endswith("image_00003.png: is a PNG image that is truncated or damaged")
            assert not (tmp_path / "out" / "masks" / "image_00003.png").exists()
            continue
        expected = labeler.label(images / f"{row['id']}.png", labels[row["id"]])
        np.testing.assert_array_equal(read_mask(tmp_path / "out" / "masks" / f"{row['id']}.png"), expected.mask)
        assert (row["status"], row["labels"], row["predicted"]) == ("ok", list(expected.labels), False)
        assert (row["height"], row["width"]) == expected.mask.shape
        assert row["areas"] == list(expected.areas)
        assert row["doubt"] == pytest.approx(expected.doubt, abs=1e-6)

    # As archives, in shares, to a URL, with more threads and from a list at a URL: the same masks and tables.
    for share in ((1, 2), (0, 2)):
        found = label_images(
            run, str(images), f"memory:/{tmp_path}/tar", replace(options, archives=True, share=share, threads=3)
        )
    assert found.shards_done == 2
    place = Place(f"memory:/{tmp_path}/tar")
    for shard in range(3):
        assert read_rows(place, shard) == read_rows(Place(tmp_path / "out"), shard)
        masks = read_masks(place, shard)
        assert len(masks) == (11, 12, 6)[shard]
        for id, mask in masks.items():
            assert mask == (tmp_path / "out" / "masks" / f"{id}.png").read_bytes()

    # What is finished is skipped; failed images are computed again, and those alone.
    before = outputs(tmp_path / "out")
    assert label_images(run, str(images), str(tmp_path / "out"), options).earlier == 30
    shutil.copy(images / "image_00004.png", images / "image_00003.png")
    (tmp_path / "out" / "masks" / "image_00005.png").unlink()  # would come back if all were computed
    for out, archives in ((str(tmp_path / "out"), False), (f"memory:/{tmp_path}/tar", True)):
        again = replace(options, retry_failed=True, archives=archives)
        assert label_images(run, str(images), out, again).all_errors == 0
    whole = label_images(run, str(images), str(tmp_path / "whole"), options)
    assert whole.all_errors == 0
    expected = outputs(tmp_path / "whole")
    del expected["masks/image_00005.png"]
    assert outputs(tmp_path / "out") == expected != before
    label_images(run, str(images), str(tmp_path / "wholetar"), replace(options, archives=True))
    for shard in range(3):
        name = f"masks/{shard:05d}.tar"
        assert place.read(name) == (tmp_path / "wholetar" / name).read_bytes()


def test_sidecars_and_predicted_labels(run, images, tmp_path, here):
    labels = json.loads((tmp_path / "labels.json").read_text())["labels"]
    for id, names in labels.items():
        (images / f"{id}.txt").write_text("\n".join(names))
    label_images(run, str(images), str(tmp_path / "side"), Options(sidecars=True, quiet=True))
    label_images(run, str(images), str(tmp_path / "file"), Options(labels=tmp_path / "labels.json", quiet=True))
    side, file = outputs(tmp_path / "side"), outputs(tmp_path / "file")
    assert {n: c for n, c in side.items() if n != "job.json"}.keys() == {n for n in file if n != "job.json"}
    assert side["shards/00000.parquet"] == file["shards/00000.parquet"]

    copy = shutil.copytree(run, tmp_path / "run")
    shutil.copytree(images, copy / "data" / "images")
    shutil.copy(tmp_path / "labels.json", copy / "data" / "labels.json")
    for path in (copy / "data" / "images").glob("*.txt"):
        path.unlink()
    out = tmp_path / "predicted"
    label_images(copy, str(images), str(out), Options(predict=0.6, quiet=True))
    chosen = json.loads((out / "job.json").read_text())["predicted"]
    assert chosen["precision"] == 0.6
    thresholds = {name: found["threshold"] for name, found in chosen["classes"].items()}
    assert sum(threshold < 1 for threshold in thresholds.values()) > 0
    labeler, right, count = Labeler(copy), 0, 0
    for row in pyarrow.parquet.read_table(out / "shards").to_pylist():
        assert row["predicted"]
        probabilities = labeler.probabilities(images / f"{row['id']}.png")
        assert row["labels"] == [n for n, p in zip(CLASSES, probabilities, strict=True) if p > thresholds[n]]
        right += sum(name in labels[row["id"]] for name in row["labels"])
        count += len(row["labels"])
    assert right / count >= 0.6  # the images are those of the training
    shutil.rmtree(copy / "data")  # the folder remembers the thresholds
    assert label_images(copy, str(images), str(out), Options(predict=0.6, quiet=True)).earlier == 30


@pytest.mark.parametrize(
    ("scores", "shown", "precision", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0], 1.0, (0.75, 1.0, 1.0)),
        ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 1], 0.75, (0.3, 0.75, 1.0)),
        ([0.9, 0.9, 0.5], [1, 0, 1], 0.9, (1.0, 0.0, 0.0)),  # equal scores stay together
        ([0.2, 0.1], [0, 0], 0.5, (1.0, 0.0, 0.0)),
    ],
)
def test_thresholds(scores, shown, precision, expected):
    found = best_threshold(np.array(scores), np.array(shown, bool), precision)
    assert (found.threshold, found.precision, found.recall) == pytest.approx(expected)


def test_what_is_refused(run, images, tmp_path, here):
    options = Options(labels=tmp_path / "labels.json", shard_size=12, quiet=True)
    out = tmp_path / "out"
    label_images(run, str(images), str(out), options)
    before = outputs(out)
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "config.yaml").write_text((run / "config.yaml").read_text().replace("0.4", "0.5"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    cases = (
        (copy, out, {}, r"another configuration \(settings.mask.background: found 0.4, expected 0.5\); choose"),
        (run, out, {"shard_size": 10}, r"another configuration \(listing.shard_size: found 12, expected 10\)"),
        (run, out, {"archives": True}, r"\(archives: found false, expected true\)"),
        (run, tmp_path / "mine", {}, "mine: holds notes.txt, which no labelling job has written"),
        (run, images / "out", {}, "out: overlaps the input, .*images; expected a folder apart"),
        (run, tmp_path, {}, "overlaps the run folder|overlaps the input"),
        (run, out, {"sidecars": True}, "labels: found 2 sources, expected one of --labels FILE"),
        (run, out, {"labels": None}, "labels: found 0 sources"),
        (run, out, {"share": (2, 2)}, "shard is 2/2, expected i/n with i in 0..n-1"),
        (run, out, {"shard_size": 0}, "shard size is 0, expected 1 or more"),
        (tmp_path, out, {}, "has no config.yaml, expected the folder of a finished run"),
    )
    for where, place, changes, message in cases:
        with pytest.raises(InputError, match=message):
            label_images(where, str(images), str(place), replace(options, **changes))
    assert outputs(out) == before
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    for number in range(5):
        (images / f"image_{number:05d}.png").write_bytes(b"GIF8")
    with pytest.raises(InputError, match="4 images are errors, more than --max-errors 3; amn-fast label-status shows"):
        label_images(run, str(images), str(tmp_path / "many"), replace(options, max_errors=3))
    with pytest.raises(InputError, match="nothing: holds no labelling job"):
        job_status(str(tmp_path / "nothing"))


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        return []


def workers_of(parent):
    """The workers of a job: children of its fork server."""
    return [worker for child in children(parent) for worker in children(child)]


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_kills_hangs_and_damage(run, tmp_path, here, monkeypatch):
    file, folder = write_images(tmp_path / "images", 72), tmp_path / "images"
    for number in range(0, 60, 10):
        (folder / f"image_{number:05d}.png").write_bytes(b"\xff\xd8\xff")
    (folder / "image_00031.png").unlink()
    os.mkfifo(folder / "image_00031.png")  # opening it waits for ever
    hangs = {"image_00031": "took longer than 10 seconds"}
    monkeypatch.setattr(here, "failures", hangs)
    label_images(run, str(folder), str(tmp_path / "alone"), Options(labels=file, shard_size=13, quiet=True))

    out = tmp_path / "out"
    command = [sys.executable, "-m", "amn_fast", "label", str(run), str(folder), str(out), "--labels", str(file)]
    command += ["--shard-size", "13", "--workers", "3", "--threads", "1", "--timeout", "10"]

    def start():
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def kill_workers(job, times):
        for _ in range(times):
            before = len(list(out.glob("masks/*")))
            wait_until(lambda n=before: len(list(out.glob("masks/*"))) > n and len(workers_of(job.pid)) == 3)
            os.kill(workers_of(job.pid)[-1], signal.SIGKILL)

    job = start()
    kill_workers(job, 2)
    orphans = workers_of(job.pid)
    job.kill()
    job.wait()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in orphans))
    job = start()
    kill_workers(job, 1)
    message, errors = job.communicate(timeout=240)
    assert job.returncode == 0, errors
    assert message.startswith("72 images, 7 errors, 6 shards in")
    assert outputs(out) == outputs(tmp_path / "alone")
    status = job_status(str(out))
    assert (status.shards, status.of_shards, status.images, status.of_images, status.errors) == (6, 6, 72, 72, 7)
    assert {row.id: row.error for row in status.failed}["image_00031"] == hangs["image_00031"]
    shown = CliRunner().invoke(app, ["label-status", str(out), "--errors", "1"]).output
    assert "finished: 6 of 6 shards, 72 of 72 images\nerrors: 7\n  image_00000: " in shown
    assert "0of1" in shown


class Killing(Crew):
    """Kills the worker that has begun a certain image."""

    def _take(self, each, message):
        yield from super()._take(each, message)
        if message == Begun("image_00001"):
            each.process.kill()


def test_workers_that_die(run, tmp_path, monkeypatch):
    """At one image again and again, and before the first one; the job's script has no guard and is not run again."""
    monkeypatch.setattr(jobs, "Crew", Killing)
    script = types.ModuleType("__main__")
    script.__file__ = str(tmp_path / "script.py")
    Path(script.__file__).write_text("raise SystemExit('this ran again')")
    monkeypatch.setitem(sys.modules, "__main__", script)
    file, folder = write_images(tmp_path / "images", 3), tmp_path / "images"
    (folder / "image_00001.png").unlink()
    os.mkfifo(folder / "image_00001.png")  # opening it waits until the worker is killed
    options = Options(labels=file, workers=1, threads=1, quiet=True)
    assert label_images(run, str(folder), str(tmp_path / "out"), options).errors == 1
    (failed,) = job_status(str(tmp_path / "out")).failed
    assert failed.error == "the process that computed it ended 3 times (signal 9)"

    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "weights" / "irn.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"weights .*irn.safetensors do not fit"):
        label_images(copy, str(folder), str(tmp_path / "none"), options)


def test_progress(tmp_path, monkeypatch, capsys):
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    found = Progress(total=400, shards=4, started=clock)
    found.add(Outcome(0, 100, 3))
    found.earlier = found.finished
    reporter = Reporter(Place(tmp_path), "0of1", found, quiet=False)
    with reporter.shown():
        reporter.update()
        found.take(Started(1))
        for ok in (True, False, True):
            found.take(Computed(1, ok))
        found.take(Started(1))  # its worker has died
        found.take(Computed(1, False))
        clock += 10
        reporter.update()
        assert "101 of 400 images, 4 errors, 0.1 images/s, 0:49:50 left" in capsys.readouterr().err
        found.take(Outcome(1, 100, 1))
        clock += 190
    state = json.loads((tmp_path / "logs" / "progress-0of1.json").read_text())
    expected = {"images": 200, "of": 400, "shards": 2, "of_shards": 4, "errors": 4, "images_per_second": 0.5}
    assert state | expected | {"seconds_left": 400} == state
