"""Check built wheels as a user meets them: no compiler, empty environments, the oldest and the newest NumPy.

    python tools/check_wheels.py dist

Every x86-64 wheel whose interpreter is found here is installed and tested on it. The arm64 wheel for CPython 3.11 runs
under qemu-user with Debian's arm64 interpreter, which apt downloads into a temporary folder. Answers are compared with
those of the source build that runs this script. Other wheels are looked into, not run, and the output says so.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from build_wheels import find_pythons

LIMIT_MIB, LIMIT_IMPORT_S = 3.0, 0.3
LIMIT_DIFFERENCE = 2e-6
"""Of arm64's answers from x86-64's; on one architecture they are equal."""
OLDEST_NUMPY = {"3.11": "2.0.0", "3.12": "2.0.0", "3.13": "2.1.0", "3.14": "2.3.2"}
INSTRUCTION_SETS = {"x86_64": ["avx2", "avx512", "baseline"], "aarch64": ["neon"]}
ELF_MACHINE = {"x86_64": 62, "aarch64": 183}
ARM_PACKAGES = [
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6"),
    *("zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1", "libcrypt1"),
]
TEST_PACKAGES = ["pytest", "hypothesis"]
ROOT = Path(__file__).parents[1]

ANSWERS = """
import json, sys, time
start = time.perf_counter()
import amn_fast
seconds = time.perf_counter() - start
import numpy as np
from amn_fast._native import missing, native
from amn_fast.ops.dense_crf import dense_crf, refine_seed
from amn_fast.ops.random_walk import random_walk
assert not missing, missing
rng = np.random.default_rng(0)
image = rng.integers(0, 256, (61, 83, 3), dtype=np.uint8)
marginals = dense_crf(image, 4 * rng.random((4, 61, 83), dtype=np.float32))
activations = rng.random((2, 61, 83), dtype=np.float32)
seed = refine_seed(image, activations, [3, 7], fg=0.6, bg=0.3)
propagated = random_walk(activations[:, ::4, ::4].copy(), rng.random((16, 21), dtype=np.float32))
json.dump({
    "import_seconds": seconds, "numpy": np.__version__, "file": amn_fast.__file__,
    "instruction_sets": native.compiled_instruction_sets(),
    "used": [native.walk_instructions(), native.crf_instruction_set()],
    "marginals": marginals.ravel().tolist(), "seed": seed.ravel().tolist(), "propagated": propagated.ravel().tolist(),
}, sys.stdout)
"""


def answers(command: list[str], environment: dict[str, str], folder: Path) -> dict:
    """What an installation computes for a few fixed problems, and how long its import takes (best of 3)."""
    best: dict = {}
    for _ in range(3):
        run = subprocess.run([*command, "-c", ANSWERS], capture_output=True, text=True, env=environment, cwd=folder)
        if run.returncode:
            sys.exit(f"failed: {run.stderr}")
        found = json.loads(run.stdout)
        if not best or found["import_seconds"] < best["import_seconds"]:
            best = found
    return best


def difference(first: dict, second: dict) -> float:
    """The largest difference of two installations' numbers; seeds must be identical."""
    if first["seed"] != second["seed"]:
        sys.exit("the seeds differ from the source build's")
    pairs = [pair for key in ("marginals", "propagated") for pair in zip(first[key], second[key], strict=True)]
    return max(abs(a - b) for a, b in pairs)


def judge(wheel: Path, arch: str, found: dict, source: dict, emulated: bool) -> None:
    """Hold one installation against the limits and print its line."""
    size = wheel.stat().st_size / 2**20
    apart, limit = difference(found, source), LIMIT_DIFFERENCE if emulated else 0.0
    if found["file"] == source["file"]:
        sys.exit(f"{wheel.name}: the source tree was imported in its place")
    print(
        f"  {wheel.name}: {size:.2f} MiB, NumPy {found['numpy']}, import {found['import_seconds']:.3f} s"
        f"{' (emulated)' if emulated else ''}, {found['instruction_sets']}, uses {found['used'][0]}, "
        f"largest difference {apart:.1e}",
        flush=True,
    )
    problems = [
        f"size {size:.2f} MiB, expected below {LIMIT_MIB}" if size >= LIMIT_MIB else "",
        f"difference {apart:.1e}, expected {limit} or less" if apart > limit else "",
        *(
            f"{operation} has {sets}, expected {INSTRUCTION_SETS[arch]}"
            for operation, sets in found["instruction_sets"].items()
            if sorted(sets) != INSTRUCTION_SETS[arch]
        ),
    ]
    if not emulated:
        problems += [
            "import is too slow" if found["import_seconds"] > LIMIT_IMPORT_S else "",
            f"uses {found['used']}, expected {source['used']}" if found["used"] != source["used"] else "",
        ]
    if any(problems):
        sys.exit(f"{wheel.name}: " + "; ".join(filter(None, problems)))


def look_inside(wheel: Path, arch: str) -> None:
    """Check what can be checked without running a wheel, and print its line.

    Its size, and that its extension is for the architecture and names every instruction set it has to choose from.
    """
    size = wheel.stat().st_size / 2**20
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".so"))
        extension = archive.read(name)
    machine = int.from_bytes(extension[18:20], "little")  # of the ELF header
    choices = INSTRUCTION_SETS[arch] if len(INSTRUCTION_SETS[arch]) > 1 else []
    absent = [one for one in choices if b"\0" + one.encode() + b"\0" not in extension]
    if size >= LIMIT_MIB or machine != ELF_MACHINE[arch] or absent or not name.endswith(f"-{arch}-linux-gnu.so"):
        sys.exit(f"{wheel.name}: {size:.2f} MiB, {name} for ELF machine {machine}, without {absent or 'nothing'}")
    print(f"  {wheel.name}: {size:.2f} MiB, looked into; not run, no interpreter for it here", flush=True)


def run_tests(command: list[str], environment: dict[str, str], folder: Path) -> None:
    """Run the light tests, whose progress is shown: under emulation they take half an hour or more."""
    tests = [*command, str(ROOT / "tests" / "light.py"), "-q"]
    if subprocess.run(tests, env=environment, cwd=folder).returncode:
        sys.exit("the light tests failed")


def check_installed(wheel: Path, python: str, numpy: str, source: dict) -> None:
    """Install one wheel into an empty environment without a compiler in PATH, compare, test."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([python, "-m", "venv", str(folder / "env")], check=True)
        inside = folder / "env" / "bin" / "python"
        environment = {"PATH": str(inside.parent), "HOME": temporary, "LANG": "C.UTF-8"}
        command = [str(inside), "-m", "pip", "install", "--quiet", "--only-binary=:all:", str(wheel), *TEST_PACKAGES]
        subprocess.run([*command, numpy], check=True, env=os.environ | environment)
        if shutil.which("cc", path=environment["PATH"]) or shutil.which("gcc", path=environment["PATH"]):
            sys.exit("a compiler is in PATH, so this proves nothing")
        judge(wheel, "x86_64", answers([str(inside)], environment, folder), source, emulated=False)
        run_tests([str(inside)], environment, folder)


def arm_interpreter(folder: Path) -> tuple[Path, Path]:
    """An arm64 CPython 3.11 under emulation, and its PYTHONHOME; Debian's packages are unpacked into `folder`."""
    emulator = shutil.which("qemu-aarch64")
    if emulator is None:
        sys.exit("qemu-aarch64 is not installed; on Debian: apt-get install qemu-user")
    root, packages = folder / "root", folder / "packages"
    (folder / "lists" / "partial").mkdir(parents=True)
    packages.mkdir()
    apt = ["apt-get", "-qq", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"]
    apt += ["-o", f"Dir::State::Lists={folder / 'lists'}"]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *ARM_PACKAGES], check=True, cwd=packages, stderr=subprocess.DEVNULL)
    for package in packages.iterdir():
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    # A program of its own, since tests start further interpreters by sys.executable.
    command = folder / "python3.11"
    command.write_text(f'#!/bin/sh\nexec {emulator} -L {root} -0 "$0" {root / "usr/bin/python3.11"} "$@"\n')
    command.chmod(0o755)
    return command, root / "usr"


def check_emulated(wheel: Path, source: dict) -> None:
    """Run the arm64 wheel for CPython 3.11 under emulation, compare, test."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python, home = arm_interpreter(folder)
        site = home / "local/lib/python3.11/dist-packages"
        tags = [f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)] + ["manylinux2014_aarch64", "any"]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--target", str(site)]
        pip += ["--python-version", "3.11", "--implementation", "cp", *(f"--platform={tag}" for tag in tags)]
        subprocess.run([*pip, str(wheel), *TEST_PACKAGES], check=True)
        environment = {"PATH": "/usr/bin", "HOME": temporary, "PYTHONHOME": str(home), "LANG": "C.UTF-8"}
        judge(wheel, "aarch64", answers([str(python)], environment, folder), source, emulated=True)
        run_tests([str(python)], environment, folder)


def main() -> None:
    """Check every wheel in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    wheels = [path.resolve() for path in sorted(arguments.folder.glob("*.whl"))]
    wheels.sort(key=lambda wheel: "aarch64" in wheel.stem)  # the emulator takes longest
    if not wheels:
        sys.exit(f"{arguments.folder} holds no wheel; run `make wheels` first")
    for wheel in wheels:
        subprocess.run([sys.executable, "-m", "auditwheel", "show", str(wheel)], check=True, stdout=subprocess.DEVNULL)
    pythons = find_pythons([])
    source = answers([sys.executable], dict(os.environ), ROOT)
    for wheel in wheels:
        tag, platforms = wheel.stem.split("-")[2], wheel.stem.split("-")[4]
        version = f"{tag[2]}.{tag[3:]}"
        if "aarch64" in platforms and version == "3.11":
            check_emulated(wheel, source)
        elif "x86_64" in platforms and version in pythons and platform.machine() == "x86_64":
            for numpy in (f"numpy=={OLDEST_NUMPY[version]}", "numpy"):
                check_installed(wheel, pythons[version], numpy, source)
        else:
            look_inside(wheel, "aarch64" if "aarch64" in platforms else "x86_64")


if __name__ == "__main__":
    main()
