r"""The affinity random walk against the published dense form and against sparse products: time, peak memory, error.

    python benchmarks/bench_random_walk.py [--sizes 24x31,94x125] [--maps 1,4,20] \
        --output benchmarks/results/random_walk

Every method runs on one core and from the edge map on: building affinities or matrices is part of its time. The methods
of a row take turns; the table gives medians (what takes over 3 s runs once). Peak memory is what the process grows by
during the first run (Linux). The error is the largest difference to the walk in double precision on the first map,
relative to the largest value. Dense squarings all cost the same, so above --dense pixels the dense form is one
squaring, measured, times their number, marked "≈"; above four times as many it is left out, and it stands only with
the first K. With a GPU, the Triton kernels run on it, too.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import scipy.sparse
import torch

from amn_fast.kernels.random_walk import reference
from amn_fast.ops.random_walk import random_walk

torch.set_num_threads(1)  # SciPy's sparse products use one thread anyhow
warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
EXP_TIMES = 8
SLOW = 3  # seconds; what takes longer runs once
MIB = 1024 * 1024


def make_maps(maps: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The same edges and first map for any number of maps."""
    generator = np.random.default_rng(height * width)
    edge = generator.random((height, width), np.float32) ** 2
    return generator.random((maps, height, width), np.float32), edge


def sparse_transition(edge: np.ndarray) -> scipy.sparse.csr_array:
    """T of the definition, float32."""
    h, w = edge.shape
    index = np.arange(h * w).reshape(h, w)
    rows, columns, values = [index.ravel()], [index.ravel()], [np.ones(h * w)]
    for plane, (dy, dx) in zip(reference.affinities(edge), reference.half_plane(5), strict=True):
        y, x = np.nonzero(plane)
        weight = plane[y, x] ** 10
        rows += [index[y, x], index[y + dy, x + dx]]
        columns += [index[y + dy, x + dx], index[y, x]]
        values += [weight, weight]
    matrix = scipy.sparse.csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))))
    return (matrix / matrix.sum(0)).tocsr().astype(np.float32)


def start(x: np.ndarray, edge: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((x * (1 - edge)).reshape(len(x), -1).T)


def with_scipy(x: np.ndarray, edge: np.ndarray) -> np.ndarray:
    matrix, maps = sparse_transition(edge).T.tocsr(), start(x, edge)
    for _ in range(2**EXP_TIMES):
        maps = matrix @ maps
    return maps.T.reshape(x.shape)


def with_torch_sparse(x: np.ndarray, edge: np.ndarray) -> np.ndarray:
    csr = sparse_transition(edge).T.tocsr()
    parts = (torch.from_numpy(part) for part in (csr.indptr, csr.indices, csr.data))
    matrix, maps = torch.sparse_csr_tensor(*parts, size=csr.shape), torch.from_numpy(start(x, edge))
    for _ in range(2**EXP_TIMES):
        maps = matrix @ maps
    return maps.numpy().T.reshape(x.shape)


def with_dense(x: np.ndarray, edge: np.ndarray, squarings: int = EXP_TIMES) -> np.ndarray:
    """As published, with PyTorch in float32: square the matrix of all pairs of pixels."""
    matrix = torch.from_numpy(sparse_transition(edge).toarray())
    for _ in range(squarings):
        matrix = matrix @ matrix
    return (torch.from_numpy(start(x, edge)).T @ matrix).numpy().reshape(x.shape)


def with_amn_fast(x: np.ndarray, edge: np.ndarray) -> np.ndarray:
    return random_walk(x, edge, threads=1)


def with_amn_fast_steps(x: np.ndarray, edge: np.ndarray) -> np.ndarray:
    return random_walk(x, edge, method="steps", threads=1)


def with_gpu(x: np.ndarray, edge: np.ndarray) -> np.ndarray:
    maps = random_walk(torch.from_numpy(x).cuda(), torch.from_numpy(edge).cuda(), backend="triton")
    return maps.cpu().numpy()  # waits for the GPU


def timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
    """The result, the seconds and the MiB by which the process grew at most."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    begin = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - begin
    return result, seconds, (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    return int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1]
    )


def measure(size: tuple[int, int], maps: int, exact: np.ndarray, dense: bool, rounds: int) -> list[dict]:
    x, edge = make_maps(maps, *size)
    methods: dict[str, Callable] = {"amn_fast": with_amn_fast, "amn_fast, 256 steps": with_amn_fast_steps}
    methods |= {"SciPy sparse, 256 steps": with_scipy, "PyTorch sparse, 256 steps": with_torch_sparse}
    if torch.cuda.is_available():
        methods["amn_fast, GPU"] = with_gpu
    if dense:
        methods["dense (published)"] = with_dense
    rows, times = {}, {}
    for name, run in methods.items():
        result, seconds, memory = timed(lambda run=run: run(x, edge))
        error = float(np.abs(result[0] - exact).max() / exact.max())
        rows[name] = {"size": f"{size[0]} x {size[1]}", "pixels": size[0] * size[1], "maps": maps, "method": name}
        rows[name] |= {"mib": memory, "error": error}
        times[name] = [seconds]
    for _ in range(rounds):
        for name, run in methods.items():
            if times[name][0] < SLOW:
                begin = time.perf_counter()
                run(x, edge)
                times[name].append(time.perf_counter() - begin)
    for name, row in rows.items():
        row["seconds"] = statistics.median(times[name][1:] or times[name])  # without the warm-up
    return list(rows.values())


def measure_squaring(size: tuple[int, int], maps: int) -> dict:
    matrix = torch.from_numpy(sparse_transition(make_maps(maps, *size)[1]).toarray())
    _, seconds, memory = timed(lambda: matrix @ matrix)
    row = {"size": f"{size[0]} x {size[1]}", "pixels": size[0] * size[1], "maps": maps, "method": "dense (published) ≈"}
    return row | {"seconds": seconds * EXP_TIMES, "mib": memory + matrix.numel() * 4 / MIB, "error": None}


def as_table(rows: list[dict]) -> str:
    ours = {(row["size"], row["maps"]): row["seconds"] for row in rows if row["method"] == "amn_fast"}
    lines = ["| map | K | method | time | × amn_fast | peak memory | error |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        error = "-" if row["error"] is None else f"{row['error']:.1e}"
        seconds = f"{row['seconds'] * 1e3:.1f} ms" if row["seconds"] < 1 else f"{row['seconds']:.1f} s"
        ratio = f"{row['seconds'] / ours[row['size'], row['maps']]:,.1f}"
        memory = f"{row['mib']:.1f} MiB"
        lines.append(f"| {row['size']} | {row['maps']} | {row['method']} | {seconds} | {ratio} | {memory} | {error} |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Time over pixels for K = 1, on logarithmic axes: a straight line of slope 1 is a cost linear in pixels."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4.2), layout="constrained")
    maps = min(row["maps"] for row in rows)
    for method in dict.fromkeys(row["method"].removesuffix(" ≈") for row in rows):
        points = [row for row in rows if row["method"].removesuffix(" ≈") == method and row["maps"] == maps]
        axes.loglog([p["pixels"] for p in points], [p["seconds"] * 1e3 for p in points], "o-", label=method)
    ours = [row for row in rows if row["method"] == "amn_fast" and row["maps"] == maps]
    pixels = np.array([ours[0]["pixels"], ours[-1]["pixels"]])
    axes.loglog(pixels, ours[-1]["seconds"] * 1e3 * pixels / pixels[-1], "k:", label="linear in pixels")
    axes.set(xlabel="pixels of the map", ylabel=f"ms for {maps} map(s), one core")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def machine() -> str:
    models = [
        line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    name = models[0].strip() if models else platform.machine()
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{name}, one of {os.cpu_count()} cores{gpu}; load {os.getloadavg()[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="24x31,47x63,94x125,188x250,375x500")
    parser.add_argument("--maps", default="1,2,4,20")
    parser.add_argument("--dense", default="47x63", help="largest map for the whole dense form")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="stem for the .json and .png files")
    options = parser.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes.split(",")]
    height, width = map(int, options.dense.split("x"))
    header = f"{date.today()}, {machine()}"
    rows: list[dict] = []
    for size in sizes:
        x, edge = make_maps(1, *size)
        exact = reference.walk(x, edge, exp_times=EXP_TIMES)[0]
        pixels = size[0] * size[1]
        counts = list(map(int, options.maps.split(",")))
        for maps in counts:
            rows += measure(size, maps, exact, pixels <= height * width and maps == counts[0], options.rounds)
            print(".", end="", flush=True)
        if height * width < pixels <= 4 * height * width:
            rows.append(measure_squaring(size, counts[0]))
    print(f"\n{header}\n\n{as_table(rows)}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.with_suffix(".json").write_text(json.dumps({"run": header, "rows": rows}, indent=1) + "\n")
        plot(rows, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
