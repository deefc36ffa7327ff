"""Any folder of pictures with labels is a data set; gaps are found before a run, damage where it lies."""

import pickle

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from amn_fast.data import open_dataset, require_complete
from amn_fast.data.folder import open_folder, read_ids
from amn_fast.data.masks import write_mask
from amn_fast.errors import InputError

IDS = ("2007_000032", "000000000009", "a b.c")


@pytest.fixture
def root(tmp_path):
    """Three pictures of 6 x 4 pixels with labels, and masks for two of them."""
    (tmp_path / "images").mkdir()
    for number, (id, suffix) in enumerate(zip(IDS, ("jpg", "PNG", "jpeg"), strict=True)):
        Image.fromarray(np.full((4, 6, 3), 50 * number, np.uint8)).save(tmp_path / "images" / f"{id}.{suffix}")
    (tmp_path / "labels.csv").write_text("id,cat,cup\n2007_000032,1,0\n000000000009,0,0\na b.c,1,1\n")
    (tmp_path / "classes.txt").write_text("background\ncat\ncup\n")
    write_mask(tmp_path / "masks" / "2007_000032.png", np.full((4, 6), 1))
    write_mask(tmp_path / "masks" / "a b.c.png", np.full((4, 6), 2))
    return tmp_path


def test_the_protocol(root):
    dataset = open_folder(root, masks="masks")
    assert dataset.name == root.name
    assert dataset.classes == ("cat", "cup")
    assert dataset.ids == tuple(sorted(IDS))
    assert dataset.image("a b.c").shape == (4, 6, 3)
    assert dataset.labels("a b.c").tolist() == [True, True]
    assert dataset.labels("000000000009").tolist() == [False, False]
    np.testing.assert_array_equal(dataset.truth("2007_000032"), np.full((4, 6), 1))
    assert dataset.truth("000000000009") is None
    assert dataset.missing() == {"image": [], "labels": []}
    require_complete(dataset)
    assert open_folder(root).truth("a b.c") is None


def test_labels_given_out_are_the_callers_own(root):
    dataset = open_folder(root)
    dataset.labels("a b.c")[:] = False
    assert dataset.labels("a b.c").all()


def test_a_data_set_travels_to_worker_processes(root):
    dataset = pickle.loads(pickle.dumps(open_folder(root, labels="masks", masks="masks", classes="classes.txt")))
    assert dataset.labels("a b.c").tolist() == [False, True]
    assert dataset.truth("a b.c").max() == 2


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a b.c\r\n\r\n2007_000032\r\n", ("a b.c", "2007_000032")),
        ("000000000009", ("000000000009",)),
        ("\ufeff 2007_000032 \n\n\n", ("2007_000032",)),
    ],
    ids=["CRLF and blank lines", "one line", "byte-order mark"],
)
def test_lists_hold_strings(root, text, ids):
    (root / "train.txt").write_bytes(text.encode())
    dataset = open_folder(root, ids="train.txt")
    assert dataset.ids == ids
    require_complete(dataset)


def test_an_id_without_a_picture_is_listed(root):
    (root / "train.txt").write_text("2007_000032\nghost\n../etc/passwd\n")
    dataset = open_folder(root, ids="train.txt")
    assert dataset.missing()["image"] == ["ghost", "../etc/passwd"]
    with pytest.raises(InputError, match=r"2 ids \('ghost', '../etc/passwd'\) of 3 have no image"):
        require_complete(dataset)
    with pytest.raises(InputError, match="no picture of the id 'ghost'"):
        dataset.image("ghost")


def test_an_id_without_a_label_is_listed(root):
    (root / "labels.csv").write_text("id,cat,cup\n2007_000032,1,0\n")
    dataset = open_folder(root)
    assert dataset.missing() == {"image": [], "labels": ["000000000009", "a b.c"]}
    with pytest.raises(InputError, match=r"2 ids \('000000000009', 'a b.c'\) of 3 have no labels"):
        require_complete(dataset)
    with pytest.raises(InputError, match=r"no label of the id 'a b\.c'"):
        dataset.labels("a b.c")


def test_long_lists_of_gaps_are_cut(root):
    (root / "train.txt").write_text("".join(f"ghost{i}\n" for i in range(25)))
    with pytest.raises(InputError, match=r"25 ids \(.*'ghost9' and 15 more\) of 25 have no image") as caught:
        require_complete(open_folder(root, ids="train.txt"))
    assert "'ghost10'" not in str(caught.value)


def test_labels_by_number_find_their_pictures(root):
    (root / "labels.csv").write_text("id,cat,cup\n2007000032,1,0\n9,0,1\na b.c,0,0\n")
    dataset = open_folder(root)
    require_complete(dataset)
    assert dataset.labels("2007_000032").tolist() == [True, False]
    assert dataset.labels("000000000009").tolist() == [False, True]


def test_labels_from_masks(root):
    dataset = open_folder(root, labels="masks", classes="classes.txt")
    assert dataset.labels("2007_000032").tolist() == [True, False]
    assert dataset.missing()["labels"] == ["000000000009"]


def test_a_class_without_any_picture_is_no_error(root):
    (root / "classes.txt").write_text("cat\nunicorn\ncup\n")
    dataset = open_folder(root, classes="classes.txt")
    assert dataset.labels("a b.c").tolist() == [True, False, True]
    require_complete(dataset)


def test_labels_naming_an_unknown_class(root):
    (root / "classes.txt").write_text("cat\n")
    with pytest.raises(InputError, match=r"labels\.csv: 'a b\.c' has the unknown class 'cup'"):
        open_folder(root, classes="classes.txt")


def test_truth_of_another_size_names_both_files(root):
    write_mask(root / "masks" / "a b.c.png", np.zeros((6, 4), np.uint8))
    with pytest.raises(InputError, match=r"a b\.c\.png: 4 x 6 pixels, but its picture .*a b\.c\.jpeg is 6 x 4"):
        open_folder(root, masks="masks").truth("a b.c")


def test_truth_with_an_unknown_id(root):
    write_mask(root / "masks" / "a b.c.png", np.full((4, 6), 3))
    with pytest.raises(InputError, match=r"a b\.c\.png: holds the unknown ids 3, expected 0\.\.2 or 255"):
        open_folder(root, masks="masks").truth("a b.c")


def test_two_pictures_of_one_id_are_refused(root):
    Image.new("RGB", (6, 4)).save(root / "images" / "a b.c.png")
    with pytest.raises(InputError, match=r"two pictures have the id 'a b\.c'"):
        open_folder(root)


def test_other_files_beside_the_pictures_do_not_count(root):
    for name in ("readme.txt", ".hidden.jpg", "Thumbs.db"):
        (root / "images" / name).write_text("x")
    assert len(open_folder(root).ids) == 3


@pytest.mark.parametrize("option", ["images", "labels", "masks", "classes", "ids"])
def test_a_missing_path_is_named(root, option):
    with pytest.raises(InputError, match="nowhere"):
        open_folder(root, **{option: "nowhere"})


def test_a_folder_without_pictures(root):
    (root / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no pictures"):
        open_folder(root, images="empty")


@pytest.mark.parametrize(("text", "message"), [("", "holds no ids"), ("x\ny\nx\n", "'x' stands twice")])
def test_lists_without_sense(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=rf"list\.txt: .*{message}"):
        read_ids(tmp_path / "list.txt")


def test_open_dataset_by_kind(root):
    dataset = open_dataset("folder", root, masks="masks", classes="classes.txt")
    assert dataset.classes == ("cat", "cup")
    with pytest.raises(InputError, match="kind is 'imagenet', expected folder, voc, coco, demo"):
        open_dataset("imagenet", root)
    with pytest.raises(InputError, match="kind folder has no option 'split', expected images, labels"):
        open_dataset("folder", root, split="train")
