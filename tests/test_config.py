"""A configuration is complete and checked before anything runs, and what is wrong with it takes one sentence."""

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("yaml")
from pydantic import ValidationError

from amn_fast import _wording as wording
from amn_fast.config import SHIPPED, Config, Section, read_config, to_yaml
from amn_fast.errors import InputError
from amn_fast.ops.random_walk import MAX_EXP_TIMES, MAX_RADIUS, random_walk
from amn_fast.settings import all_settings

SHIPPED_NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def refusal(path, overrides=()):
    """The sentence that refuses a configuration: one short line, no class names of the checking library."""
    with pytest.raises(InputError) as caught:
        read_config(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000
    # No word of the libraries that check: pydantic's messages, YAML's.
    for word in ("pydantic", "Input should", "valid ", "Field required", "<unicode", "Keys should"):
        assert word not in text
    return text


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndata: {kind: folder, root: images}\nrun: runs/mine\n")
    return path


def test_a_resolved_configuration_reads_as_the_same(file, tmp_path):
    settings = (
        "data.options={n: 8, ids: null, classes: 'a b.txt'}",
        "weights=null",
        "train_amn.lr=3.3e-7",
        "cam.scales=[0.1, 1]",
        "mode=fixed",
        "mask.maximum=global",
        "seed=123",
        "eval_seg.data={kind: voc, root: /elsewhere}",
    )
    assert {"demo", "msrc", "voc12", "coco14"} <= set(SHIPPED_NAMES)
    here = {f"run={tmp_path}", f"data.root={tmp_path / 'data'}"}
    for config in (*(read_config(name, here) for name in SHIPPED_NAMES), read_config(file, settings)):
        (config.run / "x").parent.mkdir(parents=True, exist_ok=True)
        (config.run / "config.yaml").write_text(to_yaml(config, config.run), encoding="utf-8")
        assert read_config(config.run / "config.yaml") == config
    assert config.data.options == {"n": 8, "ids": None, "classes": "a b.txt"}
    # In the run folder its own path is ".": a run folder may be moved.
    moved = Path(os.fspath(config.run.rename(tmp_path / "moved")))
    assert read_config(moved / "config.yaml").run == moved


def test_thresholds_are_two_numbers_or_auto(file):
    assert read_config(file, ["cam_seed={bilateral: [9, 9, 9]}"]).cam_seed.fg == "auto"
    assert read_config(file, ["cam_seed.fg=0.4"]).cam_seed.pair == (0.4, 0.05)
    assert read_config(file, ["amn_seed=auto"]).amn_seed.bg == "auto"
    for given, expected in (
        ("cam_seed={fg: auto, bg: 0.1}", "cam_seed: fg is auto and bg is 0.1, expected two numbers or auto for both"),
        ("cam_seed.fg=1.5", "cam_seed.fg is 1.5, expected a number >= 0 and <= 1 or auto"),
        ("cam_seed.fg=high", "cam_seed.fg is 'high', expected a number >= 0 and <= 1 or auto"),
        ("cam_seed=high", "cam_seed: found 'high', expected auto or settings such as fg and bg"),
    ):
        assert expected in refusal(file, [given])


def test_relative_paths_start_at_the_file_and_on_the_command_line_here(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.yaml").write_text(
        "name: mine\ndata: {kind: folder, root: imagenet}\nrun: out\nweights: w.pth\n"
        "train_seg: {masks: m, weights: imagenet}\neval_seg: {data: {kind: voc, root: /abs}}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = read_config("sub/mine.yaml")
    assert (config.run, config.data.root, config.weights) == (Path("sub/out"), Path("sub/imagenet"), "sub/w.pth")
    assert (config.train_seg.masks, config.train_seg.weights) == (Path("sub/m"), "imagenet")
    assert config.eval_seg.data.root == Path("/abs")
    assert read_config("sub/mine.yaml", ["run=out", "data.root=d"]).run == Path("out")
    assert read_config("demo").run == Path("runs/demo")
    (tmp_path / "demo").mkdir()  # a folder of that name does not hide the shipped configuration
    assert read_config("demo") == read_config(SHIPPED / "demo.yaml")


def test_defaults_are_those_of_the_reference_implementations_for_voc():
    voc = read_config("voc12")
    assert (voc.backbone, voc.mode, read_config("coco14").mode) == ("resnet50", "compat", "compat")
    assert (voc.train_cam.epochs, voc.train_cam.batch, voc.train_cam.crop, voc.train_cam.lr) == (5, 16, 512, 0.1)
    assert (voc.train_amn.epochs, voc.train_amn.batch, voc.train_amn.lr, voc.train_amn.new_lr) == (5, 16, 5e-6, 1e-4)
    assert (voc.cam_seed.fg, voc.cam_seed.bg, voc.amn_seed.fg, voc.amn_seed.bg) == (0.30, 0.05, 0.45, 0.15)
    assert (voc.mask.beta, voc.mask.exp_times, voc.mask.power, voc.mask.background) == (10, 8, 1.3, 0.25)
    assert (voc.edge.pad, read_config("coco14").edge.pad, read_config("coco14").mask.background) == (512, 0, 0.22)


def test_every_field_says_what_it_means():
    def fields(section, path=()):
        for name, field in section.model_fields.items():
            yield ".".join((*path, name)), field
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from fields(inner, (*path, name))

    described = dict(fields(Config))
    assert len(described) > 80
    assert [name for name, field in described.items() if not field.description] == []


def test_settings_win_over_the_file_and_sections_keep_their_other_defaults(file):
    config = read_config(
        file,
        ["mask.background=0.3", "train_cam={epochs: 2}", "train_cam.batch=3", "cam.scales=[1.0]", "train_amn.lr=1e-4"],
    )
    assert (config.mask.background, config.train_cam.epochs, config.train_cam.batch) == (0.3, 2, 3)
    assert (config.cam.scales, config.train_amn.lr) == ((1.0,), 1e-4)
    seeds = read_config(file, ["cam_seed.fg=0.1", "amn_seed={bg: 0.2}"])
    assert (seeds.cam_seed.fg, seeds.cam_seed.bg, seeds.amn_seed.fg, seeds.amn_seed.bg) == (0.1, 0.05, 0.45, 0.2)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def quirks(config):
    return {
        "momentum": (config.train_cam.momentum, config.train_irn.momentum),
        "rates": (config.train_cam.lr, config.train_cam.new_lr, config.train_irn.lr, config.train_irn.new_lr),
        "pad": config.edge.pad,
        "softmax": config.amn.softmax,
        "maximum": config.mask.maximum,
    }


def test_modes_set_defaults_and_a_named_setting_wins(file, capsys):
    compat = {"momentum": (1e-4, 1e-4), "rates": (0.1, 1, 0.1, 1), "pad": 512, "softmax": "all", "maximum": "global"}
    fixed = {"momentum": (0.9, 0.9), "rates": (0.01, 0.1, 0.01, 0.1), "pad": 0, "softmax": "image"}
    assert quirks(read_config(file)) == quirks(read_config(file, ["mode=compat"])) == compat
    assert quirks(read_config(file, ["mode=fixed"])) == fixed | {"maximum": "class"}
    config = read_config(file, ["mode=fixed", "mask.maximum=global", "train_cam.momentum=0.5", "train_cam.epochs=2"])
    assert (config.mask.maximum, config.train_cam.momentum, config.train_cam.lr) == ("global", 0.5, 0.01)
    assert capsys.readouterr().err == ""
    # Names of earlier versions.
    old = read_config(file, ["mode=fixed", "train_irn.pad=7", "amn.softmax=picture", "eval_seg.mirror=true"])
    assert (old.edge.pad, old.amn.softmax, old.eval_seg.flip) == (7, "image", True)
    assert capsys.readouterr().err.count("\n") == 2


def test_a_file_that_is_not_there_is_answered_with_what_is():
    assert refusal("voc2012") == (
        f"configuration voc2012 does not exist, expected a YAML file or one of {', '.join(SHIPPED_NAMES)}"
    )


def test_files_of_another_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.yaml"
    bomb = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 30))
    for content, sentence in (
        (b"name: [", "is not YAML: line 1 is 'name: [', expected lines such as name: value, indented by spaces"),
        (b"name: x\n\trun: r", r"line 2 is 'run: r', expected lines such as name: value"),
        (b"name: x\nseed: 1\nname: y", "line 3 is 'name: y', expected a name once"),
        (b"seed: 2026-13-01", "line 1 is 'seed: 2026-13-01', expected"),
        (b"seed: !!timestamp x", "line 1 is 'seed: !!timestamp x', expected"),
        (b"? [a]\n: 1", "line 1 is '? [a]', expected"),
        (b"name: \x00", "it holds characters that are not text, expected UTF-8 text"),
        (b"\xff\xfe\x00", "is not UTF-8 text, expected YAML in UTF-8"),
        (b"a: !!python/object/apply:os.system ['touch owned']", "is not YAML: line 1 is"),
        (b"", "holds NoneType, expected names and values"),
        (b"- a\n- b\n", "holds list, expected names and values"),
        (
            b"{}",
            "name is missing, expected a text; data is missing, expected a section of settings such as data.kind;"
            " run is missing, expected a path",
        ),
        (bomb.encode(), "refers to *a0, expected every value written out"),
        (b"name: " + b"[" * 50_000, "nested deeper than 20 levels"),
        (b"seed: " + b"9" * 5_000, "is not YAML: line 1 is 'seed: 9999"),
        (b"name: x\ndata: {kind: folder}\nrun: r\nseed: " + b"9" * 4_000, "seed is 9999"),
        (b"name: x\n" + b"#" * 1_000_000, "has 1,000,008 bytes, expected at most 1,000,000"),
    ):
        path.write_bytes(content)
        text = refusal(path)
        assert str(path) in text
        assert sentence in text
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_wrong_settings_are_named(file):
    """The whole sentence, after the file, for each kind of fault."""
    radius, doublings = MAX_RADIUS, MAX_EXP_TIMES["chebyshev"]
    for override, sentence in (
        ("maks.background=0.3", "maks is not a setting, expected mask"),
        ("mask.backgruond=0.3", "mask.backgruond is not a setting, expected mask.background"),
        ("edge.what=1", "edge.what is not a setting, expected one of pad"),
        ("mask.background=1.5", "mask.background is 1.5, expected a number >= 0 and <= 1 or auto"),
        ("mask.background=.nan", "mask.background is nan, expected a number >= 0 and <= 1 or auto"),
        ("mask.maximum=both", "mask.maximum is 'both', expected one of global, class"),
        (f"mask.radius={radius + 1}", f"mask.radius is {radius + 1}, expected an integer >= 1 and <= {radius}"),
        ("mask.exp_times=31", f"mask.exp_times is 31, expected an integer >= 0 and <= {doublings}"),
        ("mask=3", "mask is 3, expected a section of settings such as mask.kind"),
        ("data=null", "data is None, expected a section of settings such as data.kind"),
        ("data.options={1: 2}", "data.options is {1: 2}, expected a mapping"),
        ("eval_seg.data.kind=x", "eval_seg.data.kind is 'x', expected one of demo, folder, voc, coco"),
        ("train_cam.epochs=0", "train_cam.epochs is 0, expected an integer >= 1"),
        ("train_cam.epochs=1.5", "train_cam.epochs is 1.5, expected an integer >= 1"),
        ("train_cam.epochs=two", "train_cam.epochs is 'two', expected an integer >= 1"),
        ("train_cam.clip=0", "train_cam.clip is 0, expected a number > 0 or null"),
        ("train_amn.rounds=6", "train_amn.rounds is 6, expected an integer >= 1 and <= 5"),
        ("train_amn.lr=.inf", "train_amn.lr is inf, expected a number > 0"),
        ("train_amn.lr=-1", "train_amn.lr is -1, expected a number > 0"),
        ("segmentation=maybe", "segmentation is 'maybe', expected true or false"),
        ("backbone=7", "backbone is 7, expected a text"),
        ("trusted=7", "trusted is 7, expected a path or null"),
        ("train_cam.long_side=[640, 320]", "train_cam: long_side is (640, 320), expected the shortest first"),
        ("train_cam.long_side=[0, 320]", "train_cam.long_side is [0, 320], expected 2 values, each integer >= 1"),
        ("train_cam.long_side=[320]", "train_cam.long_side is [320], expected 2 values, each integer >= 1"),
        ("train_cam.long_side=320", "train_cam.long_side is 320, expected 2 values, each integer >= 1"),
        ("train_amn.rescale=[1.5, 0.5]", "train_amn: rescale is (1.5, 0.5), expected the smallest first"),
        (
            "train_irn={pad: 1}",
            "train_irn.pad is the old name of edge.pad, and both are given, expected edge.pad alone",
        ),
        ("train_irn={crop: 64}", "train_irn: crop is 64, expected 80 or more, 8 times the pairs' radius"),
        ("cam.scales=[]", "cam.scales is [], expected a list of 1 or more, each number > 0"),
        ("amn.scales=[1.0, 0]", "amn.scales is [1.0, 0], expected a list of 1 or more, each number > 0"),
        ("cam_seed={fg: 0.2, bg: 0.3}", "cam_seed: bg is 0.3 and fg is 0.2, expected bg <= fg"),
        ("amn_seed.bilateral=[1, 0, 1, 9]", "amn_seed.bilateral is [1, 0, 1, 9], expected 3 values, each number > 0"),
        ("train_seg.iterations=1001", "train_seg: iterations is 1001, expected a multiple of checkpoint_every, 1000"),
        ("seed=-1", f"seed is -1, expected an integer >= 0 and < {2**48}"),
        ("workers=100000", "workers is 100000, expected an integer >= 0 and <= 256"),
        ("mode=[fixed]", "mode is ['fixed'], expected one of compat, fixed"),
    ):
        both = ["edge.pad=2"] if "old name" in sentence else []
        assert refusal(file, [*both, override]) == f"configuration {file}: {sentence}"
    for override, sentence in (
        ("name.x=1", "override 'name.x=1': name is a value, not a section"),
        ("mask.background", "override 'mask.background' has no '=', expected section.key=value"),
        ("mask.background=[", "override 'mask.background=[' has a value that is not YAML: line 1 is '['"),
        (f"seed={'9' * 5000}", "has a value that is not YAML: line 1 is '9999"),
    ):
        assert sentence in refusal(file, [override]), override
    text = refusal(file, ["mask.background=2", "maks=1", "train_cam.epochs=0", "seed=-1", "workers=-1"])
    assert text.count(", expected ") == 3
    assert text.endswith("; 2 more")


def test_every_setting_refuses_in_the_same_words(file):
    """Whatever is wrong: one sentence with the setting's name, the value found and the values that the table lists."""
    settings = [one for section in all_settings() for one in section.settings or (section,)]
    assert len(settings) > 80
    for setting in settings:
        refused = 0
        for value in ([[]], {"x": []}, "\x01", -1, float("nan"), None, "long" * 50):
            values = {"name": "n", "run": "r", "data": {"kind": "demo"}} | {setting.name.split(".")[0]: value}
            if "." in setting.name:
                section, key = setting.name.split(".")
                values[section] = ({"kind": "demo"} if section == "data" else {}) | {key: value}
            try:
                Config.model_validate(values)
            except ValidationError as error:
                said = wording.refusal(error, Config, values)
                if said.startswith(f"{setting.name}."):  # a setting of a section within a section
                    continue
                words = setting.values.partition(", each")[0].removeprefix("section of the same form")
                assert said.startswith((f"{setting.name} is {wording.short(value)}, expected ", f"{setting.name}: "))
                assert words in said
                refused += 1
        assert refused >= 1, setting.name


def test_bounds_of_the_walk_are_those_of_the_operation(file):
    """The configuration takes what the operation takes, and refuses what it refuses."""
    maps, edge = np.ones((1, 2, 2), np.float32), np.zeros((2, 2), np.float32)

    def taken(call):
        try:
            call()
        except InputError:
            return False
        return True

    for key, bound in (("radius", MAX_RADIUS), ("exp_times", MAX_EXP_TIMES["chebyshev"])):
        for value in (-1, 0, 1, bound, bound + 1):
            walk = {"exp_times": 1, key: value}
            configured = taken(lambda key=key, value=value: read_config(file, [f"mask.{key}={value}"]))
            assert configured == taken(lambda walk=walk: random_walk(maps, edge, **walk)), (key, value)
