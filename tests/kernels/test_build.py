"""What a build of the CPU kernels must hold, whichever compiler made it."""

import platform
from pathlib import Path

import pytest

from amn_fast._native import missing, native

CPUINFO = Path("/proc/cpuinfo")
NEEDED = {"avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"}, "avx2": {"avx2", "fma", "bmi2"}, "baseline": set()}
"""Instruction sets, the fastest first, and the flags that Linux lists for them."""

pytestmark = pytest.mark.skipif(bool(missing), reason="no compiled kernels")


def test_every_instruction_set_is_compiled_in():
    sets = native.compiled_instruction_sets()
    assert set(sets) >= {"dense_crf", "random_walk", "pixel_loss", "pair_loss", "merge"}
    if platform.libc_ver()[0] == "glibc":
        expected = {"aarch64": ["neon"], "x86_64": ["baseline", "avx2", "avx512"]}[platform.machine()]
        assert {operation: found for operation, found in sets.items() if found != expected} == {}


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPUINFO.exists(), reason="one instruction set, or not listed")
def test_the_fastest_instruction_set_of_the_machine_is_used():
    (flags, *_) = (line.split() for line in CPUINFO.read_text().splitlines() if line.startswith("flags"))
    fastest = next(name for name, needed in NEEDED.items() if needed <= set(flags))
    assert (native.walk_instructions(), native.crf_instruction_set()) == (fastest, fastest)
