"""The dense CRF against pydensecrf2, side by side in one run: times alternate, ratios are medians of the pairs.

Usage: python benchmarks/bench_dense_crf.py [--labels 2,3,21,81] [--sizes 375x500,480x640,1080x1920]
       [--images photo,smooth,noise] [--threads 1,2] [--rounds 5] [--cpu-time] [--cold] [--memory] [--folder] [--prune]
       [--shown 3] [--output FILE.json]

Needs the extra `bench` (pydensecrf2 builds on Python 3.11 and 3.12). The call is the seeds': energies from a label map,
(sxy 3, compat 3), (sxy 50, srgb 5, compat 10), 10 iterations, for both sides from the label map to the marginals.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from amn_fast._native import native
from amn_fast.ops.dense_crf import DenseCRF, dense_crf, unary_from_labels, unary_from_softmax

PHOTO = Path(__file__).parents[1] / "tests" / "golden" / "crf" / "voc_full_3labels.npz"


def make_image(kind: str, height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(0)
    if kind == "noise":
        return random.integers(0, 256, (height, width, 3), np.uint8)
    if kind == "smooth":
        coarse = random.integers(0, 256, (4, 5, 3), np.uint8)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(np.load(PHOTO)["image"], (width, height), interpolation=cv2.INTER_AREA)


def label_map(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blobs of all `count` labels, or nearly all where they are many."""
    coarse = np.random.default_rng(seed).random((12, 16, count), np.float32)
    planes = [cv2.resize(np.ascontiguousarray(coarse[..., i]), (width, height)) for i in range(count)]
    return np.argmax(planes, axis=0)


def ours(image: np.ndarray, maps: list[np.ndarray], count: int, threads: int) -> list[np.ndarray]:
    unaries = [unary_from_labels(labels, count, 0.7, zero_unsure=False) for labels in maps]
    if len(unaries) == 1:
        return [dense_crf(image, unaries[0], threads=threads)]
    return DenseCRF(image, threads=threads).marginals(unaries)


def peer(image: np.ndarray, maps: list[np.ndarray], count: int, threads: int = 1) -> list[np.ndarray]:
    from pydensecrf import densecrf, utils

    answers = []
    height, width = maps[0].shape
    for labels in maps:
        crf = densecrf.DenseCRF2D(width, height, count)
        crf.setUnaryEnergy(utils.unary_from_labels(labels, count, 0.7, zero_unsure=False))
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image), compat=10)
        answers.append(np.array(crf.inference(10)).reshape(count, height, width))
    return answers


def timed(clock: Callable[[], float], call: Callable[..., object], *arguments: object) -> float:
    start = clock()
    call(*arguments)
    return 1e3 * (clock() - start)


def in_turns(
    first: Callable[[], object], second: Callable[[], object], rounds: int, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Median ms of each, and the median of the second's time over the first's."""
    pairs = [(timed(clock, first), timed(clock, second)) for _ in range(rounds)]
    return summary(pairs)


def summary(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    medians = [round(statistics.median(column), 1) for column in zip(*pairs, strict=True)]
    return medians[0], medians[1], round(statistics.median(b / a for a, b in pairs), 2)


def compare(
    kind: str, size: tuple[int, int], count: int, shown: int, maps: int, threads: int, rounds: int, cpu: bool
) -> dict:
    """One row: times in ms, the median ratio of the pairs, and how far the answers differ."""
    clock = time.process_time if cpu else time.perf_counter
    image = make_image(kind, *size)
    names = np.linspace(0, count - 1, shown).astype(int)
    labels = [names[label_map(shown, *size, seed)] for seed in range(maps)]
    mine, theirs = ours(image, labels, count, threads), peer(image, labels, count)
    mine_ms, theirs_ms, ratio = in_turns(
        lambda: ours(image, labels, count, threads), lambda: peer(image, labels, count), rounds, clock
    )
    return {
        "image": kind,
        "size": "x".join(map(str, size)),
        "labels": count,
        "shown": shown,
        "maps": maps,
        "threads": threads,
        "ours_ms": mine_ms,
        "peer_ms": theirs_ms,
        "ratio": ratio,
        "max_dq": float(max(np.abs(a - b).max() for a, b in zip(mine, theirs, strict=True))),
        "other_argmax": int(sum((a.argmax(0) != b.argmax(0)).sum() for a, b in zip(mine, theirs, strict=True))),
    }


def parts(size: tuple[int, int], count: int, rounds: int) -> dict:
    """Ours in parts, in ms of processor time: lattices (the Gaussian one built anew), inference, whole call."""
    image, labels = make_image("photo", *size), label_map(count, *size)
    unary = unary_from_labels(labels, count, 0.7, zero_unsure=False)
    crf = DenseCRF(image)
    clock = time.process_time

    def grid() -> None:
        native.CrfLattice.of_grid(*size, 3, 3)

    median = {
        name: round(statistics.median(timed(clock, call) for _ in range(rounds)), 1)
        for name, call in {
            "gaussian_lattice_ms": grid,
            "bilateral_lattice_ms": lambda: DenseCRF(image, gaussian=None),
            "inference_ms": lambda: crf.marginals(unary),
            "whole_ms": lambda: dense_crf(image, unary),
        }.items()
    }
    return {
        "size": "x".join(map(str, size)),
        "labels": count,
        "vertices": crf.pairwise[1].lattice.handle.vertices,
    } | median


def folder(size: tuple[int, int], count: int, rounds: int, n_images: int = 8) -> dict:
    """A list of images on one thread and on two: median times in ms, and the median ratio."""
    images = [np.roll(make_image("photo", *size), 31 * i, axis=1) for i in range(n_images)]
    unaries = [unary_from_labels(label_map(count, *size, i), count, 0.7, zero_unsure=False) for i in range(n_images)]
    two, one, ratio = in_turns(
        lambda: dense_crf(images, unaries, threads=2),
        lambda: dense_crf(images, unaries, threads=1),
        rounds,
        time.perf_counter,
    )
    what = f"{n_images} pictures on 1 and on 2 threads, ms"
    return {"what": what, "labels": count, "one": one, "two": two, "ratio": ratio}


def pruned(size: tuple[int, int], count: int, rounds: int, prune: float = 1e-3, visible: int = 4) -> dict:
    """A softmax in which `visible` labels stand out, with and without pruning: times, and how often labels agree."""
    visible = min(visible, count)
    image, shown = make_image("photo", *size), label_map(visible, *size)
    noise = np.random.default_rng(0).normal(size=(count, 24, 32)).astype(np.float32)
    scores = np.stack([cv2.resize(plane, size[::-1]) for plane in noise])
    scores[:visible] += 12 * (shown == np.arange(visible)[:, None, None])
    softmax = np.exp(scores - scores.max(0))
    unary = unary_from_softmax(softmax / softmax.sum(0))
    crf = DenseCRF(image, threads=1)
    less, all_labels, ratio = in_turns(
        lambda: crf.labels(unary, prune=prune), lambda: crf.labels(unary), rounds, time.perf_counter
    )
    return {
        "what": f"softmax with {visible} visible labels: inference without pruning and with prune={prune}, ms",
        "labels": count,
        "whole": all_labels,
        "pruned": less,
        "ratio": ratio,
        "same_label": float((crf.labels(unary) == crf.labels(unary, prune=prune)).mean()),
    }


def alone(side: str, what: str, kind: str, size: tuple[int, int], count: int) -> float:
    """The first call's time in ms, or the peak memory in MB that it adds, in a process of its own."""
    folder = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {folder!r}); import bench_dense_crf as bench\n"
    code += f"bench.lonely({side!r}, {what!r}, {kind!r}, {size!r}, {count})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def lonely(side: str, what: str, kind: str, size: tuple[int, int], count: int) -> None:
    image, labels = make_image(kind, *size), label_map(count, *size)
    if side == "peer":
        from pydensecrf import densecrf, utils  # noqa: F401  (imported before the clock starts, as ours is)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew; getrusage's is inherited from the parent
    before = peak_mb()
    call = peer if side == "peer" else ours
    first = timed(time.perf_counter, call, image, [labels], count, 1)
    print(first if what == "cold" else peak_mb() - before)


def peak_mb() -> float:
    """The highest resident memory of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", default="2,3,21,81")
    parser.add_argument("--sizes", default="375x500")
    parser.add_argument("--images", default="photo")
    parser.add_argument("--maps", default="1,2")
    parser.add_argument("--shown", type=int, help="labels that the maps show, all by default")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of wall time (one thread only)")
    parser.add_argument("--cold", action="store_true", help="also the first call of a process")
    parser.add_argument("--memory", action="store_true", help="also the peak memory that one call adds")
    parser.add_argument("--folder", action="store_true", help="also a list of images on one and on two threads")
    parser.add_argument("--prune", action="store_true", help="also pruning, on a softmax")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes.split(",")]
    counts = [int(count) for count in options.labels.split(",")]
    report: dict = {
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "instruction_set": native.crf_instruction_set(),
        "date": time.strftime("%Y-%m-%d"),
        "clock": "processor time" if options.cpu_time else "wall time",
        "rows": [],
        "parts": [],
        "alone": [],
    }
    for size in sizes:
        for kind in options.images.split(","):
            for count in counts:
                for maps in map(int, options.maps.split(",")):
                    for threads in map(int, options.threads.split(",")):
                        shown = min(count, options.shown or count)
                        row = compare(kind, size, count, shown, maps, threads, options.rounds, options.cpu_time)
                        report["rows"].append(row)
                        print(row, flush=True)
        for count in counts:
            report["parts"].append(parts(size, count, options.rounds))
            print(report["parts"][-1], flush=True)
            for option, measure in {"folder": folder, "prune": pruned}.items():
                if getattr(options, option):
                    report["parts"].append(measure(size, count, options.rounds))
                    print(report["parts"][-1], flush=True)
            for what in [name for name in ("cold", "memory") if getattr(options, name)]:
                mine, theirs, ratio = summary(
                    [
                        (alone("ours", what, "photo", size, count), alone("peer", what, "photo", size, count))
                        for _ in range(options.rounds if what == "cold" else 1)
                    ]
                )
                row = {
                    "size": "x".join(map(str, size)),
                    "labels": count,
                    "what": "first call, ms" if what == "cold" else "peak memory added, MB",
                    "ours": mine,
                    "peer": theirs,
                    "ratio": ratio,
                }
                report["alone"].append(row)
                print(row, flush=True)
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
