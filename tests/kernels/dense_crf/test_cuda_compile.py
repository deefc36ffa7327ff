"""The GPU kernels compiled ahead of time for GPUs that are not here. NVRTC needs none."""

import functools
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")  # brings NVRTC, and loads it where it is
pytest.importorskip("cuda.core")
cuda = pytest.importorskip("amn_fast.kernels.dense_crf.cuda")

from amn_fast.kernels.common import cuda as nvrtc  # noqa: E402


def _nvrtc_missing() -> str:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except Exception as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(_nvrtc_missing()), reason=f"no NVRTC: {_nvrtc_missing()}")


@functools.cache
def compiled(architecture):
    """The cubin, and the assembler's report: {kernel: (bytes of stack, of spill stores, of spill loads, registers)}."""
    logs = io.StringIO()
    code = nvrtc.compile_cubin(cuda.SOURCE, architecture, logs).code
    report = logs.getvalue().replace("\0", "")
    pattern = (
        r"entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    found = re.findall(pattern, report, flags=re.DOTALL)
    assert {int(target) for _, target, *_ in found} == {architecture}
    assert "warning" not in report
    return code, {name: tuple(map(int, sizes)) for name, _, *sizes in found}


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_the_kernels_that_the_driver_launches_are_there_and_spill_no_registers(architecture, harness):
    code, report = compiled(architecture)
    assert len(report) >= 20
    assert {name: sizes for name, sizes in report.items() if any(sizes[:3])} == {}
    assert max(registers for *_, registers in report.values()) <= 128  # two blocks on a multiprocessor
    source = nvrtc.expand(cuda.SOURCE)
    assert "#include" not in source
    for name in report:
        assert name.encode() in code
        assert hasattr(harness, name)
    launched = {f"embed_{d}" for d in range(1, cuda.MAX_DIMENSION + 1)} | {"update_many"}
    launched |= {
        f"{kernel}_{lanes}" for kernel in ("splat", "sum_partial", "blur", "slice", "update") for lanes in (1, 2, 4)
    }
    assert launched <= set(report)


def to_ptx(source):
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"", 0, [], [])
    options = [b"--gpu-architecture=compute_90", b"--std=c++17", b"--fmad=false"]
    assert nvrtc.nvrtcCompileProgram(program, len(options), options)[0] == nvrtc.nvrtcResult.NVRTC_SUCCESS
    text = b" " * nvrtc.nvrtcGetPTXSize(program)[1]
    nvrtc.nvrtcGetPTX(program, text)
    return text.decode()


def test_groups_of_channels_travel_in_one_access():
    bodies = dict(re.findall(r"\.entry (\w+)\((.*?)\n}\n", to_ptx(nvrtc.expand(cuda.SOURCE)), flags=re.DOTALL))
    for kernel in ("splat_4", "sum_partial_4", "blur_4", "slice_4", "update_4", "update_many"):
        assert re.search(r"ld(\.global\S*)?\.v4\.f32", bodies[kernel]), kernel
        assert re.search(r"st\.v4\.f32", bodies[kernel]), kernel
    for d in range(1, cuda.MAX_DIMENSION + 1):
        assert "fma.rn" not in bodies[f"embed_{d}"]  # another rounding puts points into other simplices


def test_code_is_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = 'extern "C" __global__ void nothing(int* a) { a[0] = 1; }'
    first = nvrtc.compile_cubin(source, 90, cached=True)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.read_bytes() == bytes(first.code) for path in kept)
    assert bytes(nvrtc.compile_cubin(source, 90, cached=True).code) == bytes(first.code)


def test_a_folder_that_cannot_be_written_costs_no_more_than_the_cache(tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    source = 'extern "C" __global__ void nothing(int* a) { a[0] = 2; }'
    assert nvrtc.compile_cubin(source, 90, cached=True).code
    assert "compiled anew" in caplog.text


def test_the_launcher_launches_through_cuda_core(harness_module, tmp_path):
    """All of the launcher but NVRTC, the driver and the card: loading, kernels, arguments, grids, stream."""
    if not sys.platform.startswith("linux") or harness_module.compiler() is None:
        pytest.skip("the stand-in for the driver needs Linux and a C++ compiler")
    driver, cubin = tmp_path / "libcuda.so.1", tmp_path / "kernels.cubin"
    harness_module.build(driver, source="driver.cpp")
    cubin.write_bytes(bytes(compiled(90)[0]))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parent / "launch_on_driver.py"), str(cubin), str(driver)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    difference, stream, launches = done.stdout.split()
    assert float(difference) <= 1e-4
    assert int(stream) == 0x7700
    assert int(launches) > 100
