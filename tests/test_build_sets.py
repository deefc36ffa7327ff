"""docs/experiments/build_sets.py: the two small real sets, from small archives in the public ones' layout.

And derive_sets.py beside it: smaller images, and COCO's layout.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="data sets need the pipeline extra")

from PIL import Image

from amn_fast.data import open_dataset
from amn_fast.data.image import read_mask
from amn_fast.data.masks import voc_palette, write_mask

SCRIPT = Path(__file__).parents[1] / "docs" / "experiments" / "build_sets.py"
LISTS = {path.stem: path.read_text().split() for path in (SCRIPT.parent / "voc6").glob("*.txt")}
SCENES = {1: 30, 2: 30, 3: 30, 10: 32, 12: 34, 15: 24, 18: 30, 20: 30}  # images of MSRC's scenes; 30 in the others
MSRC = {  # the legend of MSRC v2, and the ids in our masks: 0 background, 255 not used
    "void": (0, 0, 0, 255), "building": (128, 0, 0, 0), "grass": (0, 128, 0, 0), "tree": (128, 128, 0, 0),
    "cow": (0, 0, 128, 9), "horse": (128, 0, 128, 255), "sheep": (0, 128, 128, 13), "sky": (128, 128, 128, 0),
    "mountain": (64, 0, 0, 0), "aeroplane": (192, 0, 0, 1), "water": (64, 128, 0, 0), "face": (192, 128, 0, 12),
    "car": (64, 0, 128, 6), "bicycle": (192, 0, 128, 2), "flower": (64, 128, 128, 11), "sign": (192, 128, 128, 14),
    "bird": (0, 64, 0, 3), "book": (128, 64, 0, 5), "chair": (0, 192, 0, 8), "road": (128, 64, 128, 0),
    "cat": (0, 192, 128, 7), "dog": (128, 192, 128, 10), "body": (64, 64, 0, 12), "boat": (192, 64, 0, 4),
}  # fmt: skip


def build(*arguments: object, script: str = "build_sets.py") -> tuple[int, str]:
    command = [sys.executable, str(SCRIPT.parent / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """MSRC v2, its corrected ground truth, and VOC 2012: a pixel of each class in images of 8 x 3 and 11 x 2."""
    scipy_io = pytest.importorskip("scipy.io")
    root = tmp_path_factory.mktemp("archives")
    for name in ("msrc/Images", "msrc/GroundTruth", "cleaned", "voc/JPEGImages", "voc/SegmentationClass"):
        (root / name).mkdir(parents=True)
    colours = np.array(list(MSRC.values()), np.uint8)[:, :3].reshape(3, 8, 3)
    segments = {"newseg": np.arange(1, 25).reshape(3, 8) % 24 + 1, "newlabels": np.arange(1, 24)}  # the last is void
    for scene in range(1, 21):
        for number in range(1, SCENES.get(scene, 30) + 1):
            name = f"{scene}_{number}_s"
            Image.fromarray(colours).save(root / "msrc/Images" / f"{name}.bmp")
            Image.fromarray(colours).save(root / "msrc/GroundTruth" / f"{name}_GT.bmp")
            scipy_io.savemat(root / "cleaned" / f"{name}_GT.mat", segments)
    odd = colours.copy()
    odd[1, 1] = 9, 9, 9
    Image.fromarray(odd).save(root / "msrc/GroundTruth/4_1_s_GT.bmp")
    mask = np.array([*range(21), 255], np.uint8).reshape(2, 11)
    for name in {name for listed in LISTS.values() for name in listed}:
        Image.fromarray(voc_palette()[mask]).save(root / "voc/JPEGImages" / f"{name}.jpg")
        write_mask(root / "voc/SegmentationClass" / f"{name}.png", mask)
    return root


def test_msrc(archives, tmp_path):
    wanted = np.array(list(MSRC.values()))[:, 3].reshape(3, 8)
    for out, options in (("plain", ()), ("cleaned", ("--cleaned", archives / "cleaned"))):
        code, text = build("msrc", archives / "msrc", tmp_path / "new" / out, *options)
        assert code == 0, text
        assert text.splitlines()[-1].endswith("the masks are not those of docs/explanation/results.md")
        root = tmp_path / "new" / out
        sets = {ids: open_dataset("voc", root, ids=ids, labels="cls_labels.npy", classes="classes.txt") for ids in
                ("train", "val", "all")}  # fmt: skip
        assert [len(data.ids) for data in sets.values()] == [247, 247, 494]
        assert sets["train"].ids[:2] == ("1_8_s", "1_10_s")
        assert sets["val"].ids[0] == "1_9_s"
        assert [len(set(data.ids)) for data in sets.values()] == [247, 247, 494]
        data = sets["all"]
        assert data.classes == tuple((root / "classes.txt").read_text().split()[1:])
        found = data.ground_truth("1_8_s")
        np.testing.assert_array_equal(found, np.roll(wanted, -2) if options else wanted)
        assert {data.classes[id - 1] for id in set(found.ravel().tolist()) - {0, 255}} == set(data.classes)
        assert data.labels("1_8_s").all()
        assert data.image("1_8_s").shape == (3, 8, 3)
    assert "4_1_s_GT.bmp: 1 pixels have a colour outside MSRC's legend and become 255" in build(
        "msrc", archives / "msrc", tmp_path / "again"
    )[1]  # fmt: skip
    assert read_mask(tmp_path / "again/SegmentationClass/4_1_s.png")[1, 1] == 255


def test_voc6(archives, tmp_path):
    code, text = build("voc6", archives / "voc", tmp_path / "voc6")
    assert code == 0, text
    options = {"masks": "SegmentationClass6", "labels": "cls_labels6.npy", "classes": "classes6.txt"}
    for ids, count in {"train": 437, "val": 200, "train_mini": 76, "val_mini": 75}.items():
        data = open_dataset("voc", tmp_path / "voc6", ids=ids, **options)
        assert (len(data.ids), data.classes) == (count, ("cat", "cow", "dog", "horse", "person", "sheep"))
    wanted = np.full(22, 255)
    wanted[[0, 8, 10, 12, 13, 15, 17]] = range(7)
    np.testing.assert_array_equal(data.ground_truth(data.ids[0]).ravel(), wanted)
    assert data.labels(data.ids[0]).all()
    image = f"JPEGImages/{data.ids[0]}.jpg"
    assert (tmp_path / "voc6" / image).read_bytes() == (archives / "voc" / image).read_bytes()


def test_what_cannot_be_built_leaves_nothing(archives, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    for arguments, message in (
        (("msrc", archives / "msrc", kept), f"{kept}: exists and is kept; choose a new folder"),
        (("msrc", archives / "voc", tmp_path / "a"), "494 of the files needed are missing: 1_8_s.bmp, 1_9_s.bmp"),
        (("voc6", archives / "msrc", tmp_path / "a"), "637 of the files needed are missing: 2007_000063.jpg"),
        (("voc6", archives / "voc", tmp_path / "a", "--cleaned", kept), "--cleaned belongs to msrc"),
    ):
        code, text = build(*arguments)
        assert (code, message in text) == (1, True), text
    assert list(tmp_path.iterdir()) == [kept]


def test_derived_sets(tmp_path):
    """A thing in two parts, a thing inside it, stuff, unlabelled pixels and a photograph without a thing."""
    things = np.zeros((40, 60), np.uint8)
    things[:, 5:20], things[10:20, 8:12], things[:, 30:40], things[30:, 45:] = 18, 1, 200, 18
    for number, ids in ((7, things), (12, np.where(things == 200, 200, 0))):
        for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "set" / folder / f"{number:012d}.{suffix}")
    (tmp_path / "set/categories.json").write_text(json.dumps({"1": ["person", 1], "18": ["dog", 1], "200": ["rug", 0]}))

    code, text = build("coco", tmp_path / "set", tmp_path / "coco", script="derive_sets.py")
    assert code == 0, text
    data = open_dataset("coco", tmp_path / "coco", split="train2017")
    assert (data.ids, data.classes) == (("000000000007", "000000000012"), ("person", "dog"))
    wanted = np.select([things == 1, things == 18], [1, 2], 0)
    np.testing.assert_array_equal(data.ground_truth("000000000007"), wanted)
    assert [data.labels(id).tolist() for id in data.ids] == [[True, True], [False, False]]

    code, text = build("smaller", tmp_path / "set", tmp_path / "half", "--long-side", 30, script="derive_sets.py")
    assert code == 0, text
    mask = read_mask(tmp_path / "half/SegmentationClass/000000000007.png")
    np.testing.assert_array_equal(mask, things[1::2, 1::2])
    with Image.open(tmp_path / "half/JPEGImages/000000000007.jpg") as image:
        assert image.size == (30, 20)
    code, text = build("smaller", tmp_path / "set", tmp_path / "half", script="derive_sets.py")
    assert (code, text.strip()) == (1, f"{tmp_path / 'half'} exists, expected a new folder")
