"""COCO's instances become labels and semantic masks: smaller objects on top, crowds 255."""

import json
import pickle

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("faster_coco_eval")
from faster_coco_eval.core import mask as coder
from PIL import Image

from amn_fast.data import open_dataset, require_complete
from amn_fast.data.coco import COCO_CLASSES
from amn_fast.data.labels import open_labels
from amn_fast.errors import InputError

HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}]


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(region, compressed):
    if compressed:
        code = coder.encode(np.asfortranarray(region.astype(np.uint8)))
        return {"size": code["size"], "counts": code["counts"].decode()}
    flat = region.T.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def entry(image, category, segmentation, iscrowd=0):
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": iscrowd}


def instances(annotations, numbers=(9, 57870), split="train2014"):
    images = [
        {"id": number, "file_name": f"COCO_{split}_{number:012d}.jpg", "height": HEIGHT, "width": WIDTH}
        for number in numbers
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write(root, annotations=(), split="train2014", numbers=(9, 57870)):
    value = instances(list(annotations), numbers, split)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(value))
    (root / split).mkdir(exist_ok=True)
    for image in value["images"]:
        Image.new("L", (WIDTH, HEIGHT)).save(root / split / image["file_name"])
    return root


def test_the_classes_are_the_80():
    assert len(set(COCO_CLASSES)) == 80
    assert COCO_CLASSES[0] == "person"
    assert COCO_CLASSES[11] == "stop sign"
    assert COCO_CLASSES[79] == "toothbrush"


def test_labels_and_classes_in_the_order_of_category_ids(tmp_path):
    write(tmp_path, [entry(9, 90, box(1, 1, 5, 5)), entry(9, 1, box(1, 1, 9, 9)), entry(9, 1, box(2, 2, 4, 4))])
    dataset = open_dataset("coco", tmp_path)
    require_complete(dataset)
    assert dataset.classes == ("person", "stop sign", "toothbrush")
    assert dataset.ids == ("000000000009", "000000057870")
    assert dataset.labels("000000000009").tolist() == [True, False, True]
    assert dataset.labels("000000057870").tolist() == [False] * 3
    assert dataset.image("000000000009").shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(dataset.truth("000000057870"), np.zeros((HEIGHT, WIDTH)))


def test_the_split_is_in_the_path(tmp_path):
    write(tmp_path, split="train2014")
    write(tmp_path, split="val2014", numbers=(42,))
    assert open_dataset("coco", tmp_path, split="val2014").ids == ("000000000042",)
    require_complete(open_dataset("coco", tmp_path, split="val2014"))
    with pytest.raises(InputError, match="instances_test2014"):
        open_dataset("coco", tmp_path, split="test2014")


@pytest.mark.parametrize("order", [1, -1])
def test_smaller_objects_lie_on_larger_ones_whatever_their_order(tmp_path, order):
    objects = [entry(9, 1, box(2, 2, 20, 18)), entry(9, 90, box(5, 5, 10, 10)), entry(9, 13, box(7, 7, 9, 9))]
    write(tmp_path, objects[::order])
    mask = open_dataset("coco", tmp_path).truth("000000000009")
    assert mask.dtype == np.uint8
    assert mask.shape == (HEIGHT, WIDTH)
    assert [mask[0, 0], mask[3, 3], mask[6, 6], mask[8, 8]] == [0, 1, 3, 2]
    assert np.count_nonzero(mask) == 18 * 16


def test_crowds_are_unknown_below_every_object(tmp_path):
    region = np.zeros((HEIGHT, WIDTH), bool)
    region[4:9, 4:9] = True
    write(tmp_path, [entry(9, 1, runs(region, False), iscrowd=1), entry(9, 13, box(0, 0, 7, 7))])
    dataset = open_dataset("coco", tmp_path)
    mask = dataset.truth("000000000009")
    assert [mask[5, 5], mask[8, 8], mask[12, 12]] == [2, 255, 0]
    assert dataset.labels("000000000009").tolist() == [True, True, False]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_run_length_codes(tmp_path, compressed, first):
    region = np.random.default_rng(3).random((HEIGHT, WIDTH)) < 0.4
    region[0, 0] = first
    write(tmp_path, [entry(9, 13, runs(region, compressed))])
    np.testing.assert_array_equal(open_dataset("coco", tmp_path).truth("000000000009"), 2 * region)


def test_an_object_of_several_polygons(tmp_path):
    write(tmp_path, [entry(9, 1, box(1, 1, 3, 3) + box(10, 10, 14, 12)), entry(9, 13, [])])
    mask = open_dataset("coco", tmp_path).truth("000000000009")
    assert np.count_nonzero(mask) == 4 + 8
    assert mask.max() == 1


@pytest.mark.parametrize(
    "code",
    [
        [[1, 2, 3]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [1, 2, 3, 4, 5, 6],
        ["abc"],
        {"size": [HEIGHT, WIDTH], "counts": [5, 5]},
        {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH + 5, -5]},
        {"size": [HEIGHT, WIDTH], "counts": "zzzzzz"},
        {"size": [HEIGHT, WIDTH], "counts": ""},
        {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]},
        {"counts": [HEIGHT * WIDTH]},
        None,
        "text",
    ],
    ids=str,
)
def test_damaged_outlines_name_file_and_picture(tmp_path, code):
    write(tmp_path, [entry(9, 1, code)])
    with pytest.raises(InputError, match=r"instances_train2014\.json: an object of 000000000009"):
        open_dataset("coco", tmp_path).truth("000000000009")


@pytest.mark.parametrize(
    "form", ["000000057870", "57870", "COCO_train2014_000000057870", "x/COCO_train2014_000000057870.jpg"]
)
def test_forms_of_a_list_line(tmp_path, form):
    write(tmp_path)
    (tmp_path / "list.txt").write_text(f"{form}\r\n")
    assert open_dataset("coco", tmp_path, ids="list.txt").ids == ("000000057870",)


def test_gaps_are_listed(tmp_path):
    write(tmp_path)
    (tmp_path / "train2014" / "COCO_train2014_000000000009.jpg").unlink()
    (tmp_path / "list.txt").write_text("9\n57870\n77\n")
    dataset = open_dataset("coco", tmp_path, ids="list.txt")
    assert dataset.missing() == {"image": ["000000000009", "000000000077"], "labels": ["000000000077"]}
    assert dataset.truth("000000000077") is None


def test_a_picture_of_another_size_names_both_files(tmp_path):
    write(tmp_path)
    Image.new("L", (5, 5)).save(tmp_path / "train2014" / "COCO_train2014_000000000009.jpg")
    with pytest.raises(InputError, match=r"000000000009\.jpg: 5 x 5 pixels, but .*instances.* 30 x 20"):
        open_dataset("coco", tmp_path).truth("000000000009")


def test_labels_from_a_label_file_by_number(tmp_path):
    write(tmp_path)
    (tmp_path / "l.csv").write_text("id,toothbrush\n9,1\n57870,0\n")
    assert open_dataset("coco", tmp_path, labels="l.csv").labels("000000000009").tolist() == [False, False, True]


def test_instances_are_a_source_of_labels_for_other_layouts(tmp_path):
    write(tmp_path, [entry(9, 90, box(1, 1, 5, 5))])
    path = tmp_path / "annotations" / "instances_train2014.json"
    assert open_labels(path).classes == ("person", "stop sign", "toothbrush")
    assert open_labels(path, ("toothbrush", "cat"))["000000000009"].tolist() == [True, False]
    with pytest.raises(InputError, match=r"train2014\.json: '000000000009' has the unknown class 'toothbrush'"):
        open_labels(path, ("cat",))["000000000009"]


def test_a_data_set_travels_to_worker_processes(tmp_path):
    write(tmp_path, [entry(9, 1, box(1, 1, 9, 9))])
    dataset = pickle.loads(pickle.dumps(open_dataset("coco", tmp_path)))
    assert dataset.labels("000000000009").tolist() == [True, False, False]
    assert dataset.truth("000000000009").max() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "is no instances file"),
        ({"categories": [{"id": 1}]}, "is no instances file"),
        ({"annotations": [entry(12345, 1, [])]}, "is no instances file"),
        ({"annotations": [entry(9, 2, [])]}, "000000000009 has the unknown category 2"),
        ({"categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]}, "named twice"),
    ],
)
def test_damaged_files_are_named(tmp_path, change, message):
    write(tmp_path)
    path = tmp_path / "annotations" / "instances_train2014.json"
    path.write_text(json.dumps(instances([]) | change))
    with pytest.raises(InputError, match=rf"instances_train2014\.json.*{message}"):
        open_dataset("coco", tmp_path)
