"""The Triton kernels compiled for three GPUs without one."""

import pytest

from case_table import each

pytest.importorskip("torch")
pytest.importorskip("triton")


ONES = {"width": 1, "pixels": 1, "logarithms": 1}  # Triton makes constants of arguments that are 1
CASES = [("fp32", {"sx": 1}), ("fp32", {"sc": 1}), ("bf16", {"sc": 1}), ("fp16", {"sx": 1}), ("fp64", ONES)]


@each({"logits, fixed": CASES})
def test_compiles_with_hardly_a_spill(logits, fixed, spilled_bytes):
    import triton.language as tl

    from amn_fast.kernels.pixel_loss import triton as kernels

    arithmetic = "fp64" if logits == "fp64" else "fp32"
    constants = {"IGNORE": 255, "ON": 0.6, "OFF": 0.005, "DTYPE": getattr(tl, f"float{arithmetic[2:]}")}
    constants |= {"BLOCK": kernels.BLOCK, "CHUNK": kernels.CHUNK, **fixed}
    tables = {
        "logits": f"*{logits}",
        "labels": "*u8",
        "rows": "*i32",
        "columns": "*i32",
        "normaliser": f"*{arithmetic}",
    }
    forward, backward = {"partials": f"*{arithmetic}"}, {"weights": f"*{arithmetic}", "gradient": f"*{logits}"}
    assert max(spilled_bytes(kernels.forward_kernel, tables | forward, constants).values()) <= 16
    assert max(spilled_bytes(kernels.backward_kernel, tables | backward, constants).values()) <= 16
