"""COCO's instances become labels and semantic masks: smaller objects on top, crowds and boxes without outline 255."""

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
NINE, OTHER = "000000000009", "000000057870"


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(region, compressed):
    if compressed:
        code = coder.encode(np.asfortranarray(region.astype(np.uint8)))
        return {"size": code["size"], "counts": code["counts"].decode()}
    flat = region.T.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def entry(image, category, segmentation, iscrowd=0, **more):
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": iscrowd, **more}


def image(number, split="train2014", **changes):
    name = f"COCO_{split}_{number:012d}.jpg"
    return {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH, **changes}


def write(root, annotations=(), split="train2014", numbers=(9, 57870), **changes):
    images = [image(number, split) for number in numbers]
    value = {"images": images, "annotations": list(annotations), "categories": CATEGORIES, **changes}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(value))
    (root / split).mkdir(exist_ok=True)
    for entry in images:
        Image.new("L", (WIDTH, HEIGHT)).save(root / split / entry["file_name"])
    return root


def test_labels_and_classes_in_the_order_of_category_ids(tmp_path):
    assert (len(set(COCO_CLASSES)), COCO_CLASSES[0], COCO_CLASSES[79]) == (80, "person", "toothbrush")
    write(tmp_path, [entry(9, 90, box(1, 1, 5, 5)), entry(9, 1, box(1, 1, 9, 9)), entry(9, 1, box(2, 2, 4, 4))])
    write(tmp_path, split="val2014", numbers=(42,))
    dataset = pickle.loads(pickle.dumps(open_dataset("coco", tmp_path)))  # as worker processes get it
    require_complete(dataset)
    assert dataset.classes == ("person", "stop sign", "toothbrush")
    assert dataset.category_ids == {"person": 1, "stop sign": 13, "toothbrush": 90}
    assert dataset.ids == (NINE, OTHER)
    assert dataset.labels(NINE).tolist() == [True, False, True]
    assert dataset.labels(OTHER).tolist() == [False] * 3
    assert dataset.image(NINE).shape == (HEIGHT, WIDTH, 3)
    assert dataset.truth_file(NINE).name == "instances_train2014.json"
    np.testing.assert_array_equal(dataset.ground_truth(OTHER), np.zeros((HEIGHT, WIDTH)))
    require_complete(open_dataset("coco", tmp_path, split="val2014"))
    with pytest.raises(InputError, match="instances_test2014"):
        open_dataset("coco", tmp_path, split="test2014")


def test_labelmes_background_is_no_class(tmp_path):
    background = {"id": 0, "name": "_background_"}
    write(tmp_path, [entry(9, 0, []), entry(9, 1, box(1, 1, 5, 5))], categories=[background, *CATEGORIES])
    dataset = open_dataset("coco", tmp_path)
    assert dataset.classes == ("person", "stop sign", "toothbrush")
    assert np.unique(dataset.ground_truth(NINE)).tolist() == [0, 1]


def test_what_lies_on_what(tmp_path):
    """Smaller objects on larger ones whatever their order; crowds and boxes without outline below all, unknown."""
    objects = [entry(9, 1, box(2, 2, 20, 18)), entry(9, 90, box(5, 5, 10, 10)), entry(9, 13, box(7, 7, 9, 9))]
    for order in (1, -1):
        mask = open_dataset("coco", write(tmp_path, objects[::order])).ground_truth(NINE)
        assert mask.dtype == np.uint8
        assert [mask[0, 0], mask[3, 3], mask[6, 6], mask[8, 8]] == [0, 1, 3, 2]
        assert np.count_nonzero(mask) == 18 * 16
    region = np.zeros((HEIGHT, WIDTH), bool)
    region[4:9, 4:9] = True
    below = [entry(9, 1, runs(region, False), iscrowd=1), entry(9, 1, [], bbox=[4, 4, 5, 5])]
    below += [entry(9, 1, None, bbox=[3.5, 3.5, 5, 5]), {**entry(9, 1, None, bbox=[4, 4, 5, 5]), "segmentation": []}]
    for item in below:
        dataset = open_dataset("coco", write(tmp_path, [item, entry(9, 13, box(0, 0, 7, 7))]))
        mask = dataset.ground_truth(NINE)
        assert [mask[5, 5], mask[8, 8], mask[12, 12]] == [2, 255, 0]
        assert dataset.labels(NINE).tolist() == [True, True, False]
    write(tmp_path, [entry(9, 1, box(1, 1, 3, 3) + box(10, 10, 14, 12))])
    assert np.count_nonzero(open_dataset("coco", tmp_path).ground_truth(NINE)) == 4 + 8


def test_run_length_codes_decode_as_the_library_does(tmp_path):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        region = rng.random((HEIGHT, WIDTH)) < rng.random()
        region[0, 0] = seed % 2
        for compressed in (False, True):
            write(tmp_path, [entry(9, 13, runs(region, compressed))])
            np.testing.assert_array_equal(open_dataset("coco", tmp_path).ground_truth(NINE), 2 * region)


def test_damaged_outlines_name_file_annotation_and_image(tmp_path):
    for code, message in [
        ([[1, 2, 3]], "polygon 1 has 3 numbers, expected x, y of at least three corners"),
        ([[1, 2, 3, 4]], "polygon 1 has 4 numbers"),
        ([*box(0, 0, 1, 1), [1, 2, 3, 4, 5, 6, 7]], "polygon 2 has 7 numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "polygon 1 is not a list of numbers"),
        ([["5", "5", "25", "5", "25", "25"]], "polygon 1 is not a list of numbers"),
        ([1, 2, 3, 4, 5, 6], "polygon 1 is not a list of numbers"),
        ([[0, 0, 1e8, 0, 1e8, 1e8]], "polygon 1 has a corner far outside the image, 30 x 20 pixels"),
        ([[0, 0, 30, 20] * 1000], "polygon 1 is longer than 1000 times"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "has 10 pixels, expected 600"),
        ({"size": [HEIGHT, WIDTH], "counts": [0, 605, -5]}, "something other than lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": [600.0]}, "something other than lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "zzzzzz"}, "something other than lengths|pixels, expected"),
        ({"size": [HEIGHT, WIDTH], "counts": "\u00e9"}, "something other than lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "has 0 pixels, expected 600"),
        ({"size": [WIDTH, HEIGHT], "counts": [600]}, r"is for the size a JSON list, not \[20, 30\]"),
        ({"counts": [600]}, r"is for the size missing"),
        ([], r"has neither an outline nor a box"),
        (None, r"has neither an outline nor a box"),
        ("text", "segmentation is 'text', expected polygons or a run-length code"),
    ]:
        write(tmp_path, [entry(9, 1, code, id=77)])
        dataset = open_dataset("coco", tmp_path)
        where = rf"instances_train2014\.json: annotation 77 of image {NINE}"
        with pytest.raises(InputError, match=rf"{where}.*({message})") as caught:
            dataset.ground_truth(NINE)
        assert not any(word in str(caught.value) for word in ("object is not", "Unable to cast", "Traceback"))


def test_file_names_with_folders(tmp_path):
    for name in ("sub/c.jpg", "train2014/sub/c.jpg", "./sub/c.jpg", "sub\\c.jpg"):
        write(tmp_path, numbers=(), images=[image(9, file_name=name)])
        (tmp_path / "train2014" / "sub").mkdir(exist_ok=True)
        Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "train2014" / "sub" / "c.jpg")
        assert open_dataset("coco", tmp_path).image_file(NINE) == tmp_path / "train2014" / "sub" / "c.jpg", name
    for name in ("../train2014/sub/c.jpg", str(tmp_path / "train2014" / "sub" / "c.jpg")):
        write(tmp_path, numbers=(), images=[image(9, file_name=name)])
        assert open_dataset("coco", tmp_path).missing()["image"] == [NINE], name


def test_lists_gaps_and_other_label_sources(tmp_path):
    write(tmp_path)
    for form in ("000000057870", "57870", "COCO_train2014_000000057870", "x/COCO_train2014_000000057870.jpg"):
        (tmp_path / "list.txt").write_text(f"{form}\r\n")
        assert open_dataset("coco", tmp_path, ids="list.txt").ids == (OTHER,)
    (tmp_path / "l.csv").write_text("id,toothbrush\n9,1\n57870,0\n")
    assert open_dataset("coco", tmp_path, labels="l.csv").labels(NINE).tolist() == [False, False, True]
    (tmp_path / "train2014" / f"COCO_train2014_{NINE}.jpg").unlink()
    (tmp_path / "list.txt").write_text("9\n57870\n77\n" + "9" * 5000)
    dataset = open_dataset("coco", tmp_path, ids="list.txt")
    gaps = ["000000000077", "9" * 5000]
    assert dataset.missing() == {"image": [NINE, *gaps], "labels": gaps}
    assert dataset.ground_truth("000000000077") is None
    Image.new("L", (5, 5)).save(tmp_path / "train2014" / f"COCO_train2014_{NINE}.jpg")
    with pytest.raises(InputError, match=r"000000000009\.jpg: 5 x 5 pixels, but .*instances.* 30 x 20"):
        open_dataset("coco", tmp_path).ground_truth(NINE)
    write(tmp_path, [entry(9, 90, box(1, 1, 5, 5))])
    path = tmp_path / "annotations" / "instances_train2014.json"
    assert open_labels(path).classes == ("person", "stop sign", "toothbrush")
    assert open_labels(path, ("toothbrush", "cat"))[NINE].tolist() == [True, False]
    with pytest.raises(InputError, match=rf"train2014\.json: '{NINE}' has the unknown class 'toothbrush'"):
        open_labels(path, ("cat",))[NINE]


def test_damaged_files_are_named(tmp_path):
    for changes, message in [
        ({"images": None}, "is JSON with the keys 'images', .*, no instances file; expected lists of images"),
        ({"annotations": [3]}, "no instances file"),
        ({"categories": [{"id": 1}]}, "a class name is None, expected text"),
        ({"categories": [{"id": "x", "name": "x"}]}, "a category's id is 'x', expected a number"),
        ({"categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]}, "the class 'x' is a duplicate"),
        ({"categories": [{"id": 1, "name": "x"}, {"id": 1, "name": "y"}]}, "categories 'x' and 'y' have the same id 1"),
        ({"images": [image(9), image(9, file_name="b.jpg")]}, "images 'COCO.*' and 'b.jpg' have the same id"),
        ({"images": [image(8, file_name="b"), image(9, file_name="b")]}, "0008 and 0.*9 have the same file_name 'b'"),
        ({"images": [image(9, id="img_01")]}, "an image's id is 'img_01', expected a number of at most 18 digits"),
        ({"images": [image(9, id=10**30)]}, "an image's id is a number of more digits"),
        ({"images": [image(9, id=True)]}, "an image's id is True"),
        ({"images": [image(9, file_name=None)]}, f"image {NINE} has no file_name"),
        ({"images": [image(9, height="20")]}, f"height and width of image {NINE} are '20' and 30, expected integers"),
        ({"images": [image(9, height=10**9)]}, f"height and width of image {NINE} are 1000000000 and 30"),
        ({"annotations": [entry(12345, 1, [], id=3)]}, "annotation 3 belongs to image 000000012345, which"),
        ({"annotations": [entry(None, 1, [])]}, "annotation number 0: image_id is missing, expected a number"),
        ({"annotations": [entry(9, 2, [])]}, f"annotation number 0 of image {NINE} has the unknown category 2"),
        ({"annotations": [entry(9, 1, [], id=3), entry(57870, 1, [], id=3)]}, f"is a duplicate, of the images {NINE}"),
    ]:
        write(tmp_path, **changes)
        with pytest.raises(InputError, match=rf"instances_train2014\.json: .*{message}"):
            open_dataset("coco", tmp_path)
