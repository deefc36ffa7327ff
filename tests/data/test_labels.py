"""Label files and annotations give one vector a picture, joined by id; mistakes in them are named."""

import json
import pickle

import numpy as np
import pytest

pytest.importorskip("PIL")

from amn_fast.data.labels import join, open_labels, read_classes, write_labels
from amn_fast.data.masks import write_mask
from amn_fast.errors import InputError

CLASSES = ("cat", "traffic light", "person")


def put(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def as_lists(labels):
    return {id: labels[id].astype(int).tolist() for id in labels}


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_label_files_survive_the_round_trip(tmp_path, suffix):
    path = tmp_path / f"labels.{suffix}"
    rows = {"2007_000032": [1, 0, 1], "a b.c": [0, 1, 0], "quote\",'": [0, 0, 0], "000000000009": [1, 1, 1]}
    write_labels(path, {id: np.array(row, bool) for id, row in rows.items()}, CLASSES, rows)
    read = open_labels(path)
    assert read.classes == CLASSES
    assert as_lists(read) == rows
    assert all(read[id].dtype == bool for id in read)


def test_the_csv_can_be_read_by_people(tmp_path):
    write_labels(tmp_path / "l.csv", {"x": np.array([True, False, True])}, CLASSES, ["x"])
    assert (tmp_path / "l.csv").read_text() == "id,cat,traffic light,person\nx,1,0,1\n"


def test_files_as_spreadsheets_leave_them(tmp_path):
    path = put(tmp_path / "l.csv", "\ufeffID,cat,cup\r\n\r\na b.c, 1,0\r\n,,\r\n2,0,1\r\n")
    assert as_lists(open_labels(path)) == {"a b.c": [1, 0], "2": [0, 1]}


def test_lists_of_names(tmp_path):
    csv = put(tmp_path / "l.csv", "id,labels\na,cat; traffic light\nb,\n")
    assert open_labels(csv).classes == ("cat", "traffic light")
    assert as_lists(open_labels(csv, CLASSES)) == {"a": [1, 1, 0], "b": [0, 0, 0]}
    plain = put(tmp_path / "l.json", '{"a": ["person", "cat"], "b": []}')
    assert open_labels(plain).classes == ("cat", "person")
    assert as_lists(open_labels(plain, CLASSES)) == {"a": [1, 0, 1], "b": [0, 0, 0]}


def test_given_classes_set_the_order(tmp_path):
    path = put(tmp_path / "l.csv", "id,cat,person\nx,1,0\ny,0,1\n")
    assert as_lists(open_labels(path, ("person", "dog", "cat"))) == {"x": [0, 0, 1], "y": [1, 0, 0]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "id,labels\n7,cat;unicorn\n", r"l\.csv: '7' has the unknown class 'unicorn'"),
        ("l.csv", "id,cat,unicorn\n7,0,1\n", r"l\.csv: '7' has the unknown class 'unicorn'"),
        ("l.json", '{"7": ["unicorn"]}', r"l\.json: '7' has the unknown class 'unicorn'"),
        ("l.csv", "id,cat\n7,2\n", r"l\.csv: '7' has the value '2', expected 0 or 1"),
        ("l.csv", "id,cat\n7,1\n7,0\n", r"l\.csv: the id '7' stands twice"),
        ("l.csv", "id,cat,person\n7,1\n", r"l\.csv: the line of '7' has 1 values, expected 2"),
        ("l.csv", "7,1\n", r"l\.csv: the first line"),
        ("l.csv", "", r"l\.csv: the first line"),
        ("l.csv", b"id,cat\n\xff\xfe,1\n", r"l\.csv: is not UTF-8"),
        ("l.json", "{", r"l\.json: is not JSON"),
        ("l.csv", 'id,cat\n"7', r"l\.csv: the line of '7' has 0 values"),
        ("l.json", "[" * 100_000, r"l\.json: is not JSON"),
        ("l.json", "[1]", r"l\.json: has to be"),
        ("l.json", '{"7": 3}', r"l\.json: the label of '7' is 3"),
        ("l.txt", "7 cat", r"l\.txt: is no source of labels"),
    ],
)
def test_mistakes_are_named(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        open_labels(put(tmp_path / name, text), CLASSES)


@pytest.mark.parametrize("name", ["l.csv", "l.json", "l.npy"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(InputError, match=name):
        open_labels(tmp_path / name, CLASSES)


@pytest.mark.parametrize("key", ["classes", "labels"])
def test_ids_may_be_called_like_the_keys_of_the_format(tmp_path, key):
    path = put(tmp_path / "l.json", json.dumps({key: ["cat"], "other": []}))
    assert as_lists(open_labels(path, CLASSES)) == {key: [1, 0, 0], "other": [0, 0, 0]}


def test_legacy_vectors(tmp_path):
    np.save(tmp_path / "l.npy", {2007000032: np.array([1, 0, 0], np.float32), 9: np.zeros(3, np.float32)})
    assert as_lists(open_labels(tmp_path / "l.npy", CLASSES)) == {"2007000032": [1, 0, 0], "9": [0, 0, 0]}
    with pytest.raises(InputError, match=r"l\.npy: holds no class names"):
        open_labels(tmp_path / "l.npy")
    with pytest.raises(InputError, match=r"l\.npy.*2007000032.*\(3,\).*2 classes"):
        open_labels(tmp_path / "l.npy", CLASSES[:2])
    np.save(tmp_path / "l.npy", {7: np.array([0.5, 0, 0])})
    with pytest.raises(InputError, match=r"l\.npy.*7.*other than 0 and 1"):
        open_labels(tmp_path / "l.npy", CLASSES)


def test_legacy_vectors_survive_the_round_trip(tmp_path):
    ids = ["2007_000032", "000000000009"]
    written = {id: np.array([n == 0, True]) for n, id in enumerate(ids)}
    write_labels(tmp_path / "cls_labels.npy", written, ("cat", "cup"), ids)
    read = open_labels(tmp_path / "cls_labels.npy", ("cat", "cup"))
    assert {id: read[key].tolist() for id, key in join(read, ids).items()} == {
        id: vector.tolist() for id, vector in written.items()
    }
    as_published = np.load(tmp_path / "cls_labels.npy", allow_pickle=True).item()
    assert as_published[2007000032].dtype == np.float32


@pytest.mark.parametrize(
    ("ids", "message"),
    [(("a cat",), "'a cat' is no number"), (("1_0", "10"), "'10' stands for 10, as another id does")],
)
def test_legacy_vectors_need_numbers(tmp_path, ids, message):
    with pytest.raises(InputError, match=message):
        write_labels(tmp_path / "cls_labels.npy", {id: np.array([True]) for id in ids}, ("cat",), ids)
    assert not list(tmp_path.iterdir())


def test_labels_from_annotations(tmp_path):
    entry = "<object><name>{}</name><difficult>{}</difficult><part><name>head</name></part></object>"
    put(tmp_path / "x.xml", f"<annotation>{entry.format('cat', 0)}{entry.format('person', 1)}</annotation>")
    put(tmp_path / "y.xml", "<annotation><filename>y.jpg</filename></annotation>")
    assert as_lists(open_labels(tmp_path, CLASSES)) == {"x": [1, 0, 1], "y": [0, 0, 0]}
    assert open_labels(tmp_path).classes == ("cat", "person")
    put(tmp_path / "y.xml", f"<annotation>{entry.format('unicorn', 0)}</annotation>")
    with pytest.raises(InputError, match=r"y\.xml: 'y' has the unknown class 'unicorn'"):
        open_labels(tmp_path, CLASSES)["y"]
    put(tmp_path / "y.xml", "<annotation><object>")
    with pytest.raises(InputError, match=r"y\.xml: is not XML"):
        open_labels(tmp_path, CLASSES)["y"]


def test_labels_from_masks(tmp_path):
    write_mask(tmp_path / "x.png", np.array([[0, 1], [255, 3]]))
    write_mask(tmp_path / "y.png", np.array([[0, 255]]))
    assert as_lists(open_labels(tmp_path, CLASSES)) == {"x": [1, 0, 1], "y": [0, 0, 0]}
    with pytest.raises(InputError, match="names of the classes have to be given"):
        open_labels(tmp_path)
    write_mask(tmp_path / "y.png", np.array([[0, 4]]))
    with pytest.raises(InputError, match=r"y\.png: holds the unknown ids 4"):
        open_labels(tmp_path, CLASSES)["y"]


def test_label_files_can_be_built_from_any_source(tmp_path):
    (tmp_path / "masks").mkdir()
    write_mask(tmp_path / "masks" / "x.png", np.array([[0, 1], [255, 3]]))
    labels = open_labels(tmp_path / "masks", CLASSES)
    write_labels(tmp_path / "l.csv", labels, labels.classes, labels)
    assert as_lists(open_labels(tmp_path / "l.csv")) == {"x": [1, 0, 1]}


def test_labels_travel_to_worker_processes(tmp_path):
    write_mask(tmp_path / "x.png", np.array([[0, 3]]))
    assert as_lists(pickle.loads(pickle.dumps(open_labels(tmp_path, CLASSES)))) == {"x": [0, 0, 1]}


def test_numbers_join_ids():
    ids = ("2007_000032", "000000000009", "x_1")
    assert join(["2007000032", "9", "x_1"], ids) == {
        "2007_000032": "2007000032",
        "000000000009": "9",
        "x_1": "x_1",
    }


def test_exact_names_go_before_numbers():
    assert join(["1_0", "10"], ("1_0", "10")) == {"1_0": "1_0", "10": "10"}
    assert join(["x1", "1"], ("2", "1x")) == {}


def test_a_number_that_fits_two_is_refused():
    with pytest.raises(InputError, match="fits two pictures"):
        join(["10"], ("1_0", "01_0"))
    with pytest.raises(InputError, match="twice"):
        join(["10", "010"], ("1_0",))


def test_class_lists(tmp_path):
    path = put(tmp_path / "classes.txt", "\ufeffbackground\r\ncat\r\n\r\n traffic light \r\nperson")
    assert read_classes(path) == CLASSES
    assert read_classes(put(path, "cat\n")) == ("cat",)
    assert read_classes(put(path, "__background__\ncat\n")) == ("cat",)
    assert len(read_classes(put(path, "\n".join(f"c{i}" for i in range(254))))) == 254


@pytest.mark.parametrize(
    "text", ["", "background\n", "cat\ncat\n", "cat\nbackground\n", "\n".join(map(str, range(255)))]
)
def test_wrong_class_lists(tmp_path, text):
    with pytest.raises(InputError, match=r"classes\.txt"):
        read_classes(put(tmp_path / "classes.txt", text))


def test_label_files_that_could_not_be_read_back_are_not_written(tmp_path):
    for name, classes in (("l.csv", ("labels",)), ("l.txt", CLASSES), ("l.json", ("cat", "cat"))):
        with pytest.raises(InputError, match=name):
            write_labels(tmp_path / name, {}, classes, [])
    assert not list(tmp_path.iterdir())
