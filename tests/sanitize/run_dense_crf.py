"""Builds the dense CRF's kernels with sanitizers and runs them over recorded and random problems.

Usage: python tests/sanitize/run_dense_crf.py [ROUNDS]. Needs g++ or clang++ (CXX) and NumPy. A report fails the run.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "crf"
CASES = ["irn_2labels", "irn_3labels", "irn_21labels", "irn_81labels", "psa_softmax", "anisotropic", "one_pixel"]
BUILDS = {"address,undefined": 1.0, "thread": 0.1}  # sanitizers, and their share of the rounds


def export(name: str, folder: Path) -> Path:
    """A recorded case as the plain numbers that the fuzz driver reads."""
    case = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
    call = json.loads(str(case["call"]))
    labels, count = case["labels"].ravel(), call["labels"]
    if call["unary"] == "softmax":
        unary = -np.log(np.clip(case["softmax"], 1e-5, 1)).reshape(count, -1)
    else:
        unary = np.full((count, labels.size), -np.log((1 - call["gt_prob"]) / (count - 1)))
        unary[labels, np.arange(labels.size)] = -np.log(call["gt_prob"])
    (gaussian, weight), (space, colour, strength) = call["gaussian"], call["bilateral"]
    numbers = [*np.broadcast_to(gaussian, 2), weight, *np.broadcast_to(space, 2), *np.broadcast_to(colour, 3), strength]
    path = folder / name
    with path.open("wb") as file:
        file.write(np.array([call["h"], call["w"], count, call["iterations"]], np.int32).tobytes())
        file.write(np.array(numbers, np.float64).tobytes())
        file.write(case["image"].tobytes() + unary.astype(np.float32).tobytes() + case["q"].tobytes())
    return path


def main(rounds: int = 10_000) -> None:
    sources = [
        *sorted((ROOT / "kernels" / "dense_crf").glob("*.cpp")),
        ROOT / "tests" / "sanitize" / "dense_crf_fuzz.cpp",
    ]
    sources = [path for path in sources if not path.name.startswith("bind")]
    compiler = os.environ.get("CXX", "g++")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorded = [str(export(case, folder)) for case in CASES]
        for sanitizers, share in BUILDS.items():
            program = folder / sanitizers.replace(",", "-")
            flags = ["-std=c++20", "-O1", "-g", "-ffp-contract=off", "-pthread", "-fno-omit-frame-pointer"]
            flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", f"-I{ROOT / 'kernels'}"]
            subprocess.run([compiler, *flags, *map(str, sources), "-o", str(program)], check=True)
            print(f"-fsanitize={sanitizers}", flush=True)
            subprocess.run([str(program), str(max(1, int(rounds * share))), "1", *recorded], check=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
