"""Folders of any layout and VOC's are data sets; gaps are found before a run, damage where it lies."""

import pickle
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from amn_fast.data import open_dataset, require_complete
from amn_fast.data.folder import open_folder, read_ids
from amn_fast.data.masks import write_mask
from amn_fast.data.voc import VOC_CLASSES, open_voc
from amn_fast.errors import InputError

IDS = ("2007_000032", "000000000009", "a b.c")
VOC_IDS = ("2007_000032", "2007_000039")


@pytest.fixture
def root(tmp_path):
    """Three images of 6 x 4 pixels with labels, and masks for two of them."""
    (tmp_path / "images").mkdir()
    for number, (id, suffix) in enumerate(zip(IDS, ("jpg", "PNG", "jpeg"), strict=True)):
        Image.fromarray(np.full((4, 6, 3), 50 * number, np.uint8)).save(tmp_path / "images" / f"{id}.{suffix}")
    (tmp_path / "labels.csv").write_text("id,cat,cup\n2007_000032,1,0\n000000000009,0,0\na b.c,1,1\n")
    (tmp_path / "classes.txt").write_text("background\ncat\ncup\n")
    write_mask(tmp_path / "masks" / "2007_000032.png", np.full((4, 6), 1))
    write_mask(tmp_path / "masks" / "a b.c.png", np.full((4, 6), 2))
    return tmp_path


@pytest.fixture
def voc(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()
    for id, name, label in zip(VOC_IDS, ("aeroplane", "tvmonitor"), (1, 20), strict=True):
        Image.new("RGB", (6, 4)).save(tmp_path / "JPEGImages" / f"{id}.jpg")
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            write_mask(tmp_path / folder / f"{id}.png", np.full((4, 6), label))
        text = f"<annotation><object><name>{name}</name></object></annotation>"
        (tmp_path / "Annotations" / f"{id}.xml").write_text(text)
    write_list(tmp_path, "".join(f"{id}\n" for id in VOC_IDS))
    return tmp_path


def write_list(root, text, name="train"):
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_importing_the_package_loads_neither_pillow_nor_torch():
    code = "import sys, amn_fast.data; sys.exit(int(any(name in sys.modules for name in ('PIL', 'torch', 'cv2'))))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_protocol(root):
    dataset = pickle.loads(pickle.dumps(open_dataset("folder", root, masks="masks")))  # as worker processes get it
    assert dataset.name == root.name
    assert dataset.classes == ("cat", "cup")
    assert dataset.ids == tuple(sorted(IDS))
    assert dataset.image("a b.c").shape == (4, 6, 3)
    assert dataset.image_file("a b.c").name == "a b.c.jpeg"
    assert dataset.labels("000000000009").tolist() == [False, False]
    dataset.labels("a b.c")[:] = False  # labels given out are the caller's own
    assert dataset.labels("a b.c").tolist() == [True, True]
    np.testing.assert_array_equal(dataset.ground_truth("2007_000032"), np.full((4, 6), 1))
    np.testing.assert_array_equal(dataset.truth("2007_000032"), np.full((4, 6), 1))
    assert dataset.truth_file("a b.c").name == "a b.c.png"
    assert dataset.ground_truth("000000000009") is None
    assert dataset.missing() == {"image": [], "labels": []}
    require_complete(dataset)
    assert open_folder(root).ground_truth("a b.c") is None
    assert open_folder(root).truth_file("a b.c") is None
    with pytest.raises(InputError, match="kind is 'imagenet', expected folder, voc, coco, demo"):
        open_dataset("imagenet", root)
    with pytest.raises(InputError, match="kind folder has no option 'split', expected images, labels"):
        open_dataset("folder", root, split="train")


def test_lists_hold_strings(root):
    for text, ids in (
        ("a b.c\r\n\r\n2007_000032\r\n", ("a b.c", "2007_000032")),
        ("000000000009", ("000000000009",)),
        ("\ufeff 2007_000032 \n\n\n", ("2007_000032",)),
        ("images/a b.c.jpeg\n2007_000032.jpg\n9\n", ("a b.c", "2007_000032", "000000000009")),
    ):
        (root / "train.txt").write_bytes(text.encode())
        dataset = open_folder(root, ids="train.txt")
        assert dataset.ids == ids
        require_complete(dataset)
    for text, message in (("", "holds no ids"), ("x\ny\nx\n", "'x' is a duplicate, in lines 1 and 3")):
        (root / "train.txt").write_text(text)
        with pytest.raises(InputError, match=rf"train\.txt: .*{message}"):
            read_ids(root / "train.txt")


def test_gaps_are_listed(root):
    (root / "train.txt").write_text("2007_000032\nghost\n../etc/passwd\n")
    (root / "labels.csv").write_text("id,cat,cup\nghost,1,0\n")
    dataset = open_folder(root, ids="train.txt")
    assert dataset.missing() == {"image": ["ghost", "../etc/passwd"], "labels": ["2007_000032", "../etc/passwd"]}
    with pytest.raises(InputError) as caught:
        require_complete(dataset)
    images, labels = (f"2 ids ({id!r}, '../etc/passwd') of 3 have no " for id in ("ghost", "2007_000032"))
    assert str(caught.value) == f"data set {root.name}: {images}image; {labels}labels"
    with pytest.raises(InputError, match="no image of the id 'ghost'"):
        dataset.image("ghost")
    with pytest.raises(InputError, match="no label of the id '2007_000032'"):
        dataset.labels("2007_000032")
    (root / "train.txt").write_text("".join(f"ghost{i}\n" for i in range(25)))
    with pytest.raises(InputError, match=r"25 ids \(.*'ghost9' and 15 more\) of 25 have no image") as caught:
        require_complete(open_folder(root, ids="train.txt"))
    assert "'ghost10'" not in str(caught.value)


def test_labels_find_their_images(root):
    for text in (
        "2007000032,1,0\n9,0,1\na b.c,0,0",
        "2007_000032.jpg,1,0\n000000000009.PNG,0,1\nimages/a b.c.jpeg,0,0",
    ):
        (root / "labels.csv").write_text(f"id,cat,cup\n{text}\n")
        dataset = open_folder(root)
        require_complete(dataset)
        assert dataset.labels("2007_000032").tolist() == [True, False]
        assert dataset.labels("000000000009").tolist() == [False, True]
    from_masks = open_folder(root, labels="masks", classes="classes.txt")
    assert from_masks.labels("2007_000032").tolist() == [True, False]
    assert from_masks.missing()["labels"] == ["000000000009"]
    (root / "classes.txt").write_text("cat\nunicorn\ncup\n")  # a class without any image is no error
    assert open_folder(root, classes="classes.txt").labels("2007_000032").tolist() == [True, False, False]
    (root / "classes.txt").write_text("cat\n")
    with pytest.raises(InputError, match=r"labels\.csv: '000000000009\.PNG' has the unknown class 'cup'"):
        open_folder(root, classes="classes.txt")


@pytest.mark.parametrize(("disk", "text"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_agree_in_any_unicode_form(root, disk, text):
    name = unicodedata.normalize(disk, "caf\u00e9")
    label = unicodedata.normalize(text, "caf\u00e9")
    Image.new("RGB", (6, 4)).save(root / "images" / f"{name}.png")
    write_mask(root / "masks" / f"{name}.png", np.full((4, 6), 2))
    (root / "labels.csv").write_text(f"id,cat,{label}\n{label},0,1\n", encoding="utf-8")
    (root / "ids.txt").write_text(label, encoding="utf-8")
    (root / "classes.txt").write_text(f"cat\n{name}\n", encoding="utf-8")
    dataset = open_folder(root, ids="ids.txt", masks="masks", classes="classes.txt")
    require_complete(dataset)
    assert dataset.ids == ("caf\u00e9",)
    assert dataset.labels("caf\u00e9").tolist() == [False, True]
    assert dataset.ground_truth("caf\u00e9").max() == 2


def test_wrong_ground_truth_is_refused(root):
    for mask, message in (
        (np.zeros((6, 4), np.uint8), r"a b\.c\.png: 4 x 6 pixels, but its image .*a b\.c\.jpeg is 6 x 4"),
        (np.full((4, 6), 3), r"a b\.c\.png: holds the unknown ids 3, expected 0\.\.2 or 255$"),
    ):
        write_mask(root / "masks" / "a b.c.png", mask)
        with pytest.raises(InputError, match=message):
            open_folder(root, masks="masks").ground_truth("a b.c")


@pytest.mark.parametrize("value", [255, 128])
def test_binary_masks_are_refused_with_a_remedy_that_helps(root, value):
    (root / "labels.csv").write_text("id,cat\n" + "".join(f"{id},1\n" for id in IDS))
    for id in IDS[::2]:
        write_mask(root / "masks" / f"{id}.png", np.where(np.arange(24).reshape(4, 6) < 9, value, 0))
    with pytest.raises(InputError, match=f"set foreground to {value}"):
        open_folder(root, masks="masks").ground_truth("a b.c")
    mask = open_folder(root, masks="masks", foreground=value).ground_truth("a b.c")
    assert [(mask == label).sum() for label in (0, 1, 255)] == [15, 9, 0]
    with pytest.raises(InputError, match="all 2 masks hold only 0 and 255" if value == 255 else "unknown ids 128"):
        open_dataset("folder", root, masks="masks", classes="classes.txt").ground_truth("a b.c")
    for wrong in (0, 256, True, "255"):
        with pytest.raises(InputError, match="foreground is"):
            open_folder(root, masks="masks", foreground=wrong)


def test_masks_that_belong_to_no_image_are_refused(root):
    for path in list((root / "masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    with pytest.raises(InputError, match=r"none of its masks, 2 ids \('2007_000032_mask', .*has the id of an image"):
        open_folder(root, masks="masks")


def test_files_beside_the_images(root):
    for name in ("readme.txt", ".hidden.jpg", "._a b.c.jpeg", "Thumbs.db", "scan.HEIC"):
        (root / "images" / name).write_text("x")
    (root / "images" / "more").mkdir()
    (root / "images" / "folder.png").mkdir()
    Image.new("RGB", (6, 4)).save(root / "images" / "more" / "z.png")
    write_mask(root / "masks" / "lonely.png", np.full((4, 6), 1))
    (root / "labels.csv").write_text("id,cat,cup\n2007000032,1,0\n9,0,1\na b.c,0,0\nghost,0,0\n")
    dataset = open_folder(root, masks="masks")
    assert len(dataset.ids) == 3
    assert dataset.strays() == {
        "labels of images that do not exist": ["ghost"],
        "images in subfolders, which are not read": ["more/z.png"],
        "files of formats that are not read": ["scan.HEIC"],
        "masks without an image": ["lonely"],
    }
    Image.new("RGB", (6, 4)).save(root / "images" / "a b.c.png")
    with pytest.raises(InputError, match=r"two images have the id 'a b\.c'"):
        open_folder(root)


def test_folders_without_images(root):
    (root / "empty" / "below").mkdir(parents=True)
    for name in ("a.heic", "below/b.jpg"):
        (root / "empty" / name).write_text("x")
    with pytest.raises(InputError, match=r"empty: holds no images .*, but 1 images in subfolders.* and 1 files"):
        open_folder(root, images="empty")
    (root / "empty" / "caf\udce9.jpg").write_text("x")
    with pytest.raises(InputError, match=r"the file name 'caf.udce9\.jpg' is not UTF-8; rename the file"):
        open_folder(root, images="empty")


def test_a_missing_path_is_named(root, voc):
    for options in ({"images": "nowhere"}, {"labels": "nowhere"}, {"masks": "nowhere"}, {"classes": "nowhere"}):
        with pytest.raises(InputError, match="nowhere"):
            open_folder(root, **options)
    for option in ("ids", "masks", "labels", "classes"):
        with pytest.raises(InputError, match="nowhere"):
            open_voc(voc, **{option: "nowhere"})
    with pytest.raises(InputError, match="JPEGImages: there is no such folder"):
        open_voc(root / "images")
    with pytest.raises(InputError, match=r"train_aug: there is no such list.* copy voc12/.*ids to train"):
        open_voc(voc, ids="train_aug")
    (voc / "SegmentationClassAug").rename(voc / "elsewhere")
    with pytest.raises(InputError, match=r"SegmentationClassAug: .* set data\.options\.masks to SegmentationClass"):
        open_voc(voc, masks="SegmentationClassAug")


def test_a_missing_data_set_is_named_with_the_remedy(tmp_path):
    for kind, end in (("folder", "data set's folder"), ("voc", "docs/guides/voc-coco.md says what to download"),
                      ("coco", "docs/guides/voc-coco.md says what to download")):  # fmt: skip
        with pytest.raises(InputError, match=f"no such folder; set data.root or --root to .*{end}$"):
            open_dataset(kind, tmp_path / "absent", **({"images": ".", "labels": "x.csv"} if kind == "folder" else {}))


def test_voc_as_it_lies_on_disk(voc):
    dataset = open_dataset("voc", voc)
    require_complete(dataset)
    assert (dataset.ids, dataset.classes) == (VOC_IDS, VOC_CLASSES)
    assert [np.flatnonzero(dataset.labels(id)).tolist() for id in VOC_IDS] == [[0], [19]]
    assert dataset.ground_truth(VOC_IDS[1]).max() == 20
    assert dataset.strays() == {"masks without an image": []}
    write_list(voc, "2007_000032\n", "test")
    assert open_voc(voc, ids="test", masks=None).ground_truth("2007_000032") is None
    from_masks = open_voc(voc, labels="SegmentationClassAug")
    assert np.flatnonzero(from_masks.labels("2007_000039")).tolist() == [19]


def test_forms_of_a_voc_list(voc):
    for line in (
        "2007_000039",
        "2007000039",
        "2007_000039.jpg",
        "JPEGImages/2007_000039.jpg",
        "/JPEGImages/2007_000039.jpg /SegmentationClassAug/2007_000039.png",
        "/JPEGImages/2007_000039.jpg\t/SegmentationClassAug/2007_000039.png\r",
    ):
        write_list(voc, f"{line}\n")
        assert open_voc(voc).ids == ("2007_000039",), line
    for id in ("a b.c", "shot.jpg", "2008000001"):
        Image.new("RGB", (6, 4)).save(voc / "JPEGImages" / f"{id}.jpg")
    write_list(voc, "a b.c\nshot.jpg\n2008000001\n")
    assert open_voc(voc).ids == ("a b.c", "shot.jpg", "2008000001")
    write_list(voc, "/JPEGImages/a b.c.jpg /SegmentationClassAug/a b.c.png\n")
    assert open_voc(voc).ids == ("a b.c",)
    write_list(voc, "2007_000032\n2099000001\n")
    with pytest.raises(InputError, match=r"1 id \('2099_000001'\) of 2 have no image"):
        require_complete(open_voc(voc))


def test_another_list_masks_classes_and_label_source(voc):
    (voc / "own").mkdir()
    (voc / "own" / "classes6.txt").write_text("background\ncat\ncup\n")
    np.save(voc / "own" / "labels.npy", {2007000032: np.array([1, 0.0]), 2007000039: np.array([1, 1.0])})
    (voc / "own" / "mine.txt").write_text("2007_000039\n")
    write_mask(voc / "own" / "masks" / "2007_000039.png", np.full((4, 6), 2))
    dataset = open_voc(voc, ids="own/mine.txt", masks="own/masks", labels="own/labels.npy", classes="own/classes6.txt")
    require_complete(dataset)
    assert dataset.classes == ("cat", "cup")
    assert dataset.labels("2007_000039").tolist() == [True, True]
    assert dataset.ground_truth("2007_000039").max() == 2
