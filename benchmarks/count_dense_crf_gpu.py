"""Bytes that the GPU dense CRF moves, counted from its launches, and the time they take at a memory's bandwidth.

    python benchmarks/count_dense_crf_gpu.py [--bandwidth 3.35e12] [--noise 0] [--output FILE.md]

Needs a C++ compiler, and no GPU: the kernels run as loops on the CPU (tests/kernels/dense_crf/harness.py) on a real
photograph, and each launch is charged by its arguments. Two counts bound the traffic:

- once: every array that a launch reads or writes is moved once; what is gathered by index comes from the caches again;
- each: every gathered row is moved each time it is asked for, in whole sectors of 32 bytes, as if there were no cache.

PyTorch's share (sort, running sum, cutting rows into chunks) is counted from its algorithms: a radix sort of 4-byte
keys and 8-byte values moves both in and out four times.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from problems import label_map, photo

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "kernels" / "dense_crf"))
from harness import HarnessLauncher, build, signatures

from amn_fast.kernels.dense_crf import cuda
from amn_fast.ops.dense_crf import unary_from_labels

SECTOR = 32
CASES = (  # labels, height, width, the goal in ms per image
    (2, 375, 500, None),
    (3, 375, 500, 1.0),
    (21, 375, 500, 3.0),
    (81, 480, 640, 12.0),
)
ITERATIONS = 10
PHASES = ("lattices", "norms", "unary and answer", "splat", "blur", "update")


class Charging:
    """A `Launcher` that launches with another, and charges each launch to a phase: [bytes once, bytes each]."""

    def __init__(self, inner: cuda.Launcher) -> None:
        self.inner, self.device, self.signatures = inner, inner.device, signatures()
        self.phase = ""
        self.meshes: list[cuda.Lattices] = []  # those that are sliced
        self.points = 0
        self.bytes: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def launch(self, kernel: str, blocks: int, *arguments: Any, shared: int = 0) -> None:
        self.inner.launch(kernel, blocks, *arguments, shared=shared)
        values = {name: value for (_, name), value in zip(self.signatures[kernel], arguments, strict=True)}
        family, _, number = kernel.rpartition("_")
        lanes = int(number) if number.isdigit() and family != "embed" else 4
        kind = self.phase or {"splat": "splat", "sum_partial": "splat", "blur": "blur"}.get(family, "update")
        self.charge(kind, *CHARGES[family if number.isdigit() else kernel](self, values, lanes))

    def charge(self, phase: str, once: float, each: float) -> None:
        self.bytes[phase][0] += once
        self.bytes[phase][1] += each

    def sliced(self, streamed: float, width: int, points: int, terms: bool) -> tuple[float, float]:
        """The lattices' shares, added to what is streamed anyway."""
        once = each = streamed
        for mesh in self.meshes if terms else ():
            entries = mesh.sides * points
            once += 8 * entries + 4 * points + 4 * width * mesh.count
            each += 8 * entries + 4 * points + sectors(width) * entries
        return once, each


Values = dict[str, Any]
Bytes = tuple[float, float]


def sectors(width: int) -> int:
    """Bytes of a gathered row of floats."""
    return -(-4 * width // SECTOR) * SECTOR


def embed(launcher: Charging, a: Values, lanes: int) -> Bytes:
    entries = a["weights"].numel()
    both = entries * (8 * a["words"] + 4) + 3 * a["total"]
    return both, both


def insert(launcher: Charging, a: Values, lanes: int) -> Bytes:
    entries, slots = a["slots"].numel(), a["table"].numel()
    streamed = entries * (8 * a["words"] + 4) + 4 * slots  # the clearing too
    taken = int((a["table"] >= 0).sum())
    return streamed + 2 * SECTOR * taken, streamed + 2 * SECTOR * entries


def mark(launcher: Charging, a: Values, lanes: int) -> Bytes:
    entries = a["slots"].numel()
    taken = int((a["table"] >= 0).sum())
    return 8 * entries + SECTOR * taken, (8 + SECTOR) * entries


def number(launcher: Charging, a: Values, lanes: int) -> Bytes:
    entries, count = a["slots"].numel(), a["owners"].numel()
    streamed = (8 + 8) * entries + 8 * count  # the running sum too
    return streamed + 2 * SECTOR * count, streamed + 2 * SECTOR * entries


def neighbours(launcher: Charging, a: Values, lanes: int) -> Bytes:
    looked = a["count"] * a["sides"]
    found = int((a["neighbours"] >= 0).sum()) / 2
    once = looked * 16 + a["count"] * (12 + 3 * SECTOR)
    return once, looked * (16 + 12 + 2 * SECTOR) + found * 4 * SECTOR


def rows(launcher: Charging, a: Values, lanes: int) -> Bytes:
    entries = a["count"]
    sort, streamed = 4 * 24 * entries, 20 * entries
    chunks = 240 * a["row_firsts"].numel()  # some fifteen passes over 16 bytes for each row, in `cut`
    return sort + streamed + chunks + 4 * entries, sort + streamed + chunks + SECTOR * entries


def splat(launcher: Charging, a: Values, lanes: int) -> Bytes:
    width, entries = lanes * a["groups"], a["row_points"].numel()
    streamed = 12 * a["count"] + 8 * entries + 4 * width * a["count"]
    return streamed + 4 * a["values"].numel(), streamed + sectors(width) * entries


def sum_partial(launcher: Charging, a: Values, lanes: int) -> Bytes:
    width, summed = lanes * a["groups"], int((a["ends"] - a["begins"]).sum())
    both = 12 * a["count"] + 4 * width * (summed + a["count"])
    return both, both


def blur(launcher: Charging, a: Values, lanes: int) -> Bytes:
    width, found = lanes * a["groups"], int((a["neighbours"] >= 0).sum())
    streamed = a["count"] * (8 + 8 * width)
    return streamed, streamed + sectors(width) * found


def update(launcher: Charging, a: Values, lanes: int) -> Bytes:
    width = a["base"].numel() // a["total"]
    return launcher.sliced(8 * a["base"].numel(), width, a["total"], a["term_count"] > 0)


def slice_(launcher: Charging, a: Values, lanes: int) -> Bytes:
    return launcher.sliced(4 * a["out"].numel(), lanes * a["groups"], a["total"], True)


def load(launcher: Charging, a: Values, lanes: int) -> Bytes:
    both = 4 * a["out"].numel() * (1 + a["labels"] / a["stride"])
    return both, both


def examine(launcher: Charging, a: Values, lanes: int) -> Bytes:
    both = 4 * a["labels"] * launcher.points
    return both, both


def answer(launcher: Charging, a: Values, lanes: int) -> Bytes:
    both = 4 * (a["q"].numel() + launcher.points * (1 + a["labels"]))
    return both, both


CHARGES = {
    "embed": embed,
    "insert_entries": insert,
    "mark_first_entries": mark,
    "number_vertices": number,
    "find_all_neighbours": neighbours,
    "make_splat_rows": rows,
    "splat": splat,
    "sum_partial": sum_partial,
    "blur": blur,
    "update": update,
    "update_many": update,
    "slice": slice_,
    "load_rows": load,
    "examine_energies": examine,
    "give_answer": answer,
}


def count(inner: cuda.Launcher, images: list[torch.Tensor], unaries: list[torch.Tensor]) -> Charging:
    """What a batch costs in the seeds' call; iterations run once and are charged ITERATIONS times."""
    launcher = Charging(inner)
    labels, sizes = len(unaries[0]), [(image.shape[0], image.shape[1]) for image in images]
    launcher.points = sum(h * w for h, w in sizes)
    planes = [[unary.reshape(labels, -1)] for unary in unaries]
    batch = cuda.Batch(launcher, [h * w for h, w in sizes], [w for _, w in sizes])
    launcher.phase = "unary and answer"
    cuda.examine(batch, planes, labels)
    launcher.phase = "lattices"
    features = (cuda.grid_features(sizes, 3, 3), cuda.image_features(images, 50, 50, [5, 5, 5]))
    meshes = [cuda.build(batch, one) for one in features]
    launcher.phase = "norms"
    for mesh in meshes:
        launcher.meshes = [mesh]
        mesh.norm("symmetric")
        launcher.charge("norms", *[12 * mesh.row_weights.numel()] * 2)  # into the splat's weights
    launcher.meshes = meshes
    weights = (np.float32(3), np.float32(10))
    terms = [cuda.Term(mesh, np.asarray(one), "symmetric") for mesh, one in zip(meshes, weights, strict=True)]
    field = cuda.MeanField(batch, terms, labels, 1, False)
    launcher.phase = "unary and answer"
    base = field.loaded(planes, False)
    q, last = torch.empty_like(base), torch.empty(batch.total, device=inner.device)
    field.update(False, base, q, None)
    launcher.phase = ""
    field.iterate(base, q, last, 1)
    launcher.phase = "unary and answer"
    field.answers(q, last, False)
    for phase in ("splat", "blur", "update"):
        launcher.bytes[phase] = [ITERATIONS * value for value in launcher.bytes[phase]]
    return launcher


def problem(
    labels: int, height: int, width: int, seed: int = 0, noise: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The photograph, moved and flipped by the seed, with noise of that sigma, and energies of a label map."""
    image = np.roll(photo(height, width), (37 * seed, 61 * seed), (0, 1))[:, :: -1 if seed % 2 else 1]
    if noise:
        image = (image + np.random.default_rng(seed).normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)
    energies = unary_from_labels(label_map(labels, height, width, seed), labels, 0.7, zero_unsure=False)
    return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(energies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="bytes per second")
    parser.add_argument("--noise", type=float, default=0.0, help="grey levels, added for more vertices")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        inner = HarnessLauncher(build(Path(folder) / "simt.so"))
        for labels, height, width, goal in CASES:
            image, unary = problem(labels, height, width, noise=options.noise)
            charged = count(inner, [image], [unary])
            lines += table(charged, labels, height, width, goal, options.bandwidth)
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.output:
        options.output.write_text(text)


def table(launcher: Charging, labels: int, height: int, width: int, goal: float | None, bandwidth: float) -> list[str]:
    vertices = " and ".join(f"{mesh.count:,}" for mesh in launcher.meshes)
    found = {phase: launcher.bytes[phase] for phase in PHASES}
    found["**total**"] = [sum(value[i] for value in found.values()) for i in (0, 1)]
    lines = [
        f"{labels} labels, {height} x {width}, {ITERATIONS} iterations, {vertices} vertices"
        + (f"; goal {goal:g} ms:" if goal else ":"),
        "",
        "| phase | MB once | MB each | ms once | ms each |",
        "|---|---|---|---|---|",
    ]
    for phase, (once, each) in found.items():
        times = [1e3 * value / bandwidth for value in (once, each)]
        lines.append(f"| {phase} | {once / 1e6:.1f} | {each / 1e6:.1f} | {times[0]:.3f} | {times[1]:.3f} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
