"""README, documentation and examples: code runs, commands and settings exist, links resolve, figures match results."""

import importlib.util
import json
import re
import runpy
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")

import typer  # noqa: E402

from amn_fast.cli import app  # noqa: E402
from amn_fast.config import SHIPPED, Config, read_config  # noqa: E402
from amn_fast.data.demo import make_demo  # noqa: E402
from amn_fast.data.masks import write_mask  # noqa: E402
from amn_fast.models import AmnNet, CamNet, IrnNet, published_state_dict  # noqa: E402

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = typer.main.get_command(app)
OTHER_PROGRAMS = {"cd", "cp", "git", "source"}


def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*figures().pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
}


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language, without those that show the code of a reference implementation."""
    found = BLOCK.finditer(PAGES[page])
    return [block["text"] for block in found if block["language"] == language and "'s code" not in block["options"]]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A working folder with the files that pages read, and the names that they leave to the reader."""
    monkeypatch.chdir(tmp_path)
    modules = dict(sys.modules)
    torch.manual_seed(0)
    for name, net in (("cam", CamNet(20)), ("amn", AmnNet(20)), ("irn", IrnNet())):
        Path("sess").mkdir(exist_ok=True)
        torch.save(published_state_dict(net), f"sess/{name}.pth")
    size = (61, 80)
    rng = np.random.default_rng(0)
    full = rng.random((2, *size), np.float32)
    entry = {"keys": torch.tensor([3, 14]), "cam": torch.rand(2, 16, 20), "high_res": full}
    Path("result/cam").mkdir(parents=True)
    np.save("result/cam/2007_000032.npy", entry)
    Path("runs/mine/masks").mkdir(parents=True)
    write_mask("runs/mine/masks/demo_000.png", np.zeros(size, np.uint8))
    probabilities = rng.random((3, *size), np.float32)
    yield {
        "image": rng.integers(0, 256, (*size, 3), np.uint8),
        "size": size,
        "labels": np.isin(np.arange(20), (3, 14)),
        "probabilities": probabilities / probabilities.sum(0),
    }
    for name in [name for name in sys.modules if name.partition(".")[0] == "pydensecrf"]:
        del sys.modules[name]  # what install() put there
    sys.modules.update({name: module for name, module in modules.items() if name.partition(".")[0] == "pydensecrf"})


def test_python_blocks_run(world):
    ran = 0
    for page in PAGES:
        # A name that the text does not introduce would be missed by its reader.
        names = {name: value for name, value in world.items() if f"`{name}` is" in PAGES[page]}
        for number, block in enumerate(blocks(page, "python"), 1):
            try:
                exec(compile(block, page, "exec"), names)
            except Exception as error:
                error.add_note(f"{page}, Python block {number}:\n{block}")
                raise
            ran += 1
        if page.endswith("migrate-irn-amn.md"):  # what the blocks computed, on this page of many results
            assert names["rw"].shape == (2, 1, 16, 20)
            assert names["high_res"].shape == (2, 61, 80)
            assert names["mask"].shape == names["seed"].shape == names["amn_seed"].shape == (61, 80)
            assert set(np.unique(names["mask"])) <= {0, 4, 15}
            assert Path("cam_again.pth").is_file()
            assert torch.isfinite(names["loss"])
    assert ran > 15


def test_the_tutorial_shows_what_init_says_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_demo("mine")
    app(["init", "mine"], standalone_mode=False)
    page = "docs/tutorial/own-images.md"
    assert "$ amn-fast init mine\n" + capsys.readouterr().out in blocks(page, "console")
    settings = [line for line in Path("mine.yaml").read_text().splitlines() if line and not re.match(r" *#", line)]
    (begin,) = blocks(page, "yaml")
    assert begin.splitlines() == settings[: begin.count("\n")]
    assert Path("mine/labels.csv").read_text().startswith(next(text for text in blocks(page, "text") if "id," in text))


def check_command(words: list[str]) -> None:
    """Raise where `words`, the arguments of amn-fast, name a command, an option or a setting that does not exist."""
    command = COMMANDS.get_command(typer.Context(COMMANDS), words[0])
    assert command is not None, f"no command {words[0]}"
    given = command.make_context(words[0], words[1:]).params
    settings = [setting for setting in given.get("set") or [] if not setting.isupper()]  # NAME=VALUE
    config = given.get("config")
    if settings:
        read_config(config if (SHIPPED / f"{config}.yaml").is_file() else "demo", settings)


def check_line(line: str) -> None:
    """Raise where a line of a console block cannot work in a checkout."""
    words = shlex.split(line, comments=True)
    program, *arguments = words
    if program == "amn-fast":
        check_command(arguments)
    elif program == "torchrun":
        check_command(arguments[arguments.index("amn_fast") + 1 :])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets), f"no such target: {line}"
    elif program == "pip" or arguments[:2] == ["-m", "pip"]:
        for extra in re.findall(r"\[([\w,]+)\]", line):
            declared = (ROOT / "pyproject.toml").read_text()
            assert all(f"\n{name} = [" in declared for name in extra.split(",")), f"no such extra: {line}"
    elif program == "python":
        files = [word for word in words if word.startswith(("docs/", "benchmarks/", "tests/", "examples/"))]
        assert all((ROOT / name).exists() or words[words.index(name) - 1] == "--output" for name in files), line
    else:
        assert program in OTHER_PROGRAMS, f"unknown program: {line}"


def test_commands_exist():
    checked = 0
    for page, text in PAGES.items():
        lines = [
            line.removeprefix("$ ")
            for block in blocks(page, "console")
            for line in block.replace("\\\n", " ").splitlines()
            if line.startswith("$ ")
        ]
        prose = BLOCK.sub("", text)
        spans = [" ".join(span.split()) for span in re.findall(r"`((?:amn-fast|make|python|torchrun) [^`]+)`", prose)]
        for line in [*lines, *spans]:
            try:
                check_line(line)
            except Exception as error:
                if line not in spans or type(error).__name__ != "MissingParameter":  # a sentence may leave it out
                    error.add_note(f"{page}: {line}")
                    raise
            checked += 1
    assert checked > 60


def test_configurations_are_valid(tmp_path):
    found = [(page, block) for page in PAGES for block in blocks(page, "yaml") if "kind:" in block]
    assert found
    for _, block in found:
        Config.model_validate(yaml.safe_load(block))


def test_links_resolve():
    generated = {ROOT / "docs" / "reference" / name for name in ("cli.md", "configuration.md")}  # by docs/hooks.py
    broken = []
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", BLOCK.sub("", text)):
            path = ((ROOT / page).parent / target).resolve()
            if "://" not in target and not path.exists() and path not in generated:
                broken.append(f"{page}: {target}")
    assert not broken


def test_figures_are_those_of_the_results():
    for page, text in PAGES.items():
        assert figures().fill(text) == text, f"{page}: run `python docs/figures.py`"


def test_figures_of_a_default_run_replace_the_recorded_ones(tmp_path):
    machine = {"cpu": "Slow CPU", "cpus": 2, "load": 0.1, "date": "2031-01-02", "commit": "abc", "torch": "9.9"}

    def row(operation, case, method, ours_threads, ratio, **other):
        measured = {
            "ms": 12 * ratio,
            "ours_ms": 12.0,
            "ratio": ratio,
            "interval": [ratio - 1, ratio + 1],
            "error": 3e-6,
        }
        shown = {"operation": operation, "case": case, "method": method, "device": "cpu", "threads": 1}
        return shown | measured | {"ours_threads": ours_threads, "mib": None, "ours_mib": 4.2} | other

    rows = [
        row("dense_crf", "375x500, 2 labels", "pydensecrf2", 1, 3.0),
        row("dense_crf", "375x500, 81 labels", "pydensecrf2", 1, 5.0),
        row("dense_crf", "375x500, 2 labels", "pydensecrf2", 2, 6.0, error=2e-5),
        row("dense_crf", "375x500, 2 labels", "pydensecrf2", 2, 99.0, device="cuda"),
        row("random_walk", "94x125, K = 1", "SciPy sparse", 1, 30.0),
    ]
    module = figures()
    module.RESULTS = tmp_path
    result = {"profile": "default", "machine": machine, "rows": rows}
    (tmp_path / "default.json").write_text(json.dumps(result))
    found = {name: module.FIGURES[name]() for name in ("crf_one_thread", "crf_two_threads", "walk_own", "walk_source")}
    source = "Slow CPU, 2031-01-02, commit abc,\n`benchmarks/results/default.json`"
    expected = ("3.0 to 5.0 times", "6.0 to 6.0 times", "12 ms and 4 MiB", source)
    assert tuple(found.values()) == expected
    assert module.FIGURES["crf_source"]() == f"marginals within 2e-05; {source}"
    table = module.FIGURES["default_table"]()
    assert (
        "| dense_crf | 375x500, 2 labels | pydensecrf2 | 72.0 (1) | 12.0 (2) | 6.0 [5.0, 7.0] | ? / 4 | 2e-05 |"
        in table
    )
    assert "| dense_crf (GPU) |" in table
    for broken, message in ((result | {"profile": "quick"}, "profile 'quick'"), (result | {"rows": []}, "no row with")):
        (tmp_path / "default.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message):
            module.FIGURES["crf_one_thread"]()


EXAMPLES = {
    "replace_pydensecrf.py": r"identical argmax: True",
    "refine_probabilities.py": r"accuracy 0\.\d+ -> 0\.\d+",
    "batch_on_threads.py": r"8 images.*bit-identical: True",
    "images_to_masks.py": r"8 masks in .*masks",
    "single_stage.py": r"50 iterations.* below 1e-4: True",
    "random_walk.py": r"mass inside the object: 0\.\d+ -> 0\.\d+",
}


@pytest.mark.usefixtures("small_grid")
def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert set(EXAMPLES) == {path.name for path in (ROOT / "examples").glob("*.py")}
    for name, expected in EXAMPLES.items():
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        assert re.search(expected, capsys.readouterr().out.replace("\n", " ")), name
