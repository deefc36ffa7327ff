"""What is imported, what is shipped, and what works where something is missing."""

import importlib.metadata
import importlib.util
import inspect
import os
import pkgutil
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import amn_fast
from amn_fast import _info

ROOT = Path(__file__).parents[1]
LIGHT = ("ops.dense_crf", "ops.random_walk", "ops.lattice", "ops.unary", "ops.mask", "compat.irn")
HEAVY = {
    "torch", "torchvision", "timm", "triton", "PIL", "pydantic", "yaml", "typer", "rich", "safetensors", "jinja2",
    "matplotlib", "scipy", "skimage", "faster_coco_eval",
}  # fmt: skip

# The kernels' answers to a small question, and whether they came from the compiled module.
WORK = """
import numpy as np
from amn_fast._native import native
from amn_fast.ops.dense_crf import refine_seed
from amn_fast.ops.random_walk import random_walk
rng = np.random.default_rng(0)
image = rng.integers(0, 256, (24, 32, 3), np.uint8)
seed = refine_seed(image, rng.random((2, 24, 32), np.float32), [1, 3], fg=0.6, bg=0.3)
propagated = random_walk(rng.random((2, 6, 8), np.float32), rng.random((6, 8), np.float32))
"""


def python(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a Python of its own."""
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        timeout=300,
    )


# The contract: names and signatures. Further parameters are keyword-only and have a default.
PUBLIC = {
    "Config": None,
    "DenseCRF": "image, *, gaussian=(3, 3), bilateral=(50, 5, 10)",
    "Labeler": "run, *, device=None, threads=1, thresholds=None",
    "bilateral_filter": "image, values, sigma_rgb, sigma_xy",
    "dense_crf": """image, unary, *, gaussian=(3, 3), bilateral=(50, 5, 10), iterations=10,
        normalization="symmetric", prune=0, backend="auto", threads=None""",
    "energy_loss": "image, logits, labels, boxes, loss",
    "info": "",
    "local_affinity": "image, *, dilations=(1, 2, 4, 8, 12, 24), kind='par'",
    "make_mask": "activations, edge, keys, size",
    "merge_amn": "maps, size, valid, seed",
    "merge_cam": "maps, size, valid",
    "pair_loss": "edge_logits, displacement, labels, *, radius=10, ignore_index=255",
    "pixel_adaptive_refinement": "image, mask, *, dilations=(1, 2, 4, 8, 12, 24), iterations=10, kind='par'",
    "pixel_loss": "logits, labels, *, eps=0.4, ignore_index=255",
    "propagate": "mask, affinity, *, dilations=(1, 2, 4, 8, 12, 24), iterations=10",
    "random_walk": "x, edge, *, radius=5, beta=10, exp_times=8",
    "read_activations": "path",
    "refine_seed": "image, activations, keys, *, fg, bg, bilateral=(50, 5, 10), threads=None",
    "run": "config",
    "selftest": "device='auto'",
    "unary_from_labels": "labels, n_labels",
    "unary_from_softmax": "softmax",
    "nn.DenseCRFLoss": "weight, sigma_rgb, sigma_xy, scale_factor",
    "nn.DenseEnergyLoss": "weight, sigma_rgb, sigma_xy, scale_factor",
    "nn.MeanField": "num_labels, num_iterations=5",
    "nn.PAMR": "num_iter=1, dilations=(1, 2, 4, 8, 12, 24)",
    "nn.PAR": "dilations, num_iter",
    "nn.PairLoss": "radius=10, ignore_index=255",
    "nn.PixelLoss": "eps=0.4, ignore_index=255",
    "models.CamNet": "n_classes, backbone, weights",
    "models.AmnNet": "n_classes, backbone, weights",
    "models.IrnNet": "backbone, weights",
    "models.DeepLabV2": "n_classes, backbone, weights",
    "models.load_published": "path, net",
    "models.published_state_dict": "net",
    "metrics.Confusion": None,
    "metrics.ThresholdCurve": None,
    "compat.irn.propagate_to_edge": "x, edge, radius=5, beta=10, exp_times=8",
    "compat.irn.crf_inference_label": "img, labels, t=10, n_labels=21, gt_prob=0.7",
    "compat.irn.crf_inference": "img, probs, t=10, scale_factor=1, labels=21",
    "compat.bilateralfilter.bilateralfilter": "image, _in, out, H, W, sigmargb, sigmaxy",
    "compat.bilateralfilter.bilateralfilter_batch": "images, ins, outs, N, K, H, W, sigmargb, sigmaxy",
    "compat.bilateralfilter.install": "",
    "compat.pydensecrf.install": "",
}


def test_public_names_and_signatures():
    pytest.importorskip("torch")
    flat = {name for name in PUBLIC if "." not in name}
    assert set(amn_fast.__all__) == {"__version__", *flat}
    assert {*flat, "nn", "models", "metrics", "compat"} <= set(dir(amn_fast))
    with pytest.raises(AttributeError, match=r"^module 'amn_fast' has no attribute 'dense_krf'$"):
        amn_fast.dense_krf  # noqa: B018
    for name, signature in PUBLIC.items():
        value = pkgutil.resolve_name(f"amn_fast.{name}")
        if signature is None:
            assert inspect.isclass(value)
            continue
        contract = inspect.signature(eval(f"lambda {' '.join(signature.split())}: None")).parameters.values()
        parameters = dict(inspect.signature(value).parameters)
        for expected in contract:
            found = parameters.pop(expected.name)
            assert found.kind == expected.kind, (name, found)
            if expected.default is not expected.empty:
                assert found.default == expected.default, (name, found)
        for further in parameters.values():
            assert further.default is not further.empty or further.kind is further.VAR_KEYWORD, (name, further)


def test_what_an_import_loads():
    done = python("import sys, amn_fast; print(*{name.partition('.')[0] for name in sys.modules})")
    assert not (HEAVY | {"numpy", "cv2"}) & set(done.stdout.split()), done.stderr
    for module in LIGHT:
        done = python(f"import sys, amn_fast.{module}; print(*{{name.partition('.')[0] for name in sys.modules}})")
        assert done.returncode == 0, done.stderr
        assert not HEAVY & set(done.stdout.split())


def test_the_light_part_works_where_nothing_else_is_installed():
    blocked = f"import sys\nfor name in {sorted(HEAVY)}: sys.modules[name] = None\n"
    done = python(blocked + WORK + "print(seed.shape, propagated.shape)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(24, 32) (2, 6, 8)"


# An import hook, since a module that is `None` in sys.modules has no spec to be found.
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in {names} else find(name, package)
sys.meta_path.insert(0, Hidden())
"""


def test_an_import_that_misses_something_names_the_extra():
    for hidden, statement in (
        ("torch", "import amn_fast.models"),
        ("timm", "import amn_fast.models"),
        ("torch", "from amn_fast import pixel_loss"),
        ("pydantic", "import amn_fast.config"),
        ("PIL", "import amn_fast.data.image"),
    ):
        done = python(HIDE.format(names={hidden}) + statement)
        assert done.returncode != 0, statement
        last = done.stderr.splitlines()[-1]
        assert last.startswith("amn_fast.errors.MissingExtra: "), last
        assert "pip install 'amn-fast[pipeline]'" in last


def test_the_command_line_without_its_dependencies():
    code = HIDE.format(names={"typer", "yaml"}) + "import amn_fast.__main__ as m\nsys.argv = ['amn-fast', {}]\nm.main()"
    done = python(code.replace("{}", "'run', 'demo'"))
    assert done.returncode == 1
    assert done.stderr == (
        "amn-fast: typer, yaml not installed; `pip install 'amn-fast[pipeline]'` brings the command line\n"
    )
    done = python(code.replace("{}", "'info'"))
    assert done.returncode == 0
    assert done.stdout.startswith("amn_fast ")


def test_info_says_what_is_here():
    lines = amn_fast.info().splitlines()
    assert re.fullmatch(r"amn_fast \d+\.\d+\.\d+, Python 3\.\d+\.\d+\S*, \w+ \w+, \d+ cores", lines[0])
    assert f"numpy {importlib.metadata.version('numpy')}" in lines[1]
    assert re.fullmatch(r"threads: \d+ by default; AMN_FAST_BACKEND: .+", lines[2])
    backends = dict(line.removeprefix("backend ").split(": ", 1) for line in lines[3:])
    assert list(backends) == ["reference", "cpu", "triton", "cuda"]
    assert backends["reference"] == "ready"
    assert all(re.match(r"ready|missing: \S", state) for state in backends.values())


def test_info_says_why_a_backend_is_missing(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(_info, "missing", "no compiler was there")
    monkeypatch.setattr(_info, "_cuda_device", lambda: "a device")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("triton", "cuda") else find(name))
    lines = amn_fast.info().splitlines()
    assert "backend cpu: missing: no compiler was there" in lines
    assert "backend triton: missing: Triton is not installed (extra 'gpu')" in lines
    assert "backend cuda: missing: cuda-core is not installed (extra 'gpu')" in lines
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    assert "backend cuda: missing: PyTorch is not installed (extra 'pipeline')" in amn_fast.info().splitlines()


def shipped_sources() -> set[str]:
    """What a user's installation needs, by its path in the project."""
    kept = (".py", ".yaml", ".jinja", ".html", ".typed", ".cu", ".hpp", ".cpp")
    return {
        str(path.relative_to(ROOT))
        for folder in ("amn_fast", "kernels")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in kept or path.name == "py.typed"
    }


def test_wheels_are_built_with_debians_pythons(tmp_path, monkeypatch):
    """Their pyconfig.h includes that of the machine; the build makes it available to zig for each architecture."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    build_wheels = importlib.import_module("build_wheels")
    include = tmp_path / "usr" / "include"
    for folder in ("python3.14", f"{platform.machine()}-linux-gnu/python3.14"):
        (include / folder).mkdir(parents=True)
        (include / folder / "pyconfig.h").write_text(folder)
    interpreter = tmp_path / "python3.14"
    interpreter.write_text(f"#!/bin/sh\necho {include}/python3.14/pyconfig.h\n")
    interpreter.chmod(0o755)
    for arch in build_wheels.ARCHITECTURES:
        found = build_wheels.debian_headers(arch, "3.14", str(interpreter), tmp_path)
        header = found / f"{arch}-linux-gnu" / "python3.14" / "pyconfig.h"
        assert header.read_text() == f"{platform.machine()}-linux-gnu/python3.14"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, unpacked; built from a copy, so that no build leaves anything in the project."""
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    copy = tmp_path_factory.mktemp("copy") / "project"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "Makefile", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    for name in ("amn_fast", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tests").mkdir()
    (copy / "tests" / "test_nothing.py").write_text("")
    build = f"import os, setuptools.build_meta as b; os.chdir({str(copy)!r}); b.build_sdist({str(copy)!r})"
    done = python(build)
    assert done.returncode == 0, done.stderr
    (archive,) = copy.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(copy.parent / "sdist", filter="data")
    (unpacked,) = (copy.parent / "sdist").iterdir()
    return unpacked


def test_the_sdist_holds_all_sources_and_nothing_built(sdist):
    held = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    assert shipped_sources() <= held
    assert {"pyproject.toml", "setup.py", "Makefile", "LICENSE", "README.md", "tests/test_nothing.py"} <= held
    assert not [name for name in held if name.endswith((".so", ".pyc", ".o"))]


@pytest.fixture(scope="module")
def without_compiler(sdist, tmp_path_factory):
    """The package, installed from its sdist on a machine without a C++ compiler."""
    pytest.importorskip("pip")
    target = tmp_path_factory.mktemp("installed")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--target", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(sdist)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CC": "false", "CXX": "false"},
    )
    assert done.returncode == 0, done.stderr
    return target


def test_a_wheel_holds_the_package_and_nothing_else(without_compiler):
    tops = {path.name for path in without_compiler.iterdir()}
    assert tops == {"amn_fast", "bin", f"amn_fast-{amn_fast.__version__}.dist-info"}
    held = {
        str(path.relative_to(without_compiler))
        for path in (without_compiler / "amn_fast").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    wanted = {name.replace("kernels/", "amn_fast/kernels/", 1) for name in shipped_sources() if "kernels/" in name}
    wanted |= {name for name in shipped_sources() if name.startswith("amn_fast/")}
    assert held == {name for name in wanted if not name.endswith(".cpp")}


def installed(target: Path, code: str) -> tuple[str, str]:
    """What `code` prints and warns where the package stands in `target`; without site and this folder's package."""
    libraries = {str(Path(importlib.util.find_spec(name).origin).parents[1]) for name in ("numpy", "cv2")}
    done = python(code, "-S", "-P", PYTHONPATH=os.pathsep.join([str(target), *libraries]))
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_without_a_compiler_everything_runs_on_the_references(without_compiler, tmp_path):
    answers = tmp_path / "answers.npz"
    printed, warned = installed(
        without_compiler,
        WORK
        + WORK
        + "import amn_fast; print(native, amn_fast.__file__); print(amn_fast.info())\n"
        + f"np.savez({str(answers)!r}, seed=seed, propagated=propagated)",
    )
    printed = printed.splitlines()
    assert warned.count("RuntimeWarning") == 1, "an operation's import warns once, its calls do not"
    assert "times slower: the C++ kernels were not built" in warned
    assert "reinstall with a C++20 compiler at hand, or install a wheel for this platform" in warned
    assert installed(without_compiler, "import amn_fast; print(amn_fast.__version__)")[1] == ""
    assert printed[0] == f"None {without_compiler / 'amn_fast' / '__init__.py'}"
    (cpu,) = (line for line in printed if line.startswith("backend cpu: "))
    assert cpu.startswith("backend cpu: missing: the C++ kernels were not built or do not load (")
    assert cpu.endswith("; reinstall with a C++20 compiler at hand")

    import numpy as np

    from amn_fast.ops.dense_crf import refine_seed
    from amn_fast.ops.random_walk import random_walk

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 32, 3), np.uint8)
    seed = refine_seed(image, rng.random((2, 24, 32), np.float32), [1, 3], fg=0.6, bg=0.3)
    propagated = random_walk(rng.random((2, 6, 8), np.float32), rng.random((6, 8), np.float32))
    with np.load(answers) as found:
        assert (found["seed"] == seed).mean() > 0.99
        np.testing.assert_allclose(found["propagated"], propagated, rtol=1e-4, atol=1e-5)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_readmes_commands_exist():
    readme = (ROOT / "README.md").read_text()
    made = set(re.findall(r"(?:^|[`$]|\s)make ([a-z-]+)(?=[`\s])", re.sub(r"make-\w+", "", readme)))
    assert {"demo", "test"} <= made
    assert made <= make_targets()
    pytest.importorskip("typer")
    pytest.importorskip("yaml")
    pytest.importorskip("pydantic")
    import typer

    from amn_fast.cli import app

    commands = set(typer.main.get_command(app).commands)
    named = set(re.findall(r"(?:^|[`$]) ?amn-fast ([a-z-]+)", readme, re.MULTILINE))
    assert named
    assert named <= commands


def test_each_make_target_sets_up_what_it_needs():
    text = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "bench", "lint"):
        assert f"{target}: $(VENV)/{target}.stamp" in text
        extras = re.search(rf"\$\(VENV\)/{target}\.stamp: EXTRAS = (\S+)", text)[1].split(",")
        pyproject = (ROOT / "pyproject.toml").read_text()
        assert all(re.search(rf"^{extra} = \[", pyproject, re.MULTILINE) for extra in extras)
