"""amn_fast.compat.pydensecrf in place of pydensecrf: installed, and by `amn-fast shim`."""

import os
import subprocess
import sys

from amn_fast.compat import pydensecrf
from amn_fast.compat.pydensecrf import densecrf as dcrf
from amn_fast.compat.run_script import SHIM

USER_CODE = """
import pydensecrf.densecrf as dcrf
import pydensecrf.utils as utils
from pydensecrf.densecrf import DenseCRF2D, DIAG_KERNEL
from pydensecrf.utils import unary_from_softmax, create_pairwise_bilateral
import importlib.util, pydensecrf, sys
assert importlib.util.find_spec("pydensecrf") is not None
assert pydensecrf.densecrf is dcrf and dcrf.DenseCRF2D is DenseCRF2D
assert "torch" not in sys.modules
print(DenseCRF2D.__module__, *sys.argv[1:])
"""
CHILDREN = """
import multiprocessing, subprocess, sys
import pydensecrf.densecrf as dcrf

def where(_):
    return dcrf.DenseCRF.__module__

if __name__ == "__main__":
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(pool.map(where, [0])[0])
    code = "import pydensecrf.densecrf as d; print(d.DenseCRF.__module__)"
    print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
"""
OURS = "amn_fast.compat.pydensecrf.densecrf"


def python(*arguments, cwd=None):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120)


def test_install_answers_imports_without_torch():
    code = f"from amn_fast.compat.pydensecrf import install; install(); {USER_CODE.strip()!r} and exec({USER_CODE!r})"
    result = python("-c", code)
    assert result.stdout.split() == [OURS], result.stderr


def test_install_replaces_another_pydensecrf(monkeypatch):
    for name in ("pydensecrf", "pydensecrf.densecrf", "pydensecrf.utils", "pydensecrf.eigen"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    pydensecrf.install()
    import pydensecrf as installed
    import pydensecrf.densecrf as installed_crf

    assert installed is pydensecrf
    assert installed_crf is dcrf


AS_PYTHON = """
import atexit, os, pickle, sys
import pydensecrf
class Thing: pass
atexit.register(lambda: print(len(pickle.dumps(Thing())) > 0))
sys.excepthook = lambda kind, error, trace: print("hook", kind.__name__)
print(__name__, globals().get("__file__"), sys.argv, sys.path[0], "amn_fast" in pydensecrf.__file__)
raise ValueError
"""


def test_shim_runs_a_program_as_python_would(tmp_path, monkeypatch):
    """Scripts, modules, folders, standard input, compared with Python itself, which finds the stand-in by its path."""
    monkeypatch.chdir(tmp_path)
    for folder in ("package", "folder"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__main__.py").write_text(AS_PYTHON)
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "user.py").write_text(AS_PYTHON)
    plain = {**os.environ, "PYTHONPATH": str(SHIM)}
    for program in (
        ["user.py", "--help", "a b"],
        ["-m", "package", "-x"],
        ["folder", "1"],
        ["-", "x"],
        ["-c", AS_PYTHON],
    ):
        options = {"input": AS_PYTHON, "capture_output": True, "text": True, "check": False}
        expected = subprocess.run([sys.executable, *program], env=plain, **options)
        ours = subprocess.run([sys.executable, "-m", "amn_fast", "shim", *program], **options)
        assert "True" in expected.stdout, expected.stderr
        assert (ours.returncode, ours.stdout) == (expected.returncode, expected.stdout), (program, ours.stderr)


def test_shim_reaches_child_processes(tmp_path):
    script = tmp_path / "user.py"
    script.write_text(CHILDREN)
    result = python("-m", "amn_fast", "shim", str(script))
    assert result.stdout.split() == [OURS] * 3, result.stderr


def test_shim_shows_the_scripts_traceback_and_names_a_missing_script(tmp_path):
    script = tmp_path / "user.py"
    script.write_text("import pydensecrf.densecrf as dcrf\ndcrf.DenseCRF2D(0, 1, 2)\n")
    result = python("-m", "amn_fast", "shim", str(script))
    assert result.returncode == 1
    assert 'user.py", line 2' in result.stderr
    assert "w is 0" in result.stderr
    result = python("-m", "amn_fast", "shim", str(tmp_path / "none.py"))
    assert result.returncode == 1
    assert "none.py: there is no such script" in result.stderr


def test_shim_works_without_the_command_lines_dependencies(tmp_path):
    script = tmp_path / "user.py"
    script.write_text(USER_CODE)
    hide = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "hidden = ('typer', 'rich', 'pydantic', 'yaml', 'PIL', 'torch')\n"
        "u.find_spec = lambda name, *rest: None if name in hidden else find(name, *rest)\n"
        "for name in hidden: sys.modules[name] = None\n"
        "sys.argv = ['amn-fast', 'shim', *sys.argv[1:]]\n"
        "from amn_fast.__main__ import main; main()"
    )
    script.write_text(USER_CODE.replace('assert "torch" not in sys.modules', ""))
    result = python("-c", hide, str(script), "one")
    assert result.stdout.split() == [OURS, "one"], result.stderr
    result = python("-c", hide, str(tmp_path / "none.py"))
    assert result.returncode == 1
    assert "there is no such script" in result.stderr
