"""The Triton kernels compiled ahead of time for GPUs that are not here."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from case_table import each

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

TYPES = {
    "images": "*i64",
    "blocks": "*i64",
    "offsets": "*i32",
    "paths": "*i32",
    "path_ends": "*i32",
    "buffer_size": "i64",
    "planes": "i32",
    "first": "i32",
    "last": "i32",
}  # all others are float32 pointers
KERNELS = [
    ("start_kernel", {"BLOCK": 1024}, 4),
    ("affinity_kernel", {"BLOCK": 1024}, 4),
    ("scale_kernel", {"BLOCK": 1024}, 4),
    ("finish_kernel", {"BLOCK": 1024}, 4),
    *(
        ("walk_kernel", {"M": m, "BLOCK": 1024 // m, "WHOLE": whole, "PLAIN": plain}, 8 if whole else 4)
        for m in (1, 2, 4)
        for whole in (False, True)
        for plain in (False, True)
    ),
]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler")
@pytest.mark.parametrize("capability", [80, 90, 100])
@each({"name, constants, warps": KERNELS})
def test_compiles_ahead_of_time_without_spills(name, constants, warps, capability, tmp_path):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from amn_fast.kernels.random_walk import triton as kernels

    kernel = getattr(kernels, name)
    signature = {n: "constexpr" if n in constants else TYPES.get(n, "*fp32") for n in kernel.arg_names}
    compiled = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps},
    )
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    assert (stack, local) == (0, 0)  # spilled registers would lie there
    assert registers <= 96
