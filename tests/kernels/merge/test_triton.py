"""The Triton kernel compiled for three GPUs without one."""

import pytest

from case_table import each

pytest.importorskip("torch")
pytest.importorskip("triton")


@each(
    {
        "channels, softmax, fixed": [
            (128, True, {}),
            (32, True, {}),
            (4, False, {}),
            (2, True, {"scales": 1, "width": 1, "pixels": 1}),
        ]
    }
)
def test_compiles_without_spills(channels, softmax, fixed, spilled_bytes):
    import triton.language as tl

    from amn_fast.kernels.merge import triton as kernels

    constants = {"SOFTMAX": softmax, "CHANNELS": channels, "DTYPE": tl.float32, "BLOCK": kernels.BLOCK, **fixed}
    pointers = {"maps": "*fp32", "table": "*i64", "steps": "*fp64", "slots": "*i32", "out": "*fp32"}
    assert max(spilled_bytes(kernels.merge_kernel, pointers, constants).values()) == 0
