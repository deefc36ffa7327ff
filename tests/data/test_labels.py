"""Label files and annotations give one vector an image, joined by id; mistakes in them are named."""

import json
import pickle

import numpy as np
import pytest

pytest.importorskip("PIL")

from amn_fast.data.labels import describe_labels, join, open_labels, read_classes, write_labels
from amn_fast.data.masks import write_mask
from amn_fast.errors import InputError

CLASSES = ("cat", "traffic light", "person")


def put(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def as_lists(labels):
    return {id: labels[id].astype(int).tolist() for id in labels}


def test_label_files_survive_the_round_trip(tmp_path):
    rows = {"2007_000032": [1, 0, 1], "a b.c": [0, 1, 0], "quote\",'": [0, 0, 0], "000000000009": [1, 1, 1]}
    for name in ("labels.csv", "labels.json"):
        write_labels(tmp_path / name, {id: np.array(row, bool) for id, row in rows.items()}, CLASSES, rows)
        read = open_labels(tmp_path / name)
        assert (read.classes, as_lists(read)) == (CLASSES, rows)
        assert all(read[id].dtype == bool for id in read)
    assert (tmp_path / "labels.csv").read_text().startswith("id,cat,traffic light,person\n2007_000032,1,0,1\n")
    for name, classes in (("l.csv", ("Labels",)), ("l.txt", CLASSES), ("l.json", ("cat", "cat"))):
        with pytest.raises(InputError, match=name):  # it could not be read back
            write_labels(tmp_path / name, {}, classes, [])
    assert len(list(tmp_path.iterdir())) == 2


TABLES = {  # every file says: a shows cat and person, b nothing, c traffic light
    "wide.csv": "id,cat,traffic light,person\na,1,0,1\nb,0,0,0\nc,0,1,0\n",
    "spreadsheet.csv": "\ufeffID,person,traffic light,cat\r\n\r\na, 1,0,1\r\n,,,\r\nb,0,0,0\r\nc,0,1,0\r\n",
    "wide-semicolons.csv": "Filename;cat;traffic light;person\na;1;0;1\nb;0;0;0\nc;0;1;0\n",
    "wide.tsv": "image\tcat\ttraffic light\tperson\na\t1\t0\t1\nb\t0\t0\t0\nc\t0\t1\t0\n",
    "long.csv": "Id,Labels\na,cat; person\nb,\nc,traffic light\n",
    "bars.csv": "id,labels\na,cat|person\nb,\nc,traffic light\n",
    "tabs.csv": "id,labels\na,cat\tperson\nb,\nc,traffic light\n",
    "quoted.csv": 'file_name,classes\na,"cat, person"\nb,""\nc,traffic light\n',
    "columns.csv": "id,labels\na,cat,person\nb\nc,traffic light,\n",
    "semicolons.csv": "id;labels\na;cat|person\nb;\nc;traffic light\n",
    "long.txt": "id\tlabels\na\tcat;person\nb\t\nc\ttraffic light\n",
    "barred.csv": "id|label\na|cat\na|person\nb|\nc|traffic light\n",
    "rows.csv": "filename,label\na,cat\na,person\na,cat\nb,\nc,traffic light\n",
    "names.json": '{"a": ["person", "cat"], "b": [], "c": ["traffic light"]}',
    "full.json": '{"classes": ["cat", "traffic light", "person"], "labels": '
    '{"a": ["person", "cat"], "b": [], "c": ["traffic light"]}}',
}  # fmt: skip


def test_every_form_of_a_label_file_says_the_same(tmp_path):
    for name, text in TABLES.items():
        path = put(tmp_path / name, text)
        assert as_lists(open_labels(path, CLASSES)) == {"a": [1, 0, 1], "b": [0, 0, 0], "c": [0, 1, 0]}, name
        assert set(open_labels(path).classes) == set(CLASSES), name
    found = describe_labels(open_labels(tmp_path / "wide.csv"))
    assert found == "3 images, 3 classes: cat 1, traffic light 1, person 1 (1 with several, 1 with none)"
    for key in ("classes", "labels", "annotations"):  # ids may be called like the keys of the format
        path = put(tmp_path / "l.json", json.dumps({key: ["cat"], "other": []}))
        assert as_lists(open_labels(path, CLASSES)) == {key: [1, 0, 0], "other": [0, 0, 0]}


def test_mistakes_are_named(tmp_path):
    for name, text, message in [
        ("l.csv", "id,labels\n7,cat;unicorn\n", r"'7' has the unknown class 'unicorn'; the classes are cat, "),
        ("l.csv", "id,labels\n7,Cat\n", r"'7' has the unknown class 'Cat'; the classes have 'cat'"),
        ("l.csv", "id,cat,unicorn\n7,0,1\n", r"'7' has the unknown class 'unicorn'"),
        ("l.json", '{"7": ["unicorn"]}', r"'7' has the unknown class 'unicorn'"),
        ("l.csv", "id,cat\n7,1\n,1\n", r"row 3 has no id"),
        ("l.csv", "id,cat\n7,2\n", r"'7' has the value '2', expected 0 or 1"),
        ("l.csv", "id,cat\n7,1\n7,0\n", r"the id '7' is a duplicate, with the labels \(cat\) and \(no class\)"),
        ("l.csv", "id,labels\n7,cat\n7,person\n", r"the id '7' is a duplicate, with the labels \(cat\) and \(person\)"),
        ("l.csv", "id,cat,cat\n7,1,0\n", r"the class 'cat' is a duplicate"),
        ("l.csv", "id,cat\ncaf\u00e9,1\ncafe\u0301,0\n", r"differ only in their Unicode form"),
        ("l.csv", "id,cat,person\n7,1\n", r"the line of '7' has 1 values, expected 2"),
        ("l.csv", 'id,cat\n"7', r"the line of '7' has 0 values"),
        ("l.csv", "7,1\n", r"is text that begins with '7,1\\n'; the first line of a label file has to be"),
        ("l.csv", "", r"is an empty file; the first line"),
        ("l.csv", "<html><p>404</p></html>", r"is an HTML page; the first line"),
        ("l.csv", '{"a": ["cat"]}', r"is JSON; the first line"),
        ("l.csv", b"\x89PNG\r\n\x1a\n", r"is a PNG image, expected UTF-8 text"),
        ("l.csv", "id,cat\n7,1\n".encode("utf-16"), r"is UTF-16 text, expected UTF-8 text"),
        ("l.csv", f"id,labels\n7,{'x' * 200_000}\n", r"has a cell of more than 131072 characters"),
        ("l.json", "{", r"is not JSON: line 1, column 2 is damaged"),
        ("l.json", "<html></html>", r"is an HTML page, expected JSON"),
        ("l.json", "[" * 100_000, r"is JSON that is nested too deeply"),
        ("l.json", "[1]", r"is a JSON list; expected"),
        ("l.json", '{"7": 3}', r"is JSON with the keys '7', where '7' is a JSON number; expected"),
        ("l.json", '{"7": [3]}', r"the label of '7' is a list of other things than class names"),
        ("l.json", '{"version": "5.0", "shapes": []}', r"JSON with the keys 'version', 'shapes', where 'version' is"),
        ("l.json", '{"7": ["cat"], "7": ["person"]}', r"the key '7' is a duplicate, with the values \[\"cat\"\] and"),
        ("l.json", '{"7": ' + "9" * 5000 + "}", r"holds a number of thousands of digits"),
        ("l.md", "7 cat", r"is text that begins with '7 cat', no source of labels"),
        ("l.dat", None, r"is missing, no source of labels"),
        ("l.csv", None, r"there is no such file"),
        ("l.json", None, r"there is no such file"),
        ("l.npy", None, r"there is no such file"),
    ]:
        path = tmp_path / name
        path.unlink(missing_ok=True)
        if text is not None:
            put(path, text)
        with pytest.raises(InputError, match=rf"{name}: .*{message}") as caught:
            open_labels(path, CLASSES)
        assert "\n" not in str(caught.value)


def test_legacy_vectors(tmp_path):
    path = tmp_path / "l.npy"
    np.save(path, {2007000032: np.array([1, 0, 0], np.float32), 9: np.zeros(3, np.float32)})
    assert as_lists(open_labels(path, CLASSES)) == {"2007000032": [1, 0, 0], "9": [0, 0, 0]}
    for value, classes, message in (
        ({7: np.zeros(3)}, None, "holds no class names"),
        ({7: np.zeros(3)}, CLASSES[:2], r"the label of '7' has shape \(3,\), expected one value for each of 2 classes"),
        ({7: np.array([0.5, 0, 0])}, CLASSES, "the label of '7' has values other than 0 and 1"),
        ({7: {}}, CLASSES, "the label of '7' has type dict"),
        ({7: np.zeros(3), "7": np.ones(3)}, CLASSES, "the id '7' is a duplicate, as text and as a number"),
        ({10**5000: np.zeros(3)}, CLASSES, "an id is a int, expected text or a number of at most 18 digits"),
        ([1], CLASSES, "holds a list, expected a dictionary"),
    ):
        array = np.empty((), object)
        array[()] = value
        np.save(path, array)
        with pytest.raises(InputError, match=rf"l\.npy: {message}"):
            open_labels(path, classes)
    ids = ["2007_000032", "000000000009"]
    written = {id: np.array([n == 0, True]) for n, id in enumerate(ids)}
    write_labels(path, written, ("cat", "cup"), ids)
    read = open_labels(path, ("cat", "cup"))
    assert {id: read[key].tolist() for id, key in join(read, ids).items()} == {
        id: vector.tolist() for id, vector in written.items()
    }
    assert np.load(path, allow_pickle=True).item()[2007000032].dtype == np.float32
    for ids, message in ((("a cat",), "'a cat' is no number"), (("1_0", "10"), "'10' stands for 10, as another id")):
        with pytest.raises(InputError, match=message):
            write_labels(tmp_path / "no.npy", {id: np.array([True]) for id in ids}, ("cat",), ids)
    assert not (tmp_path / "no.npy").exists()


OBJECT = "<object><name>{}</name><difficult>1</difficult><part><name>head</name></part></object>"


def test_labels_from_annotations(tmp_path):
    for text, expected in [
        (f"<annotation>{OBJECT.format('cat')}</annotation>", [1, 0, 0]),
        (f'<annotation xmlns="http://x/voc">{OBJECT.format("cat")}</annotation>', [1, 0, 0]),
        ("<annotation><filename>y.jpg</filename></annotation>", [0, 0, 0]),
        (f"<annotation>{OBJECT.format('unicorn')}</annotation>", "'y' has the unknown class 'unicorn'"),
        ("<annotation><object/></annotation>", "object 1 has no name"),
        ("<annotation><object>", r"is damaged at line 1, column 21"),
        ('<?xml version="1.0"?><annotations><image/></annotations>', r"is XML with the root <annotations>, expected"),
        ("<html><body>404</body></html>", "is an HTML page, expected a VOC annotation with the root <annotation>"),
        ("<!DOCTYPE a [<!ENTITY x 'y'>]><annotation/>", "declares entities, which is refused"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "in an encoding that is not read, expected UTF-8"),
        ('{"a": 1}', "is JSON, expected XML"),
        ("", "is an empty file, expected XML"),
    ]:
        put(tmp_path / "y.xml", text)
        put(tmp_path / "._y.xml", b"\0\5\26\7\0\2\0\0Mac OS X")
        if isinstance(expected, list):
            assert as_lists(open_labels(tmp_path, CLASSES)) == {"y": expected}
            continue
        with pytest.raises(InputError, match=rf"y\.xml: .*{expected}"):
            open_labels(tmp_path, CLASSES)["y"]


def test_labels_from_masks(tmp_path):
    write_mask(tmp_path / "x.png", np.array([[0, 1], [255, 3]]))
    write_mask(tmp_path / "y.png", np.array([[0, 255]]))
    (tmp_path / "._x.png").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    labels = pickle.loads(pickle.dumps(open_labels(tmp_path, CLASSES)))  # as worker processes get them
    assert as_lists(labels) == {"x": [1, 0, 1], "y": [0, 0, 0]}
    with pytest.raises(InputError, match=r"expected a file of them.*--classes FILE"):
        open_labels(tmp_path)
    write_mask(tmp_path / "y.png", np.array([[0, 4]]))
    with pytest.raises(InputError, match=r"y\.png: holds the unknown ids 4"):
        open_labels(tmp_path, CLASSES)["y"]
    for id in "xy":
        write_mask(tmp_path / f"{id}.png", np.array([[0, 255]]))
    with pytest.raises(InputError, match=r"all 2 masks hold only 0 and 255, .* set foreground to 255"):
        open_labels(tmp_path, ("cat",))
    assert as_lists(open_labels(tmp_path, ("cat",), foreground=255)) == {"x": [1], "y": [1]}
    with pytest.raises(InputError, match="foreground is 255, which is for masks of one class, but there are 3"):
        open_labels(tmp_path, CLASSES, foreground=255)


def test_keys_join_ids():
    for keys, ids, expected in [
        (["2007000032", "9", "x_1"], ("2007_000032", "000000000009", "x_1"), ["2007000032", "9", "x_1"]),
        (["1_0", "10"], ("1_0", "10"), ["1_0", "10"]),  # exact names go before numbers
        (["a.jpg", "s/b.PNG", "d\\e.bmp"], ("a", "b", "e"), ["a.jpg", "s/b.PNG", "d\\e.bmp"]),
        (["a.jpg", "a"], ("a.jpg", "a"), ["a.jpg", "a"]),
        (["x1", "1", "9" * 5000], ("2", "1x"), []),
        (["0" * 5000 + "7"], ("7",), ["0" * 5000 + "7"]),
        (["10"], ("1_0", "01_0"), "the name '10' fits two images, '1_0' and '01_0'"),
        (["10", "010"], ("1_0",), "two names mean the image '10': '010' and '10'"),
        (["a.jpg", "a.png"], ("a",), "two names mean the image 'a': 'a.jpg' and 'a.png'"),
    ]:
        if isinstance(expected, str):
            with pytest.raises(InputError, match=expected):
                join(keys, ids)
            continue
        joined = join(keys, ids)
        assert [joined[id] for id in ids if id in joined] == expected


def test_class_lists(tmp_path):
    path = put(tmp_path / "classes.txt", "\ufeffbackground\r\ncat\r\n\r\n traffic light \r\nperson")
    assert read_classes(path) == CLASSES
    assert read_classes(put(path, "__background__\ncat\n")) == ("cat",)
    assert read_classes(put(path, "cafe\u0301\n")) == ("caf\u00e9",)
    assert len(read_classes(put(path, "\n".join(f"c{i}" for i in range(254))))) == 254
    for text in ("", "background\n", "cat\ncat\n", "cat\nbackground\n", "\n".join(map(str, range(255)))):
        with pytest.raises(InputError, match=r"classes\.txt"):
            read_classes(put(path, text))
