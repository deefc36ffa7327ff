"""Compiling Triton kernels ahead of time for GPUs that are not here."""

import re
import subprocess

import pytest

ARCHITECTURES = (80, 90, 100)


@pytest.fixture
def spilled_bytes(tmp_path):
    """A function (kernel, pointer types, constants) -> {architecture: bytes spilled}. Other arguments are int32."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def measure(kernel, pointers, constants):
        signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
        spills = {}
        for architecture in ARCHITECTURES:
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
            assert compiled.asm["cubin"]
            code = tmp_path / f"{architecture}.ptx"
            code.write_text(compiled.asm["ptx"])
            knobs = triton.knobs.nvidia
            assembler = (knobs.ptxas_blackwell if architecture >= 100 else knobs.ptxas).path
            target = re.search(r"\.target (\w+)", compiled.asm["ptx"]).group(1)
            command = [assembler, "-v", "--gpu-name", target, str(code), "-o", str(tmp_path / "out.cubin")]
            report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            spills[architecture] = int(re.search(r"(\d+) bytes spill stores", report).group(1))
        return spills

    return measure
