"""eval-seg against the published way of evaluating with a CRF: pictures per second, bytes written, peak memory.

Usage: python benchmarks/bench_eval_seg.py [--pictures 8] [--classes 20] [--backbone efficientnet_lite0] [--rounds 3]
       [--output FILE.json]

Published: the network first, on all pictures; their logits at full size go to the disk as .npy; then a pool of
processes, one a core, reads them, takes the softmax and runs pydensecrf2. Ours: the stage itself, report included. The
methods take turns, each time in a new process; processor seconds, of all threads and processes, stand beside the time,
since they say more on a machine that does other work. Importing, making the network and starting the pool do not count.
Needs the extras `pipeline` and `bench`. The network is untrained: neither method's time depends on what it knows.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

PHOTO = Path(__file__).parents[1] / "tests" / "golden" / "crf" / "voc_full_3labels.npz"
CORES = os.cpu_count() or 1


def make_set(root: Path, pictures: int, classes: int) -> None:
    """Photographs of VOC's size, 375 x 500, and masks of a few blocks."""
    photo = np.load(PHOTO)["image"]
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    blocks = np.random.default_rng(0).integers(0, classes + 1, (pictures, 3, 4), np.uint8)
    for k in range(pictures):
        picture = np.roll(photo, 31 * k, axis=1)
        cv2.imwrite(str(root / "images" / f"{k:03d}.png"), picture[..., ::-1])
        mask = cv2.resize(blocks[k], picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(root / "masks" / f"{k:03d}.png"), mask)
    names = [f"class{label}" for label in range(1, classes + 1)]
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    rows = [f"{k:03d}" + ",1" * classes for k in range(pictures)]
    (root / "labels.csv").write_text("\n".join([f"id,{','.join(names)}", *rows]) + "\n")


def configuration(root: Path, backbone: str):
    from amn_fast.config import Config

    options = {"masks": "masks", "classes": "classes.txt"}
    return Config.model_validate(
        {
            "name": "bench",
            "data": {"kind": "folder", "root": root, "options": options},
            "run": root / "run",
            "device": "cpu",
            "train_seg": {"recipe": "small", "backbone": backbone, "weights": None, "masks": root / "masks"},
        }
    )


def ours(root: Path, backbone: str) -> dict:
    """The stage, from pictures to scores and report."""
    import torch

    from amn_fast.models import DeepLabV2, MultiScale
    from amn_fast.pipeline import segmentation
    from amn_fast.pipeline.folder import Workspace
    from amn_fast.pipeline.training import save_weights

    config = configuration(root, backbone)
    work = Workspace(config)
    torch.manual_seed(0)
    save_weights(work.weights("seg"), MultiScale(DeepLabV2(len(work.dataset.classes), backbone)))
    before = {path: path.stat().st_size for path in config.run.rglob("*") if path.is_file()}
    start, processor = time.perf_counter(), time.process_time()
    segmentation.evaluate(work, lambda path: path)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    written = sum(path.stat().st_size for path in config.run.rglob("*") if path.is_file() and path not in before)
    record = json.loads((config.run / "segmentation.json").read_text())
    return row(seconds, processor, written, own_peak(), record["with_crf"]["miou"])


def row(seconds: float, processor: float, written: int, peak_mb: float, miou: float) -> dict:
    measured = {"seconds": seconds, "processor_seconds": processor, "written_mb": written / 1e6}
    return measured | {"peak_mb": peak_mb, "miou": miou}


def published(root: Path, backbone: str) -> dict:
    """Logits to the disk, then the CRFs in processes."""
    import torch
    from torch.nn import functional as F

    from amn_fast.metrics import Confusion
    from amn_fast.models import DeepLabV2, MultiScale
    from amn_fast.pipeline.folder import Workspace

    dataset = Workspace(configuration(root, backbone)).dataset
    torch.manual_seed(0)
    net = MultiScale(DeepLabV2(len(dataset.classes), backbone)).eval()
    folder = root / "run" / "logits"
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        list(pool.map(warm, range(4 * CORES)))
        start, processor = time.perf_counter(), time.process_time()
        confusions = [Confusion(len(dataset.classes)) for _ in range(2)]
        for id in dataset.ids:
            x = net.base.normalize(dataset.image(id))
            with torch.no_grad():
                logits = F.interpolate(net(x[None])[-1], size=x.shape[1:], mode="bilinear", align_corners=False)[0]
            np.save(folder / f"{id}.npy", logits.numpy())
            confusions[0].add(logits.argmax(0).numpy().astype(np.uint8), dataset.truth(id))
        jobs = [(folder / f"{id}.npy", root / "images" / f"{id}.png") for id in dataset.ids]
        workers = {}
        for id, (labels, process, peak, spent) in zip(dataset.ids, pool.map(refine, jobs), strict=True):
            confusions[1].add(labels, dataset.truth(id))
            workers[process] = peak
            processor -= spent
        miou = confusions[1].scores(absent="skip").miou
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
    written = sum(path.stat().st_size for path in folder.iterdir())
    peak = own_peak() + sum(workers.values())
    return row(seconds, processor, written, peak, miou)


def warm(_: int) -> None:
    from pydensecrf import densecrf  # noqa: F401

    time.sleep(0.1)


def refine(job: tuple[Path, Path]) -> tuple[np.ndarray, int, float, float]:
    """One picture's labels after pydensecrf2, the process, its peak memory and the processor seconds of this call."""
    from pydensecrf import densecrf, utils

    start = time.process_time()
    logits, image = np.load(job[0]), np.ascontiguousarray(cv2.imread(str(job[1]))[..., ::-1])
    exponentials = np.exp(logits - logits.max(0))
    crf = densecrf.DenseCRF2D(image.shape[1], image.shape[0], len(logits))
    crf.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(exponentials / exponentials.sum(0))))
    crf.addPairwiseGaussian(sxy=1, compat=3)
    crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    answer = np.array(crf.inference(10)).reshape(logits.shape)
    return answer.argmax(0).astype(np.uint8), os.getpid(), own_peak(), time.process_time() - start


def own_peak() -> float:
    """Highest resident memory of this process in MB. Linux; getrusage would count what the parent had at the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


METHODS = {"ours": ours, "published": published}


def in_a_process(method: str, chosen: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        make_set(Path(folder), chosen.pictures, chosen.classes)
        words = [sys.executable, __file__, "--method", method, "--root", folder, "--backbone", chosen.backbone]
        answer = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(answer.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.method:
        print(json.dumps(METHODS[chosen.method](chosen.root, chosen.backbone)))
        return
    found: dict[str, list[dict]] = {method: [] for method in METHODS}
    for _ in range(chosen.rounds):
        for method in METHODS:
            found[method].append(in_a_process(method, chosen))
            print(method, found[method][-1], flush=True)
    rows = {
        method: {
            "seconds": round(statistics.median(run["seconds"] for run in runs), 2),
            "processor_seconds": round(statistics.median(run["processor_seconds"] for run in runs), 2),
            "pictures_per_second": round(statistics.median(chosen.pictures / run["seconds"] for run in runs), 3),
            "written_mb": round(statistics.median(run["written_mb"] for run in runs), 2),
            "peak_mb": round(statistics.median(run["peak_mb"] for run in runs)),
            "miou": runs[0]["miou"],
        }
        for method, runs in found.items()
    }
    pairs = list(zip(found["published"], found["ours"], strict=True))
    result = {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {CORES} cores, load {os.getloadavg()[0]:.1f} at the end",
        "threads_of_pytorch": os.environ.get("OMP_NUM_THREADS", "default"),
        "what": f"{chosen.pictures} pictures of 375 x 500, {chosen.classes + 1} labels, {chosen.backbone},"
        f" scales 1, .75, .5, 10 mean-field steps, {chosen.rounds} rounds, medians",
        "methods": rows,
        "published_over_ours": {
            key: round(statistics.median(theirs[key] / mine[key] for theirs, mine in pairs), 2)
            for key in ("seconds", "processor_seconds")
        },
        "runs": found,
    }
    print(json.dumps(result, indent=1))
    if chosen.output:
        chosen.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
