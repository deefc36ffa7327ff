"""Builds the CPU kernels; everything else about the package is in pyproject.toml."""

import os
import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_namespace_packages, find_packages, setup

SOURCES = sorted(str(path) for path in Path("kernels").rglob("*.cpp"))
HEADERS = sorted(str(path) for path in Path("kernels").rglob("*.hpp"))

# No -march: one binary serves every machine, and the kernels choose their instruction set when they run.
# No fused multiply-add and no fast-math: a lattice built with either is another lattice.
if sys.platform == "win32":
    FLAGS = ["/O2", "/fp:precise"]
else:
    FLAGS = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread", "-g0"]

native = Pybind11Extension(
    "amn_fast.kernels._native",
    SOURCES,
    depends=HEADERS,
    include_dirs=["kernels"],
    cxx_std=20,
    extra_compile_args=FLAGS,
    extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
    # Without a C++ compiler the package installs all the same and runs on its references; a wheel must not.
    optional="AMN_FAST_REQUIRE_NATIVE" not in os.environ,
)

ParallelCompile(default=0).install()  # one compiler for each CPU

setup(
    packages=[
        *find_namespace_packages(include=["amn_fast", "amn_fast.*"]),
        "amn_fast.kernels",
        *(f"amn_fast.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"amn_fast": "amn_fast", "amn_fast.kernels": "kernels"},
    package_data={
        "amn_fast": ["py.typed", "configs/*.yaml"],
        "amn_fast.report": ["*.jinja"],
        "amn_fast.review": ["*.html"],
        "amn_fast.kernels": ["**/*.cu", "**/*.hpp"],
    },
    include_package_data=False,  # the sources of the extension are for the sdist alone
    ext_modules=[native],
    cmdclass={"build_ext": build_ext},
)
