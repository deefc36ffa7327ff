"""VOC 2012 and folders of its shape, with the list forms that go around."""

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from amn_fast.data import open_dataset, require_complete
from amn_fast.data.masks import write_mask
from amn_fast.data.voc import VOC_CLASSES, open_voc
from amn_fast.errors import InputError

IDS = ("2007_000032", "2007_000039")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()
    for id, name, label in zip(IDS, ("aeroplane", "tvmonitor"), (1, 20), strict=True):
        Image.new("RGB", (6, 4)).save(tmp_path / "JPEGImages" / f"{id}.jpg")
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            write_mask(tmp_path / folder / f"{id}.png", np.full((4, 6), label))
        text = f"<annotation><object><name>{name}</name></object></annotation>"
        (tmp_path / "Annotations" / f"{id}.xml").write_text(text)
    write_list(tmp_path, "".join(f"{id}\n" for id in IDS))
    return tmp_path


def write_list(root, text, name="train"):
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_voc_as_it_lies_on_disk(root):
    dataset = open_dataset("voc", root)
    require_complete(dataset)
    assert dataset.ids == IDS
    assert dataset.classes == VOC_CLASSES
    assert np.flatnonzero(dataset.labels(IDS[0])).tolist() == [0]
    assert np.flatnonzero(dataset.labels(IDS[1])).tolist() == [19]
    assert dataset.truth(IDS[1]).max() == 20


@pytest.mark.parametrize(
    "line",
    [
        "2007_000039",
        "2007000039",
        "2007_000039.jpg",
        "JPEGImages/2007_000039.jpg",
        "/JPEGImages/2007_000039.jpg /SegmentationClassAug/2007_000039.png",
        "/JPEGImages/2007_000039.jpg\t/SegmentationClassAug/2007_000039.png\r",
    ],
)
def test_forms_of_a_list_line(root, line):
    write_list(root, f"{line}\n")
    assert open_voc(root).ids == ("2007_000039",)


def test_ids_may_look_like_file_names_and_hold_spaces(root):
    for id in ("a b.c", "shot.jpg", "2008000001"):
        Image.new("RGB", (6, 4)).save(root / "JPEGImages" / f"{id}.jpg")
    write_list(root, "a b.c\nshot.jpg\n2008000001\n")
    assert open_voc(root).ids == ("a b.c", "shot.jpg", "2008000001")
    write_list(root, "/JPEGImages/a b.c.jpg /SegmentationClassAug/a b.c.png\n")
    assert open_voc(root).ids == ("a b.c",)


def test_an_unknown_id_in_the_list_is_listed(root):
    write_list(root, "2007_000032\n2099000001\n")
    with pytest.raises(InputError, match=r"1 id \('2099_000001'\) of 2 have no image"):
        require_complete(open_voc(root))


def test_another_list_masks_classes_and_label_source(root):
    (root / "own").mkdir()
    (root / "own" / "classes6.txt").write_text("background\ncat\ncup\n")
    np.save(root / "own" / "labels.npy", {2007000032: np.array([1, 0.0]), 2007000039: np.array([1, 1.0])})
    (root / "own" / "mine.txt").write_text("2007_000039\n")
    write_mask(root / "own" / "masks" / "2007_000039.png", np.full((4, 6), 2))
    dataset = open_voc(root, ids="own/mine.txt", masks="own/masks", labels="own/labels.npy", classes="own/classes6.txt")
    require_complete(dataset)
    assert dataset.classes == ("cat", "cup")
    assert dataset.labels("2007_000039").tolist() == [True, True]
    assert dataset.truth("2007_000039").max() == 2
    from_masks = open_voc(root, labels="SegmentationClassAug")
    assert np.flatnonzero(from_masks.labels("2007_000039")).tolist() == [19]


def test_a_set_without_ground_truth(root):
    write_list(root, "2007_000032\n", "test")
    assert open_voc(root, ids="test", masks=None).truth("2007_000032") is None


@pytest.mark.parametrize("option", ["ids", "masks", "labels", "classes"])
def test_a_missing_path_is_named(root, option):
    with pytest.raises(InputError, match="nowhere"):
        open_voc(root, **{option: "nowhere"})


def test_no_voc_at_all(tmp_path):
    with pytest.raises(InputError, match="JPEGImages: there is no such folder"):
        open_voc(tmp_path)
