"""`amn-fast init`: what it finds in a folder, and the configuration that it writes; the reference of all settings."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydantic", reason="configurations need the pipeline extra")
pytest.importorskip("typer", reason="the command line needs the pipeline extra")

import yaml
from PIL import Image

from amn_fast.cli.init import FEW_IMAGES, SIZED, Found, look, suggest
from amn_fast.config import Config, read_config
from amn_fast.data.masks import write_mask
from amn_fast.settings import REQUIRED, all_settings, commented_yaml
from command_line import command

LABELS = "id,labels\na,cat\nb,dog\nc,cat;dog\n"


def fill(folder: Path, files: dict[str, str | None]) -> Path:
    """Write text files, and images and masks where there is no text."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text)
        elif "masks" in path.parts:
            write_mask(path, np.eye(8, dtype=np.uint8) * 2)
        else:
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return folder


def init(where: Path, *arguments: object) -> tuple[int, str, str]:
    return command("init", *arguments, cwd=where)


IMAGES: dict[str, str | None] = {f"images/{id}.png": None for id in "abc"}
FLAT: dict[str, str | None] = {f"{id}.png": None for id in "abc"}
CASES = {
    "a data set with everything": (
        IMAGES | {"labels.csv": LABELS, "masks/a.png": None, "classes.txt": "cat\ndog\n", "readme.txt": "mine"},
        {"images": "images", "classes": "classes.txt", "labels": "labels.csv", "masks": "masks"},
        ["images: 3 images", "3 images, 2 classes: cat 2, dog 2", "masks: ground truth of 1 of 3 images"],
    ),
    "images and labels in one folder": (
        FLAT | {"my labels.csv": LABELS},
        {"images": ".", "labels": "my labels.csv"},
        ["my labels.csv: labels of 3 images", "no ground-truth masks"],
    ),
    "labels beside the images, under a folder of another name": (
        {f"photos [1]/{name}": None for name in FLAT} | {"photos [1]/x.csv": LABELS, "notes.json": "{"},
        {"images": "photos [1]", "labels": "photos [1]/x.csv"},
        ["photos [1]: 3 images", "photos [1]/x.csv: labels of 3 images"],
    ),
    "no labels": (FLAT, {"images": ".", "labels": "labels.csv"}, ["no label file found; write", "id,labels\n  a,cat"]),
    "labels that do not fit": (
        FLAT | {"labels.csv": "id,labels\nx,cat\n"},
        {"images": ".", "labels": "labels.csv"},
        ["not used: ", "no label file found"],
    ),
    "some images without a label": (
        IMAGES | {"images/d.png": None, "labels.csv": LABELS},
        {"images": "images", "labels": "labels.csv"},
        ["without a label: 1 image; add labels"],
    ),
    "masks that cannot be used": (
        IMAGES | {"labels.csv": "id,labels\na,cat\nb,cat\nc,cat\n", "masks/a.png": None},
        {"images": "images", "labels": "labels.csv"},
        ["not used: ", "no ground-truth masks"],
    ),
    "two label files, one called labels": (
        IMAGES | {"labels.csv": LABELS, "other.csv": LABELS},
        {"images": "images", "labels": "labels.csv"},
        ["labels.csv: labels of 3 images"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_init_finds_what_is_there(case, tmp_path):
    files, options, sentences = CASES[case]
    fill(tmp_path / "my set", files)
    status, output, errors = init(tmp_path, "my set")
    assert (status, errors) == (0, "")
    for sentence in sentences:
        assert sentence in output
    assert output.endswith("next:\n  amn-fast check-data 'my set.yaml'\n  amn-fast run 'my set.yaml'\n")
    config = read_config(tmp_path / "my set.yaml")
    assert config.data.options == options
    assert config.data.root == tmp_path / "my set"
    assert config.run == tmp_path / "runs" / "my set"


def test_the_default_is_the_fast_mode_and_full_goes_elsewhere(tmp_path):
    fill(tmp_path / "mine", IMAGES | {"labels.csv": LABELS})
    assert [init(tmp_path, "mine", *more)[0] for more in ([], ["--full"])] == [0, 0]
    fast, full = (read_config(tmp_path / name) for name in ("mine.yaml", "mine_full.yaml"))
    shipped = read_config("fast", [f"data={{kind: folder, root: {tmp_path}}}", f"run={tmp_path}"])
    changed = {key: getattr(fast, key) for key in ("name", "data", "run", "train_seg")}
    assert fast == shipped.model_copy(update=changed)
    assert (full.train_cam.kind, full.train_amn.kind, full.mask.background) == ("network", "network", "auto")
    assert (fast.run, full.run) == (tmp_path / "runs/mine", tmp_path / "runs/mine_full")


def test_init_keeps_files_and_names_what_it_cannot_use(tmp_path):
    fill(tmp_path / "two", {"cat/a.png": None, "dog/b.png": None})
    fill(tmp_path / "empty", {"notes.txt": ""})
    fill(tmp_path / "both", IMAGES | {"one.csv": LABELS, "other.csv": LABELS})
    fill(tmp_path / "good", IMAGES | {"labels.csv": LABELS})
    (tmp_path / "good.yaml").write_text("mine")
    for arguments, sentence in (
        (["nosuch"], "nosuch: does not exist, expected your images"),
        (["good.yaml"], "good.yaml: is no folder"),
        (["two"], "has images in 2 subfolders (cat, dog), expected all in one"),
        (["empty"], "holds no images"),
        (["both"], "all have labels of the images; choose one with --labels"),
        (["both", "--labels", "nosuch.csv"], "nosuch.csv"),
        (["good"], "good.yaml exists and is kept; choose another file with --output"),
    ):
        status, output, errors = init(tmp_path, *arguments)
        assert (status, output, errors.count("\n")) == (1, "", 1), errors
        assert sentence in errors
    assert (tmp_path / "good.yaml").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.glob("*.yaml")) == ["good.yaml"]
    other = tmp_path / "elsewhere" / "deep"
    other.mkdir(parents=True)
    assert init(tmp_path, "both", "--labels", "both/one.csv", "--output", other / "x.yaml")[0] == 0
    config = read_config(other / "x.yaml")
    assert (config.data.root, config.data.options["labels"]) == (tmp_path / "both", "one.csv")


def test_the_settings_suit_the_size_of_the_images(tmp_path):
    for width, height, model, crop in ((8, 8, "demo", 160), (150, 200, "demo", 160), (320, 213, "msrc", 224),
                                       (500, 375, "voc6", 320), (1600, 900, "voc6", 320)):  # fmt: skip
        folder = fill(tmp_path / f"{width}", {"images/damaged.png": "no image"})
        for id in "abc":
            Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / "images" / f"{id}.png")
        found = look(folder)
        assert found.long_side == max(width, height)
        assert any("run on copies" in remark for remark in found.remarks) == (width == 1600)
        given, notes = suggest(found, "photos", tmp_path / "photos.yaml", full=True)
        shipped = read_config(model)
        for name, value in given.items():
            section, _, key = name.partition(".")
            if key in SIZED:
                assert getattr(getattr(shipped, section), key) == (tuple(value) if isinstance(value, list) else value)
        assert given["train_cam.crop"] == crop
        assert model in notes["train_cam.crop"]
        found.ids *= FEW_IMAGES
        given = suggest(found, "photos", tmp_path / "photos.yaml", full=True)[0]
        assert given.get("train_cam.crop") == (crop if width < 400 else None)
        assert "backbone" not in given


def test_every_setting_is_in_the_file_with_the_value_that_it_has():
    photos = Found(Path("photos"), {"images": "."}, [f"{n}" for n in range(31)])
    few = suggest(photos, "photos", Path("photos.yaml"), full=True)
    fast = suggest(photos, "photos", Path("photos.yaml"), full=False)
    photos.ids *= FEW_IMAGES
    many = suggest(photos, "photos", Path("photos.yaml"), full=True)
    assert "train_cam.epochs" in few[0]
    assert "train_cam.epochs" not in many[0]
    for given, notes in (few, many, fast):
        text = commented_yaml("mine", given, notes)
        config = Config.model_validate(yaml.safe_load(text))
        activated = re.sub(r"^( *)#(?=( {2})?[a-z_]+:)", r"\1", text, flags=re.MULTILINE)
        values = yaml.safe_load(activated)
        assert Config.model_validate(values) == config
        assert values == config.model_dump(mode="json")
        assert max(map(len, text.splitlines())) <= 120
        for setting in all_settings():
            for one in setting.settings or (setting,):
                assert one.meaning, f"{one.name} has no description"
                assert one.meaning.split()[0] in text
                assert one.values
                section, _, key = one.name.rpartition(".")
                assert one.default is REQUIRED or key in (values[section] if section else values)


def test_ranges_and_defaults_of_modes():
    settings = {one.name: one for section in all_settings() for one in section.settings or (section,)}
    expected = {
        "train_cam.epochs": ("integer >= 1", 5, {}),
        "train_cam.momentum": ("number >= 0 and < 1", 1e-4, {"mode fixed": 0.9}),
        "mask.maximum": ("global, class", "global", {"mode fixed": "class"}),
        "cam.scales": ("list of 1 or more, each number > 0", [1.0, 0.5, 1.5, 2.0], {}),
        "cam_seed.bilateral": ("3 values, each number > 0", [50.0, 5.0, 10.0], {}),
        "cam_seed.fg": ("number >= 0 and <= 1 or auto", 0.3, {}),
        "weights": ("text or null", "imagenet", {}),
        "run": ("path", REQUIRED, {}),
        "eval_seg.window": ("integer >= 32 or null", None, {}),
    }
    for name, (values, default, alternatives) in expected.items():
        found = settings[name]
        assert (found.values, found.default, found.alternatives) == (values, default, alternatives), name
