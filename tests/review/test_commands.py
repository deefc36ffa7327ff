"""export, import and review as commands: what they print, and the exit code when an image could not be used."""

import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from amn_fast.cli import app
from amn_fast.data.image import read_mask
from amn_fast.data.masks import write_mask
from amn_fast.review.decisions import write_decisions


def call(*arguments, code=0):
    shown = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert shown.exit_code == code, shown.output
    return shown.output


def test_export_and_import(tmp_path):
    masks, classes = tmp_path / "masks", tmp_path / "classes.txt"
    classes.write_text("[red]one[/red]\n")
    for id in ("[b]good", "size"):
        write_mask(masks / f"{id}.png", np.ones((4, 5), np.uint8))
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (5, 4) if id == "[b]good" else (6, 4)).save(tmp_path / "images" / f"{id}.png")
    write_decisions(tmp_path / "decisions.json", {"[b]good": {"status": "needs-work", "time": 1, "mask": ""}})
    given = ("--classes", classes, "--images", tmp_path / "images")
    shown = call("export", masks, tmp_path / "all", "--to", "voc", *given, code=1)
    assert "1 of 2 images exported" in shown
    assert "not exported: 'size'" in shown
    only = ("--only", "needs-work", "--decisions", tmp_path / "decisions.json")
    assert "1 of 1 images exported" in call("export", masks, tmp_path / "some", "--to", "voc", *given, *only)
    assert call("export", masks, tmp_path / "none", "--to", "voc", *given, *only[:2], code=1) == ""
    shown = call("import", tmp_path / "some", tmp_path / "back", "--from", "voc", *given)
    assert "1 of 1 images imported" in shown
    assert "1 of 2 images have no annotation" in shown
    np.testing.assert_array_equal(read_mask(tmp_path / "back" / "[b]good.png"), np.ones((4, 5)))


def test_a_run_brings_its_classes_and_images(make_run, tmp_path):
    run = make_run(3)
    assert "3 of 3 images exported" in call("export", run, tmp_path / "out", "--to", "fiftyone")
    call("import", tmp_path / "out", tmp_path / "no", "--from", "voc", "--classes", run, code=1)
    call("export", run, tmp_path / "voc", "--to", "voc")
    call("import", tmp_path / "voc", tmp_path / "back", "--from", "voc", "--classes", run)
    assert len(list((tmp_path / "back").iterdir())) == 3
    (tmp_path / "data" / "images").rename(tmp_path / "moved")
    assert "images were not found" in call(
        "export", run, tmp_path / "coco", "--to", "coco", "--classes", class_file(tmp_path)
    )


def class_file(folder):
    path = folder / "names.txt"
    path.write_text("one\ntwo\nthree\n")
    return path


@pytest.mark.usefixtures("interruptible")
def test_review_as_a_file_and_served(make_run):
    run = make_run(2)
    assert f"{run.as_uri()}/review/index.html" in call("review", run)
    command = [sys.executable, "-m", "amn_fast", "review", str(run), "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "2 images, 0 computed, the others up to date\n"
        address = server.stdout.readline().split()[1]
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert b"<title>Review</title>" in answer.read()
        server.send_signal(signal.SIGINT)
        assert "ended" in server.stdout.read()
    assert server.returncode == 0
