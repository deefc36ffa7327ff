"""Runs the tests of the dense CRF's GPU kernels, as loops on the CPU, with the kernels built with sanitizers.

Usage: python tests/sanitize/run_dense_crf_gpu.py. Needs g++, PyTorch and pytest, on Linux. A report fails the run.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1] / "kernels" / "dense_crf"
# Sanitizers, their libraries, and the tests: threads matter where several host threads take blocks in turn.
BUILDS = (
    ("address,undefined", ("libasan.so", "libubsan.so"), "not coco and not voc and not irn and not deeplab"),
    ("thread", ("libtsan.so",), "its_batch or flat or (twenty and 3)"),
)
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "ignore_noninstrumented_modules=1"}


def main() -> None:
    spec = importlib.util.spec_from_file_location("harness", TESTS / "harness.py")
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    with tempfile.TemporaryDirectory() as folder:
        for sanitizers, libraries, chosen in BUILDS:
            target = Path(folder) / f"{sanitizers.replace(',', '-')}.so"
            harness.build(target, flags=["-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover"])
            preloaded = [
                subprocess.run(
                    ["g++", f"-print-file-name={library}"], capture_output=True, text=True, check=True
                ).stdout.strip()
                for library in libraries
            ]
            environment = {**os.environ, **OPTIONS, "AMN_FAST_SIMT": str(target), "LD_PRELOAD": ":".join(preloaded)}
            print(f"-fsanitize={sanitizers}", flush=True)
            files = (str(TESTS / f"test_cuda_{name}.py") for name in ("harness", "memory"))
            tests = [*files, "-q", "-s", "-k", chosen]
            command = ["setarch", "-R", sys.executable, "-m", "pytest", *tests, "-p", "no:cacheprovider"]
            subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
