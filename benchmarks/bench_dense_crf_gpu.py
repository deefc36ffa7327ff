"""The dense CRF on a GPU: lattices, iterations and the whole call, for batches of images, beside the CPU's answer.

Usage: python benchmarks/bench_dense_crf_gpu.py [--labels 2,3,21,81] [--batches 1,16,64] [--rounds 7]
       [--output FILE.json]

Needs a CUDA device and the extra `gpu`. The call is the seeds': energies from a label map, (sxy 3, compat 3), (sxy 50,
srgb 5, compat 10), 10 iterations, on 375 x 500 images, with 81 labels on 480 x 640; inputs and answers stay on the
GPU. Times are medians of wall time up to a synchronisation.

"bandwidth" is what `count_dense_crf_gpu.py` counts, every array of a launch moved once, over the whole call's time, as
a share of a copy's bandwidth in the same run. "parity" is the largest difference of a marginal from the CPU kernels'
and the pixels whose label differs, over the batch's first two images.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from count_dense_crf_gpu import ITERATIONS, PHASES, count, problem

from amn_fast.kernels.common import cuda as nvrtc
from amn_fast.kernels.dense_crf import cuda
from amn_fast.kernels.dense_crf.cuda import host
from amn_fast.ops.dense_crf import dense_crf

HEAD = (
    "| labels | size | batch | lattices | iterations | whole call | an image | images/s | bandwidth | parity |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def timed(call: Callable[[], object], rounds: int) -> float:
    """Median seconds; two runs beforehand warm up."""
    times = []
    for i in range(rounds + 2):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if i > 1:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def copy_bandwidth(rounds: int) -> float:
    """Bytes per second, read and written."""
    source = torch.ones(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), 3 * rounds)


def iterations(together: cuda.Batch, terms: list[cuda.Term], unaries: list[torch.Tensor], rounds: int) -> float:
    labels = len(unaries[0])
    planes = [[unary.view(labels, -1)] for unary in unaries]
    return timed(lambda: cuda.MeanField(together, terms, labels, 1, False).run(planes, ITERATIONS), rounds)


def measure(labels: int, size: tuple[int, int], batch: int, rounds: int, copy: float) -> dict:
    pairs = [problem(labels, *size, seed) for seed in range(batch)]
    images, unaries = [image.cuda() for image, _ in pairs], [unary.cuda() for _, unary in pairs]
    launcher = host.launcher_for(images[0].device)
    together = cuda.Batch(launcher, [size[0] * size[1]] * batch, [size[1]] * batch)
    weights = (np.float32(3), np.float32(10))

    def terms() -> list[cuda.Term]:
        features = (cuda.grid_features([size] * batch, 3, 3), cuda.image_features(images, 50, 50, [5, 5, 5]))
        built = [cuda.build(together, one) for one in features]
        for mesh in built:
            mesh.norm("symmetric")
        return [cuda.Term(mesh, np.asarray(one), "symmetric") for mesh, one in zip(built, weights, strict=True)]

    row = {"labels": labels, "size": f"{size[0]} x {size[1]}", "batch": batch}
    row["lattices"] = timed(terms, rounds)
    row["iterations"] = iterations(together, terms(), unaries, rounds)
    row["whole"] = timed(lambda: dense_crf(images, unaries), rounds)
    charged = count(launcher, images, unaries)
    row["bytes"] = sum(charged.bytes[phase][0] for phase in PHASES)
    row["bandwidth"] = row["bytes"] / row["whole"] / copy
    answers = [one.cpu().numpy() for one in dense_crf(images, unaries)[:2]]
    expected = [dense_crf(image.numpy(), unary.numpy()) for image, unary in pairs[:2]]
    row["difference"] = max(float(np.abs(q - cpu).max()) for q, cpu in zip(answers, expected, strict=True))
    row["pixels"] = sum(int((q.argmax(0) != cpu.argmax(0)).sum()) for q, cpu in zip(answers, expected, strict=True))
    return row


def line(row: dict) -> str:
    times = [1e3 * row[name] for name in ("lattices", "iterations", "whole")]
    times.append(times[-1] / row["batch"])
    return (
        f"| {row['labels']} | {row['size']} | {row['batch']} | "
        + " | ".join(f"{value:.2f} ms" for value in times)
        + f" | {1e3 / times[-1]:.0f} | {row['bandwidth']:.0%} | {row['difference']:.1e}, {row['pixels']} px |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", default="2,3,21,81")
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if obstacle := nvrtc.obstacle():
        sys.exit(f"nothing is measured: {obstacle}")
    copy = copy_bandwidth(options.rounds)
    versions = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
    header = f"{date.today()}, {torch.cuda.get_device_name()}, {versions}, a copy moves {copy / 1e12:.2f} TB/s"
    print(f"{header}\n\n{HEAD}", flush=True)
    rows = []
    for labels in map(int, options.labels.split(",")):
        for batch in map(int, options.batches.split(",")):
            size = (480, 640) if labels == 81 else (375, 500)
            rows.append(measure(labels, size, batch, options.rounds, copy))
            print(line(rows[-1]), flush=True)
            torch.cuda.empty_cache()
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"run": header, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
