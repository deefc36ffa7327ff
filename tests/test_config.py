"""A configuration is complete and checked before anything runs, and what is wrong with it takes one sentence."""

from pathlib import Path

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("yaml")
from amn_fast.config import SHIPPED, Config, read_config, to_yaml
from amn_fast.errors import InputError

SHIPPED_NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def refusal(path, overrides=()):
    """The sentence that refuses a configuration: one line, no class names of the checking library."""
    with pytest.raises(InputError) as caught:
        read_config(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert "pydantic" not in text
    return text


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndata: {kind: folder, root: pictures}\nrun: runs/mine\n")
    return path


def test_the_published_settings_are_shipped():
    assert {"demo", "msrc", "voc12", "coco14"} <= set(SHIPPED_NAMES)


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_shipped_configurations_survive_being_written(name, tmp_path):
    config = read_config(name)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(tmp_path / "config.yaml") == config


def test_every_setting_survives_being_written(file, tmp_path):
    settings = (
        "data.options={n: 8, ids: null, classes: 'a b.txt'}",
        "run='runs/ä: b #1'",
        "weights=null",
        "train_amn.lr=3.3e-7",
        "cam.scales=[0.1, 1]",
        "mask.maximum=class",
        "seed=123",
    )
    config = read_config(file, settings)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    again = read_config(tmp_path / "config.yaml")
    assert again == config
    assert again.run == Path("runs/ä: b #1")
    assert again.data.options == {"n": 8, "ids": None, "classes": "a b.txt"}
    assert again.weights is None


def test_defaults_are_the_published_ones_for_voc():
    voc = read_config("voc12")
    assert voc.backbone == "resnet50"
    assert (voc.train_cam.epochs, voc.train_cam.batch, voc.train_cam.crop, voc.train_cam.lr) == (5, 16, 512, 0.1)
    assert (voc.train_amn.epochs, voc.train_amn.batch, voc.train_amn.lr, voc.train_amn.new_lr) == (5, 16, 5e-6, 1e-4)
    assert (voc.cam_seed.fg, voc.cam_seed.bg, voc.amn_seed.fg, voc.amn_seed.bg) == (0.30, 0.05, 0.45, 0.15)
    assert (voc.mask.beta, voc.mask.exp_times, voc.mask.power, voc.mask.background) == (10, 8, 1.3, 0.25)
    assert read_config("coco14").mask.background == 0.22


def test_overrides_win_over_the_file(file):
    config = read_config(
        file, ["mask.background=0.3", "train_cam={epochs: 2}", "train_cam.batch=3", "cam.scales=[1.0]"]
    )
    assert config.mask.background == 0.3
    assert (config.train_cam.epochs, config.train_cam.batch) == (2, 3)
    assert config.cam.scales == (1.0,)
    assert read_config(file).mask.background == 0.25


def test_numbers_that_yaml_takes_for_text_are_numbers(file):
    assert read_config(file, ["train_amn.lr=1e-4"]).train_amn.lr == 1e-4


def test_a_folder_of_a_shipped_name_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert read_config("demo") == read_config(SHIPPED / "demo.yaml")


def test_a_file_that_is_not_there_is_answered_with_what_is():
    assert refusal("voc2012") == (
        f"configuration voc2012 does not exist, expected a YAML file or one of {', '.join(SHIPPED_NAMES)}"
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"name: [", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"a: !!python/object/apply:os.system ['touch owned']", "is not YAML"),
        (b"", "holds NoneType, expected names and values"),
        (b"- a\n- b\n", "holds list, expected names and values"),
        (b"{}", "name is missing; data is missing; run is missing"),
    ],
    ids=["open bracket", "not UTF-8", "code", "empty", "a list", "nothing in it"],
)
def test_files_of_another_kind(tmp_path, monkeypatch, content, sentence):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    text = refusal(path)
    assert str(path) in text
    assert sentence in text
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("maks.background=0.3", "maks is not a known name"),
        ("mask.backgruond=0.3", "mask.backgruond is not a known name"),
        ("mask.background=1.5", "mask.background is 1.5: Input should be less than or equal to 1"),
        ("mask.background=.nan", "mask.background is nan"),
        ("mask.maximum=both", "mask.maximum is 'both': Input should be 'global' or 'class'"),
        ("train_cam.epochs=0", "train_cam.epochs is 0: Input should be greater than or equal to 1"),
        ("train_cam.epochs=two", "train_cam.epochs is 'two'"),
        ("train_amn.lr=.inf", "train_amn.lr is inf"),
        ("train_amn.lr=-1", "train_amn.lr is -1"),
        ("train_amn.power=.nan", "train_amn.power is nan"),
        ("train_cam.long_side=[640, 320]", "train_cam: long_side (640, 320), expected shortest <= longest"),
        ("train_cam.long_side=[0, 320]", "train_cam.long_side.0 is 0"),
        ("train_amn.rescale=[1.5, 0.5]", "train_amn: rescale (1.5, 0.5), expected smallest <= largest"),
        ("train_irn.rescale=[1.5, 0.5]", "train_irn: rescale (1.5, 0.5), expected smallest <= largest"),
        ("train_amn.rescale=[-1, 0.5]", "train_amn.rescale.0 is -1"),
        ("train_irn={crop: 64}", "crop 64 leaves no room for pairs of radius 10, expected 80 or more"),
        ("cam.scales=[]", "cam.scales is []"),
        ("amn.scales=[1.0, 0]", "amn.scales.1 is 0"),
        ("cam_seed={fg: 0.2, bg: 0.3}", "bg threshold 0.3 is above fg threshold 0.2, expected bg <= fg"),
        ("cam_seed={fg: 0.2}", "cam_seed.bg is missing"),
        ("amn_seed={fg: 0.4, bg: 0.1, bilateral: [50, 0, 10]}", "amn_seed.bilateral.1 is 0"),
        ("seed=-1", "seed is -1"),
        ("seed=99999999999999999999", "seed is 99999999999999999999"),
        ("data.kind=coco2014", "data.kind is 'coco2014': Input should be 'demo', 'folder', 'voc' or 'coco'"),
        ("device=tpu", "device is 'tpu'"),
        ("name.x=1", "override 'name.x=1': name is a value, not a section"),
        ("mask.background", "override 'mask.background' has no '=', expected section.key=value"),
        ("mask.background=[", "override 'mask.background=[' has a value that is not YAML"),
    ],
)
def test_wrong_settings_are_named(file, override, sentence):
    assert sentence in refusal(file, [override])


def test_several_faults_are_said_at_once(file):
    text = refusal(file, ["mask.background=2", "maks=1", "train_cam.epochs=0"])
    assert "mask.background" in text
    assert "maks" in text
    assert "train_cam.epochs" in text


def test_a_configuration_is_not_changed_by_accident(file):
    config = read_config(file)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3
    assert isinstance(config, Config)


def slips(config):
    return {
        "momentum": (config.train_cam.momentum, config.train_irn.momentum),
        "rates": (config.train_cam.lr, config.train_cam.new_lr, config.train_irn.lr, config.train_irn.new_lr),
        "pad": config.train_irn.pad,
        "softmax": config.amn.softmax,
        "maximum": config.mask.maximum,
    }


def test_the_modes_set_what_the_published_code_slips_on(file):
    compat = {"momentum": (1e-4, 1e-4), "rates": (0.1, 1, 0.1, 1), "pad": 512, "softmax": "all", "maximum": "global"}
    fixed = {"momentum": (0.9, 0.9), "rates": (0.01, 0.1, 0.01, 0.1), "pad": 0, "softmax": "picture"}
    assert slips(read_config(file)) == slips(read_config(file, ["mode=compat"])) == compat
    assert slips(read_config(file, ["mode=fixed"])) == fixed | {"maximum": "class"}


def test_a_given_setting_goes_before_the_modes(file):
    config = read_config(file, ["mode=fixed", "mask.maximum=global", "train_cam.momentum=0.5", "train_cam.epochs=2"])
    assert (config.mask.maximum, config.train_cam.momentum, config.train_cam.lr) == ("global", 0.5, 0.01)
    assert read_config("voc12").mode == read_config("coco14").mode == "compat"


def test_a_resolved_configuration_keeps_its_values_when_read_again(file, tmp_path):
    config = read_config(file, ["mode=fixed", "mask.maximum=global"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("mode", ["published", "3", "[fixed]"])
def test_an_unknown_mode_is_named(file, mode):
    assert "mode is" in refusal(file, [f"mode={mode}"])
    assert "'compat' or 'fixed'" in refusal(file, [f"mode={mode}"])
