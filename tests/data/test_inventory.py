"""Counting a data set, and listing what it lacks."""

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from amn_fast.data import open_dataset
from amn_fast.data.coco import COCO_CLASSES
from amn_fast.data.inventory import expected_pictures, take_inventory
from amn_fast.data.masks import write_mask
from amn_fast.data.voc import VOC_CLASSES


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "images").mkdir()
    for id in ("a", "b"):
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{id}.png")
    write_mask(tmp_path / "masks" / "a.png", np.full((4, 6), 1))
    (tmp_path / "labels.csv").write_text("id,cat,dog\na,1,1\nc,1,0\n")
    (tmp_path / "ids.txt").write_text("a\nb\nc\n")
    return open_dataset("folder", tmp_path, masks="masks", ids="ids.txt")


def test_what_is_missing_is_listed(dataset):
    found = take_inventory(dataset, masks=True)
    assert found.pictures == 3
    assert found.positives == {"cat": 2, "dog": 1}
    assert found.missing == {"image": ["c"], "labels": ["b"], "mask": ["b", "c"]}
    assert not found.complete


def test_a_count_that_is_not_the_official_one_is_not_complete(dataset):
    dataset.ids = ("a",)
    assert take_inventory(dataset, masks=True).complete
    assert take_inventory(dataset, 1, masks=True).complete
    assert not take_inventory(dataset, 1464, masks=True).complete


@pytest.mark.parametrize(
    ("kind", "options", "classes", "count"),
    [
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
    ],
)
def test_official_counts(kind, options, classes, count):
    assert expected_pictures(kind, options, classes) == count
