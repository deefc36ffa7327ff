"""What an iteration of the dense CRF costs per pixel, counted by Valgrind: instructions, loads, stores, cache misses.

    python benchmarks/count_dense_crf.py [--labels 2,3,21,81]

Needs Valgrind. Its machine has no AVX-512, so the AVX2 kernels are counted, with first-level caches of 32 KiB. Each
figure is the difference between runs of 4 and of 1 iterations on the 375 x 500 photograph, so nothing but iterations
is in it.
"""

import argparse
import re
import subprocess
import sys

from problems import VOC, label_map, photo

from amn_fast.ops.dense_crf import DenseCRF, unary_from_labels

COUNTS = {
    "instructions": r"I +refs: +([\d,]+)",
    "loads": r"D +refs: .*\( *([\d,]+) rd",
    "stores": r"D +refs: .*\+ *([\d,]+) wr",
    "first-level misses": r"D1 +misses: +([\d,]+)",
}


def infer(labels: int, iterations: int) -> None:
    unary = unary_from_labels(label_map(labels, *VOC), labels, 0.7, zero_unsure=False)
    DenseCRF(photo(*VOC), threads=1).marginals(unary, iterations)


def counted(labels: int, iterations: int) -> list[int]:
    program = [sys.executable, __file__, "--run", str(labels), str(iterations)]
    valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=yes", "--cachegrind-out-file=/dev/null"]
    printed = subprocess.run([*valgrind, *program], check=True, capture_output=True, text=True).stderr
    found = [re.search(pattern, printed) for pattern in COUNTS.values()]
    return [int(match[1].replace(",", "")) for match in found if match]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", default="2,3,21,81")
    parser.add_argument("--run", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return infer(*options.run)
    print("| labels |", " | ".join(COUNTS), "|\n|---|---|---|---|---|")
    for labels in map(int, options.labels.split(",")):
        few, many = counted(labels, 1), counted(labels, 4)
        each = [(b - a) / 3 / (VOC[0] * VOC[1]) for a, b in zip(few, many, strict=True)]
        print(f"| {labels} |", " | ".join(f"{value:.1f}" for value in each), "|", flush=True)


if __name__ == "__main__":
    main()
