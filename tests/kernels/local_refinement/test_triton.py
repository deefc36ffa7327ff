"""The Triton kernels compiled for three GPUs without one."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")


@pytest.mark.parametrize("bits", [32, 64])
def test_compiles_without_spills(bits, spilled_bytes):
    import triton.language as tl

    from amn_fast.kernels.local_refinement import triton as kernels

    dtype = {"DTYPE": getattr(tl, f"float{bits}"), "BLOCK": kernels.BLOCK}
    floats = dict.fromkeys(("image", "position", "out", "mask", "affinity"), f"*fp{bits}") | {"shifts": "*i32"}
    for par in (True, False):
        constants = {"SCALE": 1.0, "PAR": par, **dtype}
        assert max(spilled_bytes(kernels.affinity_kernel, floats, constants).values()) == 0
    for transpose in (True, False):
        constants = {"TRANSPOSE": transpose, "CHUNK": kernels.CHUNK, **dtype}
        assert max(spilled_bytes(kernels.step_kernel, floats, constants).values()) == 0
