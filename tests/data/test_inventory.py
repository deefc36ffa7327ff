"""Counting a data set, and listing what it lacks, before a run."""

import numpy as np
import pytest

pytest.importorskip("PIL")
typer_testing = pytest.importorskip("typer.testing")
from PIL import Image  # noqa: E402

from amn_fast.cli import app  # noqa: E402
from amn_fast.data import open_dataset  # noqa: E402
from amn_fast.data.coco import COCO_CLASSES  # noqa: E402
from amn_fast.data.inventory import expected_images, take_inventory  # noqa: E402
from amn_fast.data.masks import write_mask  # noqa: E402
from amn_fast.data.voc import VOC_CLASSES  # noqa: E402


@pytest.fixture
def root(tmp_path):
    """Images a and b, labels of a and c, a mask of a that shows class 1."""
    (tmp_path / "images").mkdir()
    for id in ("a", "b"):
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{id}.png")
    write_mask(tmp_path / "masks" / "a.png", np.full((4, 6), 1))
    (tmp_path / "labels.csv").write_text("id,cat,dog\na,1,1\nc,1,0\n")
    (tmp_path / "ids.txt").write_text("a\nb\nc\n")
    return tmp_path


def test_what_is_missing_is_listed(root):
    dataset = open_dataset("folder", root, masks="masks", ids="ids.txt")
    found = take_inventory(dataset, masks=True, images=True)
    assert found.images == 3
    assert found.positives == {"cat": 2, "dog": 1}
    assert found.missing == {"image": ["c"], "labels": ["b"], "mask": ["b", "c"]}
    assert not found.damaged
    assert not found.complete
    dataset.ids = ("a",)
    assert take_inventory(dataset, masks=True, images=True).complete
    assert take_inventory(dataset, 1).complete
    assert not take_inventory(dataset, 1464).complete


def test_official_counts():
    for kind, options, classes, count in (
        ("voc", {}, VOC_CLASSES, 1464),
        ("voc", {"ids": "train_aug"}, VOC_CLASSES, 10582),
        ("voc", {"ids": "lists/val.txt"}, VOC_CLASSES, 1449),
        ("voc", {"ids": "mine"}, VOC_CLASSES, None),
        ("voc", {}, ("cat",), None),
        ("coco", {}, COCO_CLASSES, 82783),
        ("coco", {"split": "val2014"}, COCO_CLASSES, 40504),
        ("coco", {"ids": "train14.txt"}, COCO_CLASSES, 82783),
        ("coco", {"ids": "mine.txt"}, COCO_CLASSES, None),
        ("folder", {}, VOC_CLASSES, None),
    ):
        assert expected_images(kind, options, classes) == count


def run(root, *arguments):
    (root / "c.yaml").write_text(
        f"name: t\ndata: {{kind: folder, root: {root}, options: {{masks: masks}}}}\nrun: {root}/run\n"
        "backbone: resnet18\nweights: null\n"
    )
    return typer_testing.CliRunner().invoke(app, ["check-data", str(root / "c.yaml"), *arguments])


def test_check_data_says_what_a_run_would_train_on(root):
    (root / "labels.csv").write_text("id,cat,[red]dog\na,1,0\nb,0,1\n")
    found = run(root, "--masks")
    assert found.exit_code == 1  # b has no mask
    write_mask(root / "masks" / "b.png", np.full((4, 6), 2))
    found = run(root, "--masks")
    assert found.exit_code == 0, found.output
    assert "a run would train on 2 images of 2 classes, with backbone resnet18 on device auto" in found.output
    assert "[red]dog" in found.output  # a name is text, never markup


@pytest.mark.parametrize(
    ("labels", "arguments", "expected"),
    [
        ("id,cat\na,1\nb,1\nghost,1\n", (), "labels of images that do not exist: 1 id ('ghost')"),
        ("id,cat\na,1\nb,1\n", (), "images in subfolders, which are not read: 1 id ('more/d.png')"),
        ("id,cat\na,1\nb,1\n", (), "files of formats that are not read: 1 id ('e.heic')"),
        ("id,cat\na,1\nb,1\nf,1\n", (), "f.jpg: is an empty file"),
        ("id,cat\na,1\nb,1\ng,1\n", (), "g.jpg: is a JPEG image that is truncated"),
        ("id,cat,dog\na,1,0\nb,1,0\n", (), "class 'dog' has no image"),
        ("id,Cat,cat\na,1,0\nb,0,1\n", (), "classes 'Cat' and 'cat' differ only in case or blanks"),
        ("id,cat,dog\na,0,1\nb,1,0\n", ("--masks",), "the mask of 'a' shows cat, which the image's labels lack"),
        ("id,cat\na,1\nb,1\n", ("--set", "device=cuda"), "PyTorch sees no CUDA device"),
        ("id,cat\na,1\nb,1\n", ("--set", "backbone=resnet_50"), "backbone 'resnet_50' is not one of"),
        ("id,cat\na,1\nb,1\n", ("--set", "weights=nosuch.pth"), "nosuch.pth does not exist"),
        ("id,cat\na,1\nb,1\n", ("--set", "workers=250"), "workers is 250, expected at most"),
    ],
)
def test_check_data_names_what_is_doubtful(root, monkeypatch, labels, arguments, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (root / "labels.csv").write_text(labels)
    if "subfolders" in expected:
        (root / "images" / "more").mkdir()
        Image.new("RGB", (6, 4)).save(root / "images" / "more" / "d.png")
    if "formats" in expected:
        (root / "images" / "e.heic").write_bytes(b"x")
    for id, data in (("f", b""), ("g", b"\xff\xd8\xff\xe0\0\x10JFIF")):
        if f"{id}.jpg" in expected:
            (root / "images" / f"{id}.jpg").write_bytes(data)
            assert run(root, "--no-open").exit_code == 0
    found = run(root, *arguments)
    assert expected in found.output.replace("\n", " "), found.output
    assert found.exit_code == 1


def test_build_labels_and_check_masks_read_binary_masks(root):
    invoke = typer_testing.CliRunner().invoke
    (root / "classes.txt").write_text("cat\n")
    (root / "labels.csv").write_text("id,cat\na,1\nb,0\n")
    for id, value in (("a", 255), ("b", 0)):
        write_mask(root / "binary" / f"{id}.png", np.array([[0, value]] * 2).repeat(3, 1).repeat(2, 0))
    build = ["build-labels", str(root / "binary"), str(root / "l.csv"), "--classes", str(root / "classes.txt")]
    assert "set foreground to 255" in str(invoke(app, build).exception)
    assert not (root / "l.csv").exists()
    found = invoke(app, [*build, "--foreground", "255"])
    assert "2 images, 1 class: cat 1 (1 with none)" in found.output.replace("\n", " ")
    assert (root / "l.csv").read_text() == "id,cat\na,1\nb,0\n"
    assert run(root).exit_code == 0
    check = ["check-masks", str(root / "c.yaml"), str(root / "binary")]
    assert "set foreground to 255" in str(invoke(app, check).exception)
    assert "2 masks" in invoke(app, [*check, "--foreground", "255"]).output
