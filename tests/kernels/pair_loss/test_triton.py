"""The Triton kernels compiled for three GPUs without one."""

import pytest

from case_table import each

pytest.importorskip("torch")
pytest.importorskip("triton")


@each({"maps": ["fp32", "fp64"]})
def test_compiles_without_spills(maps, spilled_bytes):
    from amn_fast.kernels.pair_loss import triton as kernels

    constants = {"REACH": 9, "IGNORE": 255, "BLOCK": kernels.BLOCK}
    tables = {"labels": "*u8", "offsets": "*i32", "tallies": "*i32"}
    deciding = tables | {"edge": f"*{maps}", "paths": "*i32"}
    displacement = tables | {"displacement": f"*{maps}", "counts": "*i32", "infinite": f"*{maps}"}
    assert max(spilled_bytes(kernels.deciding_kernel, deciding, constants).values()) == 0
    assert max(spilled_bytes(kernels.displacement_kernel, displacement, constants).values()) == 0
