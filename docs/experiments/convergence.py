"""Does the classifier train on small sets without a rate being touched? One line of JSON for each set and random seed.

    python docs/experiments/convergence.py --msrc data/msrc_v2 --voc data/voc12_animals --work work/convergence

The sets: one, two and ten classes of MSRC v2; cats and dogs, and six classes, of VOC 2012; the demo. Small crops, six
epochs, the learning rates of the shipped configurations for efficientnet_lite0. `--clip 0` shows what restarts alone
do, and `--clip 0 --restarts 0` what neither does.
"""

import argparse
import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from amn_fast.config import Config
from amn_fast.data import open_dataset
from amn_fast.models import CamNet
from amn_fast.pipeline import run_stage, training
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.training import load_weights, read_losses
from amn_fast.steps.cam import activate
from amn_fast.steps.convergence import guessing_loss

CROP, RATE, SHOWN = 128, 0.02, 60


def choose(source, classes, count, rng, others=False):
    """Ids of `count` images that show one of the classes; half of them others, where asked for."""
    places = [source.classes.index(name) for name in classes]
    has = [id for id in source.ids if source.labels(id)[places].any()]
    rest = [id for id in source.ids if id not in set(has)]
    rng.shuffle(has)
    rng.shuffle(rest)
    return (has[: count // 2] + rest[: count - count // 2]) if others else has[:count]


def sets(msrc, voc):
    """Name -> (data set, classes, ids)."""
    rng = np.random.default_rng(0)
    photos = open_dataset("voc", msrc, ids="train", labels="cls_labels.npy", classes="classes.txt")
    animals = open_dataset(
        "voc", voc, ids="train", masks="SegmentationClass6", labels="cls_labels6.npy", classes="classes6.txt"
    )
    mini = open_dataset(
        "voc", voc, ids="train_mini", masks="SegmentationClass6", labels="cls_labels6.npy", classes="classes6.txt"
    )
    two, ten, pets = photos.classes[:2], photos.classes[:10], ("cat", "dog")
    one = ("cow",) if "cow" in photos.classes else photos.classes[:1]
    return {
        "MSRC, one class": (photos, one, choose(photos, one, 50, rng, others=True)),
        "MSRC, two classes": (photos, two, choose(photos, two, 50, rng)),
        "MSRC, ten classes": (photos, ten, choose(photos, ten, 100, rng)),
        "VOC, cats and dogs": (animals, pets, choose(animals, pets, 110, rng)),
        "VOC, six classes": (mini, animals.classes, list(mini.ids)),
    }


def write_set(folder, source, classes, ids):
    """The images of `ids` with a label file, as a data set of kind folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    places = [source.classes.index(name) for name in classes]
    with (folder / "labels.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *classes])
        for id in sorted(ids):
            shutil.copy(source.image_file(id), folder / "images")
            writer.writerow([id, *source.labels(id)[places].astype(int)])


def precision(scores, right):
    """Average precision of a ranking."""
    ranked = right[np.argsort(-scores, kind="stable")]
    return (ranked.cumsum() / np.arange(1, len(ranked) + 1))[ranked].mean() if ranked.any() else np.nan


def measure(config):
    """Mean average precision and the share of constant class activations, of the first training images."""
    work = Workspace(config)
    data = work.dataset
    net = CamNet(len(data.classes), config.backbone)
    load_weights(work.weights("cam"), net)
    net.eval()
    ids = data.ids[:SHOWN]
    scores, flat, maps = [], 0, 0
    with torch.no_grad():
        for id in ids:
            image = data.image(id)
            scores.append(net(torch.as_tensor(net.backbone.normalize(image))[None])[0].numpy())
            scale = CROP / max(image.shape[:2])
            found = activate(net, image, data.labels(id), [scale], torch.device("cpu")).full
            flat += sum(plane.std() < 0.03 for plane in found)
            maps += len(found)
    labels = np.array([data.labels(id) for id in ids])
    ranked = [precision(column, right) for column, right in zip(np.array(scores).T, labels.T, strict=True)]
    return float(np.nanmean(ranked)), f"{flat}/{maps}"


def run(name, data, folder, seed, clip, rate):
    settings = {
        "epochs": 6, "batch": 16, "crop": CROP, "lr": rate, "new_lr": 10 * rate, "momentum": 0.9,
        "long_side": [round(0.9 * CROP), round(1.3 * CROP)], "clip": clip or None,
    }  # fmt: skip
    config = Config.model_validate(
        {"name": name, "data": data, "run": folder, "seed": seed, "mode": "fixed", "device": "cpu",
         "backbone": "efficientnet_lite0", "train_cam": settings}
    )  # fmt: skip
    start = time.process_time()
    run_stage(config, "train-cam")
    seconds = time.process_time() - start
    work = Workspace(config)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    ap, flat = measure(config)
    labels = np.array([work.dataset.labels(id) for id in work.dataset.ids])
    losses = [round(loss, 3) for loss in read_losses(work, "cam")]
    return {
        "set": name, "images": len(labels), "seed": seed, "clip": clip, "rate": rate,
        "restarts": sum(event["event"] == "restart" for event in events), "guess": round(guessing_loss(labels), 3),
        "losses": losses, "mAP": round(ap, 3), "constant": flat, "cpu_seconds": round(seconds),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--msrc", type=Path, required=True)
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="new folder for sets and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--restarts", type=int, default=training.RESTARTS)
    parser.add_argument("--only", nargs="+", help="names of sets")
    options = parser.parse_args()
    torch.set_num_threads(1)
    training.RESTARTS = options.restarts
    data = {"demo": {"kind": "demo", "root": str(options.work / "data" / "demo")}}
    for name, (source, classes, ids) in sets(options.msrc, options.voc).items():
        folder = options.work / "data" / name.replace(",", "").replace(" ", "_")
        if not folder.exists():
            write_set(folder, source, classes, ids)
        data[name] = {"kind": "folder", "root": str(folder)}
    for seed in options.seeds:
        for name, one in data.items():
            if not options.only or name in options.only:
                folder = (
                    options.work / f"{name.replace(',', '').replace(' ', '_')}_{seed}_{options.clip}_{options.restarts}"
                )
                print(json.dumps(run(name, one, folder, seed, options.clip, options.rate)), flush=True)


if __name__ == "__main__":
    main()
