"""Masks to each tool's format and back, with the tools' own code as the judge."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
import yaml
from PIL import Image

from amn_fast.data.image import read_mask
from amn_fast.data.masks import voc_palette, write_mask
from amn_fast.errors import InputError
from amn_fast.review import EXPORTERS, IMPORTERS, export_masks, import_masks, open_masks
from amn_fast.review.exporting import Job
from amn_fast.review.label_studio import decode_brush, encode_brush
from amn_fast.review.objects import filled, polygons
from amn_fast.review.source import unknown_name
from amn_fast.review.voc import label_map

HERE = Path(__file__).parent
JUDGES = Path(os.environ.get("AMN_FAST_JUDGES", HERE.parents[1] / ".venv-judges/bin/python"))
NAMES = ("Cat", "cat", "hot dog", "Fußgänger, é", "[red]a[/red]", "a&b\"<c>'", "%d \\n")
CLASSES = (*NAMES, *(f"class {k}" for k in range(len(NAMES) + 1, 255)))
HOLE, UNKNOWN = "holes", "unknown"


def make_masks():
    """The cases: id -> mask. No two objects of one class touch diagonally except in `noise`."""
    y, x = np.mgrid[:40, :51]
    ring = (np.hypot(y - 20, x - 20) < 16) & (np.hypot(y - 20, x - 20) > 5)
    random = np.random.RandomState(3)
    masks = {id: np.zeros((40, 51), np.uint8) for id in (HOLE, "parts", UNKNOWN, "pixel", "lines", "empty", "é ü.1")}
    masks[HOLE][ring], masks[HOLE][18:22, 18:22], masks[HOLE][9:11, 9:29:4] = 1, 2, 3
    masks["parts"][2:9, 3:9] = masks["parts"][20:30, 30:50] = masks["parts"][39, 0] = 4
    masks[UNKNOWN][5:20, 5:20], masks[UNKNOWN][8:12, :], masks[UNKNOWN][30:, 30:] = 5, 255, 254
    masks["pixel"][7, 11], masks["pixel"][0, 50] = 6, 7
    masks["lines"][3, 4:20], masks["lines"][10:30, 9], masks["lines"][np.arange(12) + 20, np.arange(12) + 20] = 1, 2, 3
    masks["é ü.1"][:] = 2
    masks["turned"] = np.where(np.arange(30)[:, None] < np.arange(20), 3, 0).astype(np.uint8)
    masks["every"] = np.arange(256, dtype=np.uint8).reshape(8, 32).repeat(3, 0).repeat(2, 1)
    masks["noise"] = random.choice([0, 1, 2, 255], (33, 29)).astype(np.uint8)
    return masks


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """masks/, images/ (one is stored turned), classes.txt, and the same for the judges."""
    root = tmp_path_factory.mktemp("given")
    (root / "images").mkdir()
    masks = make_masks()
    for id, mask in masks.items():
        write_mask(root / "masks" / f"{id}.png", mask)
        image = Image.fromarray(np.full((*mask.shape, 3), 90, np.uint8))
        if id == "turned":
            exif = Image.Exif()
            exif[0x0112] = 6
            image.transpose(Image.Transpose.ROTATE_90).save(root / "images" / f"{id}.jpg", exif=exif)
        else:
            image.save(root / "images" / f"{id}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    (root / "classes.json").write_text(json.dumps(CLASSES))
    np.savez(root / "sizes.npz", **{id: np.array(mask.shape) for id, mask in masks.items()})
    np.savez(root / "masks.npz", **masks)
    return root


def judge(action, tool, *arguments):
    """Run judge.py with the interpreter that has the tool."""
    python, packages = JUDGES, ""
    if tool.startswith("ultralytics"):  # it needs PyTorch, which this environment has
        python, packages = Path(sys.executable), JUDGES.parents[1] / "ultralytics"
        if not packages.is_dir():
            pytest.skip("needs Ultralytics: make judges")
    elif tool == "fiftyone":  # it needs a MongoDB server; docs/tutorial/review.md says what ran
        python = Path(os.environ.get("AMN_FAST_FIFTYONE", "/nonexistent"))
    if not python.exists():
        pytest.skip(f"needs the code of {tool}: make judges, and for FiftyOne AMN_FAST_FIFTYONE=PYTHON")
    environment = os.environ | {"PYTHONPATH": str(packages)}
    command = [python, HERE / "judge.py", action, tool, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def opened(given):
    return open_masks(given / "masks", classes=given / "classes.txt", images=given / "images")


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for id, mask in expected.items():
        np.testing.assert_array_equal(found[id], mask, err_msg=id)


RESULT = {"coco": "annotations.json", "cvat": "annotations.zip", "label-studio": "tasks.json"}


@pytest.mark.parametrize("form", IMPORTERS)
@pytest.mark.parametrize("instances", [False, True])
def test_our_export_and_import(given, tmp_path, form, instances):
    expected = make_masks()
    job = export_masks(opened(given), tmp_path / "out", form, instances=instances, images=True)
    assert (job.done, job.failures) == (len(expected), {})
    path = tmp_path / "out" / RESULT.get(form, "")
    if form == "fiftyone":  # FiftyOne's own export has the masks there
        (path / "masks").rename(path / "labels")
    back = import_masks(path, tmp_path / "back", form, CLASSES, images=given / "images")
    assert (back.done, back.failures) == (len(expected), {})
    assert_same({file.stem: read_mask(file) for file in (tmp_path / "back").iterdir()}, expected)


@pytest.mark.parametrize(
    ("form", "tool"),
    [
        *((form, form) for form in ("coco", "cvat", "label-studio", "voc", "yolo-seg", "fiftyone")),
        ("yolo-seg", "ultralytics"),
        ("ultralytics-semantic", "ultralytics-semantic"),
    ],
)
def test_the_tools_read_our_masks(given, tmp_path, form, tool):
    (tmp_path / "sizes.npz").write_bytes((given / "sizes.npz").read_bytes())
    images = form in ("yolo-seg", "ultralytics-semantic", "fiftyone")
    export_masks(opened(given), tmp_path / "out", form, images=images, instances=form == "coco")
    if form == "cvat":
        (tmp_path / "out" / "sizes.npz").write_bytes((given / "sizes.npz").read_bytes())
    path = tmp_path / "out" / RESULT.get(form, "")
    judge("decode", tool, path, tmp_path / "found.npz", given / "classes.json")
    with np.load(tmp_path / "found.npz") as found:
        assert_same(dict(found), make_masks())


@pytest.mark.parametrize("form", ["coco", "cvat", "label-studio", "voc", "fiftyone"])
def test_we_read_the_tools_masks(given, tmp_path, form):
    path = tmp_path / {"cvat": "made.zip", "label-studio": "made.json"}.get(form, form)
    judge("encode", form, given / "masks.npz", path, given / "classes.json")
    if form == "coco":
        (path,) = (path / "annotations").iterdir()
    job = import_masks(path, tmp_path / "back", form, CLASSES, images=given / "images")
    assert job.failures == {}
    assert_same({file.stem: read_mask(file) for file in (tmp_path / "back").iterdir()}, make_masks())


def test_polygons_keep_every_pixel_and_the_loss_is_measured(tmp_path):
    """Random masks full of holes, lines and single pixels; then the exporter's own count, of a mask and a filler."""
    random = np.random.RandomState(0)
    for density in np.linspace(0.05, 0.98, 60):
        scale = random.randint(1, 4)
        pixels = np.kron(random.rand(*random.randint(1, 30, 2)) < density, np.ones((scale, scale))).astype(bool)
        parts = polygons(pixels)
        assert all((part >= 0).all() and (part < pixels.shape[::-1]).all() for part in parts)
        np.testing.assert_array_equal(filled(parts, pixels.shape), pixels)
    mask = random.choice([0, 0, 1, 1, 1, 2, 255], (60, 70)).astype(np.uint8)
    write_mask(tmp_path / "masks" / "a.png", mask)
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    job = export_masks(open_masks(tmp_path / "masks", classes=tmp_path / "classes.txt"), tmp_path / "out", "yolo-seg")
    assert job.notes == [f"Polygons change 0 of {np.count_nonzero(mask)} labelled pixels (0.000%)."]


def test_label_files_name_the_classes(given, tmp_path):
    """Escaping, order and the label for 255, in the files that no judge above reads."""
    for form in ("label-studio", "fiftyone", "ultralytics-semantic", "yolo-seg"):
        export_masks(opened(given), tmp_path / form, form)
    labels = ElementTree.parse(tmp_path / "label-studio" / "label_config.xml").findall("BrushLabels/Label")
    assert [label.get("value") for label in labels] == [*CLASSES, "unknown"]
    assert len({label.get("background") for label in labels}) == 255
    targets = json.loads((tmp_path / "fiftyone" / "targets.json").read_text())
    assert targets == {str(k): name for k, name in enumerate(CLASSES, 1)} | {"255": "unknown"}
    samples = [json.loads(line) for line in (tmp_path / "fiftyone" / "samples.jsonl").read_text().splitlines()]
    assert [sample["id"] for sample in samples] == sorted(make_masks())
    compile((tmp_path / "fiftyone" / "import_fiftyone.py").read_text(), "import_fiftyone.py", "exec")
    names = yaml.safe_load((tmp_path / "ultralytics-semantic" / "data.yaml").read_text(encoding="utf-8"))
    assert names["names"] == {0: "background", **dict(enumerate(CLASSES, 1))}
    assert names["masks_dir"] == "masks"
    names = yaml.safe_load((tmp_path / "yolo-seg" / "data.yaml").read_text(encoding="utf-8"))
    assert names["names"] == {**dict(enumerate(CLASSES)), 254: "unknown"}
    assert unknown_name(("Unknown", "unknown_255")) == "unknown_255_255"


def test_brush_code_is_the_sdk_s_and_damage_is_named():
    """The judge compares pixels; here the form: runs over 2^16 values, and every kind of damage."""
    pixels = np.zeros((300, 400), bool)
    pixels[200:, :] = pixels[3, 5] = True
    code = encode_brush(pixels)
    np.testing.assert_array_equal(decode_brush(code, pixels.shape), pixels)
    literal = "0" * 26 + "100000" + "00111" + "0010001101111111" + "0" + "00" + "111" + "11111111" * 8 + "0" + "00"
    literal += "111" + "00000000" * 8 + "1" + "01" + "1111" + "00000000"  # 8 single values twice, then a run of 16
    literal += "0" * (-len(literal) % 8)
    plain = list(int(literal, 2).to_bytes(len(literal) // 8, "big"))
    np.testing.assert_array_equal(decode_brush(plain, (2, 4)), [[1, 1, 0, 0], [0, 0, 0, 0]])
    for damaged in (code[:20], [], [300], "text", None, code[:4] + [255] * 40):
        with pytest.raises(InputError, match="brush"):
            decode_brush(damaged, pixels.shape)
    with pytest.raises(InputError, match="codes 480000 values"):
        decode_brush(code, (3, 4))


def test_one_bad_image_stops_no_other(given, tmp_path):
    """Export and import list what they could not do, by image, and write the rest."""
    masks = tmp_path / "masks"
    for id in ("good", "size", "label", "many"):
        write_mask(masks / f"{id}.png", np.full((4, 5), 255 if id == "good" else 1, np.uint8))
        Image.new("RGB", (6, 4) if id == "size" else (5, 4)).save(tmp_path / f"{id}.bmp")
    write_mask(masks / "label.png", np.full((4, 5), 9, np.uint8))
    (masks / "broken.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (5, 4)).save(tmp_path / "broken.bmp")
    spots = np.zeros((70, 70), np.uint8)
    spots[::4, ::4] = 1
    write_mask(masks / "many.png", spots)
    Image.new("RGB", (70, 70)).save(tmp_path / "many.bmp")
    (tmp_path / "classes.txt").write_text("one\n")
    found = open_masks(masks, classes=tmp_path / "classes.txt", images=tmp_path)
    for form in EXPORTERS:
        job = export_masks(found, tmp_path / form, form, instances=True)
        limited = {"many"} if form in ("cvat", "voc") else set()
        assert set(job.failures) == {"size", "label", "broken"} | limited, form
        assert job.done == 2 - len(limited)
        assert json.loads((tmp_path / form / "failures.json").read_text()) == job.failures
    for kind, text in (("size", "5 x 4 pixels"), ("label", "unknown ids 9"), ("many", "324 objects")):
        assert text in export_masks(found, tmp_path / f"again {kind}", "voc", instances=True).failures[kind]

    tasks = json.loads((tmp_path / "label-studio" / "tasks.json").read_text())
    (good,) = (task for task in tasks if task["data"]["id"] == "good")
    good = json.dumps(good)
    changes = {
        "none": ('"predictions"', '"else"'),
        "strange": ('"unknown"', '"horse"'),
        "polygon": ('"type": "brushlabels"', '"type": "polygonlabels"'),
        "wide": ('"original_width": 5', '"original_width": 6'),
        "good": ("", ""),
        "../up": ("", ""),
        "other": ("", ""),
    }
    made = [json.loads(good.replace(*change).replace('"good"', json.dumps(id))) for id, change in changes.items()]
    (tmp_path / "tasks.json").write_text(json.dumps([*made, made[4], "no task"]))
    for id in ("none", "strange", "polygon", "wide"):
        Image.new("RGB", (5, 4)).save(tmp_path / f"{id}.bmp")
    job = import_masks(tmp_path / "tasks.json", tmp_path / "back", "label-studio", ("one",), images=tmp_path)
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["failures.json", "good.png"]
    reasons = {"none": "predictions", "strange": "'horse' is none of the classes one", "polygon": "polygonlabels",
               "wide": "codes 80 values", "../up": "file name without folders", "other": "none of the images",
               "good": "annotated twice", "task 8": "none of the images"}  # fmt: skip
    assert set(job.failures) == set(reasons)
    for id, reason in reasons.items():
        assert reason in job.failures[id], (id, job.failures[id])


def test_unreadable_annotations_are_listed_and_the_rest_is_read(tmp_path):
    """One good image `a` and every kind of bad line, value or entry in each format."""
    palette = Image.new("P", (5, 4), 1)
    palette.putpalette(voc_palette().tobytes())
    grey, strange = Image.new("L", (5, 4), 1), Image.new("RGB", (5, 4), (1, 2, 3))
    box = "0 0.1 0.1 0.9 0.1 0.9 0.9"
    shape = {"image_id": 1, "category_id": 7, "segmentation": [[0, 0, 5, 0, 5, 4, 0, 4]], "bbox": [0, 0, 5, 4]}
    image = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 5}
    entries = {
        "images": [image, {**image, "id": 2, "file_name": "b.jpg"}, {"id": 3, "file_name": "c.jpg"}, "d",
                   {**image, "id": 4, "file_name": "e.jpg"}],
        "annotations": [shape, {**shape, "image_id": 2, "category_id": 8},
                        {**shape, "image_id": 4, "segmentation": {"size": [9, 9], "counts": "1"}}],
        "categories": [{"id": 7, "name": "one"}, {"id": 8, "name": "horse"}],
    }  # fmt: skip
    cases = (
        ("voc", {"SegmentationClass/a.png": palette, "SegmentationClass/b.png": Image.new("L", (5, 4), 9),
                 "ImageSets/Segmentation/all.txt": "a\nc\n"},
         {"b": "unknown ids 9", "c": "listed, but has no mask"}),
        ("cvat", {"labelmap.txt": "background:0,0,0::\none:128,0,0::\ntwo:0,128,0::\n",
                  "SegmentationClass/a.png": palette,
                  "SegmentationClass/b.png": strange, "SegmentationClass/c.png": "",
                  "SegmentationClass/e.png": Image.new("RGB", (5, 4), (0, 128, 0))},
         {"b": "the colour 1,2,3", "c": "cannot be read", "e": "'two' is none of the classes"}),
        ("yolo-seg", {"data.yaml": "names: [one, two]", "labels/a.txt": box + "\n\n", "labels/b.txt": "0 x 1",
                      "labels/c.txt": "0 0.1 0.2 0.3 0.4", "labels/e.txt": box.replace("0 ", "1 ", 1),
                      "labels/f.txt": box.replace("0 ", "5 ", 1)},
         {"b": "no numbers", "c": "4 coordinates", "e": "'two' is none", "f": "class 5 has no name"}),
        ("ultralytics-semantic", {"data.yaml": "names: [background, one]", "masks/a.png": grey,
                                  "masks/b.png": Image.new("L", (5, 4), 4), "masks/c.png": Image.new("L", (5, 4), 255)},
         {"b": "the value 4"}),
        ("coco", {"annotations.json": json.dumps(entries)},
         {"b": "'horse' is none", "c": "height and width", "image 3": "lacks or damages", "e": "run-length code"}),
    )  # fmt: skip
    for id in "abcef":
        (tmp_path / "images").mkdir(exist_ok=True)
        grey.save(tmp_path / "images" / f"{id}.png")
    for form, files, reasons in cases:
        for name, content in files.items():
            (tmp_path / form / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                (tmp_path / form / name).write_text(content)
            else:
                content.save(tmp_path / form / name)
        images = tmp_path / "images" if form == "yolo-seg" else None
        job = import_masks(tmp_path / form, tmp_path / f"{form} back", form, ("one",), images=images)
        assert set(job.failures) == set(reasons), form
        for id, reason in reasons.items():
            assert reason in job.failures[id], (form, id, job.failures[id])
        mask = read_mask(tmp_path / f"{form} back" / "a.png")
        assert mask.shape == (4, 5)
        assert (mask == 1).all() or form == "yolo-seg"
    (tmp_path / "plain.zip").write_bytes(b"PK")
    (tmp_path / "classes.txt").write_text("one\n")
    write_mask(tmp_path / "masks" / "a.png", np.ones((4, 5), np.uint8))
    job = export_masks(open_masks(tmp_path / "masks", classes=tmp_path / "classes.txt"), tmp_path / "fo", "fiftyone")
    assert "FiftyOne shows masks on images" in job.failures["a"]
    for call, reason in (
        (lambda: import_masks(tmp_path / "plain.zip", tmp_path / "x", "cvat", ("one",)), "is not a ZIP file"),
        (lambda: import_masks(tmp_path / "no", tmp_path / "x", "cvat", ("one",)), "no such file"),
        (lambda: import_masks(tmp_path, tmp_path / "x", "pascal", ("one",)), "format is 'pascal'"),
        (lambda: import_masks(tmp_path / "yolo-seg", tmp_path / "x", "yolo-seg", ("one",)), "pass --images DIR"),
        (lambda: export_masks(open_masks(tmp_path / "masks", classes=tmp_path / "classes.txt"), tmp_path / "x", "voc",
                              images=True), "no image file is known"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=reason):
            call()


@pytest.mark.parametrize(
    ("form", "files", "reason"),
    [
        ("coco", {"annotations.json": "[]"}, "is not an instances file"),
        ("coco", {"annotations.json": "{"}, "is not JSON"),
        ("cvat", {"SegmentationClass/a.png": ""}, "no labelmap.txt"),
        ("cvat", {"x": ""}, "0 folders SegmentationClass"),
        ("cvat", {"SegmentationClass/a.png": "", "labelmap.txt": "one:1,2::"}, "labelmap.txt is damaged"),
        ("cvat", {"SegmentationClass/a.png": "", "labelmap.txt": "a:1,2,3::\nb:1,2,3::"}, "another label's colour"),
        ("label-studio", {"tasks.json": "{}"}, "not a list of tasks"),
        ("yolo-seg", {"labels/a.txt": ""}, "0 YAML files"),
        ("yolo-seg", {"data.yaml": "names: [one]"}, "holds no labels"),
        ("ultralytics-semantic", {"data.yaml": "names: 3"}, "no class names"),
        ("ultralytics-semantic", {"data.yaml": "names: [background, one]"}, "holds no masks"),
    ],
)
def test_a_wrong_source_is_refused_before_anything_is_written(tmp_path, form, files, reason):
    for name, text in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(text)
    Image.new("RGB", (5, 4)).save(tmp_path / "a.bmp")
    with pytest.raises(InputError, match=reason):
        import_masks(tmp_path / "in", tmp_path / "out", form, ("one",), images=tmp_path)
    assert not (tmp_path / "out").exists()


def test_refusals(given, tmp_path):
    """What cannot work is refused before the output folder is touched, and nothing is overwritten."""
    found = opened(given)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    for call, reason in (
        (lambda: export_masks(found, tmp_path / "full", "coco"), "not empty"),
        (lambda: import_masks(given / "masks", tmp_path / "full", "voc", CLASSES), "holds 0 folders"),
        (lambda: export_masks(found, tmp_path / "a", "png"), "format is 'png'"),
        (lambda: export_masks(found, tmp_path / "b", "coco", only=["no"]), "holds no mask for 1 id"),
        (lambda: open_masks(given / "masks"), "class names are unknown"),
        (lambda: open_masks(given, classes=given / "classes.txt"), "holds no masks"),
        (lambda: open_masks(given / "masks", classes=given / "classes.txt", images=HERE), "no pictures|no images"),
    ):
        with pytest.raises(InputError, match=reason):
            call()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    for name in ("a:b", "#a", "a\nb"):
        with pytest.raises(InputError, match=r"cannot be written to labelmap\.txt"):
            label_map(Job((name,)))
    too_many = tmp_path / "classes.txt"
    too_many.write_text("\n".join(f"class {k}" for k in range(300)))
    with pytest.raises(InputError, match="300 classes, expected 1 to 254"):
        open_masks(given / "masks", classes=too_many)
