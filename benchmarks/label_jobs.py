"""Labelling jobs at length: kills, memory, start-up with a million images, processes, and the cost of each step.

python benchmarks/label_jobs.py kills [--images 20000] [--kills 20]    every image once, the same bytes; flat memory
python benchmarks/label_jobs.py startup [--images 1000000]             seconds and memory until the first shard
python benchmarks/label_jobs.py processes                              two processes on two CPUs against one
python benchmarks/label_jobs.py costs                                  CPU seconds and bytes an image, step by step

Each prints a JSON object and, with --output FILE, writes it. The networks have random weights: what they cost does not
depend on the values. Linux only; needs the extra `label`.
"""

import argparse
import itertools
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amn_fast.data.image import read_image
from amn_fast.data.masks import encode_mask
from amn_fast.label import jobs, labeler
from amn_fast.label.engines import Computed
from amn_fast.label.jobs import Options, label_images
from amn_fast.label.labeler import Labeler
from tiny_run import BACKBONE, CLASSES, CONFIG, InThisProcess, outputs, write_images, write_run

VOC, COCO = (375, 500), (480, 640)
SCALES = {"efficientnet_lite0": "[1.0, 0.5, 1.5]", "resnet50": "[1.0, 0.5, 1.5, 2.0]"}
"""Those of the small sets' configurations, and the published ones."""


def config_of(backbone: str) -> str:
    """The configuration of a run with all scales of the image, for CAM and AMN."""
    return CONFIG.replace(BACKBONE, backbone).replace("[1.0]", SCALES[backbone])


def resident_mb() -> float:
    """Memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_name() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.machine()


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        return []


def workers_of(parent: int) -> list[int]:
    """The workers of a job: children of its fork server."""
    return [worker for child in children(parent) for worker in children(child)]


# -------------------------------------------------------------------------------------------------------------- kills


def kills(folder: Path, images: int, times: int, damaged: int = 50) -> dict[str, Any]:
    """A job on three workers whose processes are killed at random moments, against one that nothing disturbs.

    One image in nine has classes: this is about the processes, and the others take less time.
    """
    run, file = write_run(folder / "run"), write_images(folder / "images", images, (12, 20), 1 / 9)
    rng = random.Random(0)
    for number in rng.sample(range(images), damaged):
        (folder / "images" / f"image_{number:05d}.png").write_bytes(rng.randbytes(rng.randint(0, 200)))
    alone, memory = undisturbed(run, folder, file, images)
    command = [sys.executable, "-m", "amn_fast", "label", str(run), str(folder / "images"), str(folder / "out")]
    command += ["--labels", str(file), "--workers", "3", "--threads", "1"]
    killed = {"worker": 0, "parent": 0}
    start = time.monotonic()
    # Kills are spread over the images, so that they come in the middle whatever the speed.
    at = sorted(rng.sample(range(images // 50, images * 9 // 10), times))
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for count in at:
        while len(os.listdir(folder / "out" / "masks") if (folder / "out" / "masks").exists() else ()) < count:
            time.sleep(0.05)
            if job.poll() is not None:
                raise SystemExit(f"the job ended with {job.returncode}")
        workers = workers_of(job.pid)
        if workers and rng.random() < 0.7:
            os.kill(rng.choice(workers), signal.SIGKILL)
            killed["worker"] += 1
        else:
            job.kill()
            job.wait()
            killed["parent"] += 1
            job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status = job.wait()
    found = outputs(folder / "out")
    same = found == outputs(folder / "alone")
    shown = jobs.job_status(str(folder / "out"))
    return {
        "images": images,
        "damaged": damaged,
        "killed": killed,
        "exit_status": status,
        "files": len(found),
        "masks": sum(name.startswith("masks/") for name in found),
        "rows": shown.images,
        "error_rows": shown.errors,
        "same_bytes": same,
        "seconds": {"disturbed": round(time.monotonic() - start, 1), "alone": alone},
        "memory": memory,
    }


def undisturbed(run: Path, folder: Path, file: Path, images: int) -> tuple[float, dict[str, float]]:
    """The same job in this process. Returns seconds, and its memory at a quarter and at the end."""
    seen = itertools.count(1)
    memory: dict[str, float] = {}

    class Watched(InThisProcess):
        def run(self, tasks: Iterator[Any]) -> Iterator[Any]:
            for event in super().run(tasks):
                if isinstance(event, Computed):
                    share = next(seen) / images
                    name = {0.25: "quarter", 0.5: "half", 1.0: "end"}.get(share)
                    if name:
                        memory[name] = round(resident_mb(), 1)
                yield event

    jobs.Crew = Watched  # type: ignore[assignment, misc]
    start = time.monotonic()
    label_images(run, str(folder / "images"), str(folder / "alone"), Options(labels=file, quiet=True))
    memory["growth"] = round(memory["end"] / memory["quarter"] - 1, 4)
    return round(time.monotonic() - start, 1), memory


# ------------------------------------------------------------------------------------------------------------ startup

STARTUP = """
import json, resource, sys, time
start = time.monotonic()
from amn_fast.label import jobs
class Stop(Exception): pass
class Crew:
    def __init__(self, *arguments): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def run(self, tasks):
        next(tasks)
        raise Stop
jobs.Crew = Crew
run, source, out, labels = sys.argv[1:]
options = jobs.Options(labels=jobs.Path(labels) if labels else None, sidecars=not labels, quiet=True)
try:
    jobs.label_images(run, source, out, options)
except Stop:
    used, status = resource.getrusage(resource.RUSAGE_SELF), open("/proc/self/status").read()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024  # that of ru_maxrss may be the parent's
    seconds = {"seconds": round(time.monotonic() - start, 1), "cpu_seconds": round(used.ru_utime + used.ru_stime, 1)}
    print(json.dumps({**seconds, "peak_mb": round(peak)}))
"""


def startup(folder: Path, images: int) -> dict[str, Any]:
    """Seconds, CPU seconds and memory of the job's process until the first shard is handed out.

    Workers come on top. On a busy machine the CPU seconds tell: the process has one thread.
    """
    import pyarrow as pa
    import pyarrow.parquet

    run = write_run(folder / "run")
    ids = [f"img_{k:08d}" for k in np.random.default_rng(0).permutation(images)]
    paths = [f"train/{id[-3:]}/{id}.jpg" for id in ids]
    (folder / "list.csv").write_text("id,image\n" + "".join(f"{a},{b}\n" for a, b in zip(ids, paths, strict=True)))
    pyarrow.parquet.write_table(pa.table({"id": ids, "image": paths}), folder / "list.parquet")
    (folder / "labels.csv").write_text("id,labels\n" + "".join(f"{id},{CLASSES[int(id[-1]) % 3]}\n" for id in ids))
    found: dict[str, Any] = {}
    for name, source, labels in (
        ("csv", "list.csv", ""),
        ("csv and label file", "list.csv", "labels.csv"),
        ("parquet and label file", "list.parquet", "labels.csv"),
    ):
        arguments = [run, folder / source, folder / "out" / name, folder / labels if labels else ""]
        done = subprocess.run(
            [sys.executable, "-c", STARTUP, *map(str, arguments)], capture_output=True, text=True, check=True
        )
        found[name] = json.loads(done.stdout)
    return {"images": images, "inputs": found}


# ---------------------------------------------------------------------------------------------------------- processes


def processes(folder: Path, rounds: int = 3, images: int = 48) -> dict[str, Any]:
    """Images per second of one process and of two, interleaved; from the first image to the last, without loading."""
    backbone = "efficientnet_lite0"
    run = write_run(folder / "run", config_of(backbone), backbone)
    file = write_images(folder / "images", images)
    resize_all(folder / "images", VOC)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for count in (1, 2):
            out = folder / f"out-{turn}-{count}"
            options = Options(labels=file, shard_size=2, workers=count, threads=1, quiet=True)
            label_images(run, str(folder / "images"), str(out), options)
            seconds[count].append(busy_seconds(out))
    medians = {count: statistics.median(values) for count, values in seconds.items()}
    speeds = {count: round(images / value, 3) for count, value in medians.items()}
    return {"images": images, "images_per_second": speeds, "ratio": round(medians[1] / medians[2], 3)}


def busy_seconds(out: Path) -> float:
    """From the start of the first shard to the end of the last one: a log is written when its shard ends."""
    ends = {log: log.stat().st_mtime for log in out.glob("logs/0*.jsonl")}
    starts = [end - json.loads(log.read_text().splitlines()[0])["seconds"] for log, end in ends.items()]
    return max(ends.values()) - min(starts)


def resize_all(folder: Path, size: tuple[int, int]) -> None:
    """Make the images of a folder larger, with some noise, as JPEG."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("*.png")):
        pixels = np.asarray(Image.open(path).convert("RGB").resize(size[::-1]), np.int16)
        noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()


# -------------------------------------------------------------------------------------------------------------- costs


def costs(folder: Path) -> dict[str, Any]:
    """CPU seconds of each step on one thread, and bytes of input and output, for images of VOC's and COCO's size."""
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for backbone in SCALES:
        run = write_run(folder / backbone, config_of(backbone), backbone)
        for name, size in (("VOC", VOC), ("COCO", COCO)):
            place = folder / f"{backbone}-{name}"
            file = write_images(place / "images", 6 if backbone != "resnet50" else 1)
            resize_all(place / "images", size)
            rows[f"{backbone} {name}"] = cost_of(run, place / "images", file)
    return {"rows": rows}


STEPS = {
    "CAM": (labeler.cam, "activate"),
    "seed": (labeler.seed, "refine"),
    "AMN": (labeler.amn, "activate"),
    "edges": (labeler.irn, "find_edge"),
    "walk": (labeler.mask, "scores"),
}


def cost_of(run: Path, images: Path, file: Path) -> dict[str, Any]:
    labels = json.loads(file.read_text())["labels"]
    one = Labeler(run)
    paths = [path for path in sorted(images.iterdir()) if labels[path.stem]]
    one.label(np.zeros((64, 64, 3), np.uint8), labels[paths[0].stem])
    taken: dict[str, list[float]] = {}
    read, written = [], []
    with timed(taken):
        for path in paths:
            start = time.process_time()
            pixels = read_image(path)
            taken.setdefault("read", []).append(time.process_time() - start)
            start = time.process_time()
            result = one.label(pixels, labels[path.stem])
            taken.setdefault("label", []).append(time.process_time() - start)
            start = time.process_time()
            mask = encode_mask(result.mask, path.stem)
            taken.setdefault("PNG", []).append(time.process_time() - start)
            read.append(path.stat().st_size)
            written.append(len(mask))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    total = medians["read"] + medians["label"] + medians["PNG"]
    network = medians["CAM"] + medians["AMN"] + medians["edges"]
    return {
        "images": len(paths),
        "cpu_seconds": {name: round(value, 4) for name, value in medians.items()},
        "images_per_cpu_second": round(1 / total, 3),
        "share_of_networks": round(network / total, 3),
        "bytes_read": round(statistics.mean(read)),
        "bytes_written": round(statistics.mean(written)),
    }


@contextmanager
def timed(taken: dict[str, list[float]]) -> Iterator[None]:
    """Measure the steps of a labeler."""
    before = {name: getattr(module, function) for name, (module, function) in STEPS.items()}

    def measured(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            result = before[name](*arguments, **options)
            taken.setdefault(name, []).append(time.process_time() - start)
            return result

        return call

    for name, (module, function) in STEPS.items():
        setattr(module, function, measured(name))
    try:
        yield
    finally:
        for name, (module, function) in STEPS.items():
            setattr(module, function, before[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "startup", "processes", "costs"))
    parser.add_argument("--images", type=int)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="label-jobs-"))
    try:
        if given.what == "kills":
            found = kills(folder, given.images or 20_000, given.kills)
        elif given.what == "startup":
            found = startup(folder, given.images or 1_000_000)
        else:
            found = {"processes": processes, "costs": costs}[given.what](folder)
    finally:
        shutil.rmtree(folder)
    machine = {"date": time.strftime("%Y-%m-%d"), "cpu": cpu_name(), "cpus": os.cpu_count(), "torch": torch.__version__}
    found = machine | found
    text = json.dumps(found, indent=2)
    print(text)
    if given.output is not None:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
