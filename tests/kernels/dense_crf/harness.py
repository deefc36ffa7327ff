"""The GPU kernels of the dense CRF as a library for the CPU: see simt.hpp."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
KERNELS = Path(__file__).parents[3] / "kernels"
FLAGS = ("-std=c++20", "-O2", "-ftree-vectorize", "-ffp-contract=off", "-shared", "-fPIC", "-pthread")
TYPES = {
    "float": torch.float32,
    "i32": torch.int32,
    "u32": torch.int32,
    "i64": torch.int64,
    "u64": torch.int64,
}


def compiler() -> str | None:
    return shutil.which("g++") or shutil.which("clang++")


def build(target: Path, source: str = "simt.cpp", flags: Sequence[str] = ()) -> None:
    """Compile the kernels for the CPU."""
    places = [f"-I{KERNELS}", f"-I{HERE}", str(HERE / source), "-o", str(target)]
    done = subprocess.run([str(compiler()), *FLAGS, *flags, *places], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def signatures() -> dict[str, list[tuple[str, str]]]:
    """The kernels' parameters, [(type, name)], read from their sources."""
    text = "".join((KERNELS / "dense_crf" / name).read_text() for name in ("lattice.cu", "filter.cu", "mean_field.cu"))
    text = text.replace("\\\n", "\n")
    found = {}
    for name, parameters in re.findall(r"AMN_KERNEL(?:_IN_STEPS)?\(\s*([\w#]+),\s*\(([^()]*)\)", text):
        split = [one.rsplit(None, 1) for one in parameters.split(",")]
        found[name.replace("##", "")] = [(kind.strip().removeprefix("const "), one) for kind, one in split]
    for family in [name for name in found if name.endswith(("_D", "_V"))]:
        for number in range(1, 7):
            found[f"{family[:-1]}{number}"] = found[family]
    return found


class HarnessLauncher:
    """A `Launcher` on CPU tensors; `workers` host threads take the blocks in turn.

    It checks what a GPU would not: that arguments are as many, and of the types, that the kernel has.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.device = torch.device("cpu")
        self.workers = 1
        self.signatures = signatures()
        self.launched: list[tuple[str, int, int]] = []  # (kernel, blocks, shared)

    def launch(self, kernel: str, blocks: int, *arguments: Any, shared: int = 0) -> None:
        parameters = self.signatures[kernel]
        assert len(arguments) == len(parameters), (kernel, len(arguments), len(parameters))
        self.launched.append((kernel, blocks, shared))
        self.library.prepare(ctypes.c_longlong(blocks), ctypes.c_longlong(shared), self.workers)
        ready = [self.argument(*one) for one in zip(parameters, arguments, strict=True)]
        getattr(self.library, kernel)(*ready)

    @staticmethod
    def argument(parameter: tuple[str, str], value: Any) -> Any:
        kind, _ = parameter
        if not kind.endswith("*"):
            assert kind == "i64", parameter
            assert type(value) is int, (parameter, value)
            return ctypes.c_longlong(value)
        if value is None:
            return ctypes.c_void_p(None)
        assert value.dtype == TYPES[kind.removesuffix("*")], (parameter, value.dtype)
        assert value.is_contiguous(), parameter
        assert value.device.type == "cpu"
        return ctypes.c_void_p(value.data_ptr())
