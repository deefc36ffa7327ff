"""What a build of the CPU kernels must hold, whichever compiler made it."""

import platform

import pytest

from amn_fast._native import missing, native


@pytest.mark.skipif(bool(missing), reason="no compiled kernels")
def test_every_instruction_set_is_compiled_in():
    expected = {"aarch64": ["neon"], "arm64": ["neon"], "x86_64": ["baseline", "avx2", "avx512"]}[platform.machine()]
    sets = native.compiled_instruction_sets()
    assert set(sets) >= {"dense_crf", "random_walk", "pixel_loss", "pair_loss", "merge"}
    if platform.libc_ver()[0] == "glibc":
        assert {operation: found for operation, found in sets.items() if found != expected} == {}
