"""The driver finds failures, crashes and hangs, and prints the command that repeats each."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

MODULES = {
    "fuzz_good": "def one(rng, folder):\n    assert folder.is_dir()\n    print('noise')\n",
    "fuzz_wrong": "def one(rng, folder):\n    assert rng.random() < 0, 'a fault'\n",
    "fuzz_crash": "import os\ndef one(rng, folder):\n    os.abort()\n",
    "fuzz_x_hang": "import time\ndef one(rng, folder):\n    time.sleep(60)\n",
}


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder), "--seconds", "0", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_failures_crashes_and_hangs_are_found_and_can_be_repeated(tmp_path):
    shutil.copy(Path(__file__).with_name("__main__.py"), tmp_path)
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    done = run(tmp_path, "--seed", "7", "--limit", "5")
    assert done.returncode == 1
    assert all(f"{name}: 1 cases" in done.stdout for name in MODULES)
    problems = dict(re.findall(r"FAILED (\w+) seed \d+\n([\s\S]*?)\nrepeat: ", done.stdout))
    assert set(problems) == {"fuzz_wrong", "fuzz_crash", "fuzz_x_hang"}
    assert "AssertionError: a fault" in problems["fuzz_wrong"]
    assert problems["fuzz_crash"] == "the process died with exit code -6"
    assert problems["fuzz_x_hang"] == "no answer within 5 s"
    seeds = re.findall(r"FAILED fuzz_wrong seed (\d+)", done.stdout)
    (tmp_path / "fuzz_x_hang.py").unlink()  # the last one: others keep their seeds
    assert seeds == re.findall(r"FAILED fuzz_wrong seed (\d+)", run(tmp_path, "--seed", "7").stdout)
    repeated = run(tmp_path, "--case", f"fuzz_wrong:{seeds[0]}")
    assert repeated.returncode == 1
    assert "AssertionError: a fault" in repeated.stderr
    good = run(tmp_path, "--only", "fuzz_good")
    assert (good.returncode, good.stdout.splitlines()[-2:]) == (0, ["fuzz_good: 1 cases", "no failures"])
