"""Experiments for docs/explanation/thresholds.md: how well a pair of seed thresholds is chosen without ground truth.

    python docs/experiments/thresholds.py prepare DATA CACHE demo msrc msrc_val voc76 voc437 voc20
    python docs/experiments/thresholds.py measure CACHE SEED EPS demo msrc ...
    python docs/experiments/thresholds.py summary CACHE
    python docs/experiments/thresholds.py table

`prepare` computes what does not depend on the heads (class activations, features, regions, the CRF's labels) and
keeps it in CACHE/SET.pt; `measure` fits the heads of all pairs and keeps their scores and their mIoU in
CACHE/SET.SEED.EPS.json; `summary` puts these together in thresholds.json beside this script, from which `table`
compares criteria, and docs/experiments/thresholds_figure.py draws. DATA holds `msrc_v2` and `voc12_animals` in VOC
layout, and `demo`, the folder of a finished run of the demo (its trained classifier serves). The other sets use the
linear CAM. Images have a long side of at most 320 pixels. One thread, one set at a time.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amn_fast.data import open_dataset, read_activations
from amn_fast.data.augment import resize_image, resize_labels
from amn_fast.data.base import Dataset
from amn_fast.data.store import Activations
from amn_fast.metrics import ThresholdCurve
from amn_fast.models import CamNet
from amn_fast.models.heads import HeadsNet
from amn_fast.pipeline.training import load_weights
from amn_fast.steps import cam, choice, heads, linear_cam

SUMMARY = Path(__file__).with_suffix(".json")
BACKBONE = "efficientnet_lite0"
CPU = torch.device("cpu")
LONGEST = 320
SCALES = (1.5,)
BILATERAL = (50.0, 5.0, 10.0)
THRESHOLDS = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
"""More than the grid's, for extensions of it."""


@dataclass(frozen=True)
class Set:
    """A data set: its folder below DATA, and options of its layout."""

    kind: str
    folder: str
    options: dict[str, Any]
    most: int | None = 80
    """Images, drawn at random, of a larger set."""


def _voc(ids: str, six: str = "") -> dict[str, Any]:
    return {
        "ids": ids,
        "masks": f"SegmentationClass{six}",
        "labels": f"cls_labels{six}.npy",
        "classes": f"classes{six}.txt",
    }


SETS = {
    "demo": Set("folder", "demo/data", {"masks": "masks", "classes": "classes.txt", "ids": "ids.txt"}, None),
    "msrc": Set("voc", "msrc_v2", _voc("train")),
    "msrc_val": Set("voc", "msrc_v2", _voc("val")),
    "voc76": Set("voc", "voc12_animals", _voc("train_mini", "6")),
    "voc437": Set("voc", "voc12_animals", _voc("train", "6")),
    "voc20": Set("voc", "voc12_animals", _voc("train"), 120),
}


@dataclass
class Prepared:
    """What is kept of a set."""

    classes: list[str]
    ids: list[str]
    images: list[choice.Candidates]
    ground_truth: list[NDArray[np.uint8]]
    """At stride 4."""
    cam: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def open_set(name: str, data: Path) -> Dataset:
    chosen = SETS[name]
    return open_dataset(chosen.kind, data / chosen.folder, **chosen.options)


def ids_of(name: str, dataset: Dataset) -> list[str]:
    most = SETS[name].most or len(dataset.ids)
    drawn = np.random.default_rng(0).permutation(len(dataset.ids))[:most]
    return [dataset.ids[k] for k in np.sort(drawn)]


def image_of(dataset: Dataset, id: str) -> NDArray[np.uint8]:
    """The image, its long side at most 320 pixels."""
    image = dataset.image(id)
    factor = min(1.0, LONGEST / max(image.shape[:2]))
    return resize_image(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))


def linear_activations(net: CamNet, dataset: Dataset, ids: list[str]) -> Iterator[Activations]:
    features = [linear_cam.pooled_features(net, image_of(dataset, id), CPU) for id in ids]
    labels = torch.from_numpy(np.stack([dataset.labels(id) for id in ids])).float()
    fitted = linear_cam.fit(torch.cat(features), labels.repeat_interleave(len(features[0]), 0))
    net.classifier.weight.copy_(fitted[:, :, None, None])
    for id in ids:
        yield cam.activate(net, image_of(dataset, id), dataset.labels(id), SCALES, CPU)


@torch.no_grad()
def prepare(name: str, data: Path, cache: Path) -> None:
    dataset = open_set(name, data)
    ids = [id for id in ids_of(name, dataset) if dataset.labels(id).any()]
    classes = list(dataset.classes)
    classifier = CamNet(len(classes), BACKBONE, "imagenet").eval()
    if name == "demo":
        load_weights(data / "demo/weights/cam.safetensors", classifier)
        activations: Any = (read_activations(data / f"demo/cam/{id}.npz") for id in ids)
    else:
        activations = linear_activations(classifier, dataset, ids)
    net = HeadsNet(len(classes), BACKBONE).eval()
    net.backbone.load_state_dict(classifier.backbone.state_dict())
    rng = np.random.default_rng(0)
    some = [ids[k] for k in np.sort(rng.permutation(len(ids))[:50])]
    heads.fit_projections(net, [heads.level_maps(net, image_of(dataset, id), CPU) for id in some], rng)
    images, truths, curve = [], [], ThresholdCurve(len(classes))
    start = time.monotonic()
    for id, found in zip(ids, activations, strict=True):
        image, truth = image_of(dataset, id), dataset.ground_truth(id)
        assert truth is not None
        truth = resize_labels(truth, image.shape[:2])
        images.append(choice.prepare(net, image, found, THRESHOLDS, BILATERAL, CPU))
        truths.append(truth[::4, ::4])
        curve.add(found.full, found.keys, truth)
    best = curve.result()
    cam_scores = {"best": best.best_miou, "threshold": best.best_threshold, "mean": best.mean}
    print(
        name,
        len(ids),
        "images",
        {k: round(v, 3) for k, v in cam_scores.items()},
        f"{time.monotonic() - start:.0f} s",
        flush=True,
    )
    torch.save(Prepared(classes, ids, images, truths, cam_scores), cache / f"{name}.pt")


GRID = choice.pairs_of(choice.FG, choice.BG)


def pool(prepared: Prepared, pairs: list[choice.Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells of all images that the heads are fitted on: features (N, D) and labels (P, N)."""
    features, labels = [], []
    for k, image in enumerate(prepared.images):
        grid = heads.grid_features(image.maps).flatten(1).T
        cells = heads.cells_of_image(len(grid), len(prepared.images), np.random.default_rng([0, k]))
        features.append(grid[torch.from_numpy(cells)])
        seeds = choice.seeds(image.labels, THRESHOLDS, pairs)
        labels.append(torch.from_numpy(seeds.reshape(len(pairs), -1)[:, cells]))
    return torch.cat(features), torch.cat(labels, 1)


def measure(name: str, cache: Path, seed: int, eps: float) -> None:
    prepared: Prepared = torch.load(cache / f"{name}.pt", weights_only=False)  # written by this script
    n_classes = len(prepared.classes)
    start = time.monotonic()
    fitted = heads.fit(*pool(prepared, GRID), n_classes, random_seed=seed, eps=eps)
    seconds = time.monotonic() - start
    curves = [ThresholdCurve(n_classes, choice.MASK_THRESHOLDS) for _ in GRID]
    measured, classes = [], []
    for image, truth in zip(prepared.images, prepared.ground_truth, strict=True):
        measured.append(choice.measure(fitted, image))
        classes.append(np.isin(np.arange(1, n_classes + 1), image.keys))
        logits = heads.logits(fitted, heads.grid_features(image.maps), image.keys)
        size = (truth.shape[0], truth.shape[1])
        p = torch.nn.functional.interpolate(logits, size, mode="bilinear").softmax(1)[:, 1:]
        for curve, one in zip(curves, p.numpy(), strict=True):
            curve.add(one, np.array(image.keys, np.uint8), truth)
    figures = np.array([(one.eta, one.eta_mask, one.view) for one in measured])  # (images, 3, P)
    shown = np.array(classes, np.float64)
    shown = shown[:, shown.any(0)]
    record = {
        "set": name, "images": len(measured), "classes": n_classes, "seed": seed, "eps": eps, "cam": prepared.cam,
        "figures": figures.mean(0).round(6).tolist(),
        "balanced": np.tensordot((shown / shown.sum(0)).mean(1), figures, 1).round(6).tolist(),
        "expected": [[round(v, 6) for v in one.expected_iou] for one in choice.summarise(measured)],
        "miou": np.array([curve.result().miou for curve in curves], np.float64).round(6).tolist(),
    }  # fmt: skip
    (cache / f"{name}.{seed}.{eps}.json").write_text(json.dumps(record))
    best = np.array(record["miou"]).max(1)
    print(
        f"{name} seed {seed} eps {eps}: heads {seconds:.1f} s, best {GRID[best.argmax()]} {best.max():.3f}", flush=True
    )


Record = dict[str, Any]
FIXED = {"fixed .6 / .2": (0.6, 0.2), "fixed .3 / .05 (published)": (0.3, 0.05)}
HALF = choice.MASK_THRESHOLDS.index(0.5)


def _z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return (values - values.mean()) / values.std()


def criteria(record: Record) -> dict[str, NDArray[np.float64]]:
    """Scores of all pairs by each criterion."""
    result = {}
    for key, suffix in (("figures", ""), ("balanced", ", class-balanced")):
        eta, eta_mask, view = np.array(record[key])
        result |= {
            f"Q{suffix}": eta * eta_mask,
            f"view{suffix}": view,
            f"Q x view{suffix}": eta * eta_mask * view,
            f"Q x view²{suffix}": eta * eta_mask * view**2,
            f"z(Q) + z(view){suffix}": _z(eta * eta_mask) + _z(view),
            f"eta²(p){suffix}": eta,
            f"eta²(mask){suffix}": eta_mask,
        }
    result["expected IoU of the heads"] = np.array(record["expected"]).max(1)
    return result


RULE = "**the rule: Q x view², mean of the fits**"


def regrets(record: Record, criterion: str, pair: int | None = None) -> NDArray[np.float64]:
    """Regret of the pair that a criterion chooses: at the best mask threshold, and at .5."""
    miou = np.array(record["miou"])
    figures = np.stack([miou.max(1), miou[:, HALF]])
    if criterion == "random pair":
        return figures.max(1) - figures.mean(1)
    if pair is None:
        fixed = FIXED.get(criterion)
        pair = int(criteria(record)[criterion].argmax()) if fixed is None else GRID.index(fixed)
    return figures.max(1) - figures[:, pair]


def by_set(records: list[Record], row: str) -> dict[str, NDArray[np.float64]]:
    """Regrets of a criterion on each set, means over its records."""
    names = dict.fromkeys(record["set"] for record in records)
    found = {}
    for name in names:
        own = [record for record in records if record["set"] == name]
        if row == RULE:  # one choice by the mean score of all fits
            pair = int(np.mean([criteria(record)["Q x view²"] for record in own], axis=0).argmax())
            each = [regrets(record, row, pair) for record in own]
        else:
            each = [regrets(record, row) for record in own]
        found[name] = np.mean(each, axis=0)
    return found


def table(records: list[Record]) -> None:
    """Regrets of each criterion, the choice of a criterion by leave-one-set-out, and mask thresholds."""
    rows = [RULE, *criteria(records[0]), *FIXED, "random pair"]
    found = {row: by_set(records, row) for row in rows}
    names = list(found[rows[0]])
    print("| criterion | " + " | ".join(names) + " | mean | worst |\n" + "|---" * (len(names) + 3) + "|")
    for row in rows:
        cells = [*found[row].values(), np.mean([*found[row].values()], 0), np.max([*found[row].values()], 0)]
        print(f"| {row} | " + " | ".join(f"{best:.3f} / {half:.3f}" for best, half in cells) + " |")
    left_out = []
    for name in names:
        others = {row: np.mean([found[row][n] for n in names if n != name]) for row in criteria(records[0])}
        chosen = min(others, key=lambda row: others[row])
        left_out.append(found[chosen][name])
        print(f"without {name}: {chosen}, regret there {found[chosen][name].round(3).tolist()}")
    print("leave-one-set-out: mean", np.mean(left_out, 0).round(3), "worst", np.max(left_out, 0).round(3))
    for record in records:
        miou, scores = np.array(record["miou"]), criteria(record)
        top, pair = int(miou.max(1).argmax()), int(scores["Q x view²"].argmax())
        correlation = np.corrcoef(np.argsort(np.argsort(scores["Q x view²"])), np.argsort(np.argsort(miou.max(1))))
        print(
            f"{record['set']} seed {record['seed']} eps {record['eps']}: CAM {record['cam']['best']:.3f}, best pair"
            f" {GRID[top]} {miou[top].max():.3f}, chosen {GRID[pair]} {miou[pair].max():.3f}, rank correlation"
            f" {correlation[0, 1]:.2f}"
        )
    rules = {
        "expected IoU": lambda record, pair: int(np.argmax(record["expected"][pair])),
        **{f"fixed {t}": lambda _, __, t=t: choice.MASK_THRESHOLDS.index(t) for t in (0.25, 0.3, 0.4, 0.5, 0.6)},
    }
    for rule, at in rules.items():
        losses = []
        for record in records:
            pair = int(criteria(record)["Q x view²"].argmax())
            miou = np.array(record["miou"][pair])
            losses.append(miou.max() - miou[at(record, pair)])
        print(f"mask threshold, {rule}: mean {np.mean(losses):.3f}, worst {np.max(losses):.3f}")


def main() -> None:
    torch.set_num_threads(1)
    command, *rest = sys.argv[1:]
    if command == "prepare":
        for name in rest[2:]:
            prepare(name, Path(rest[0]), Path(rest[1]))
    elif command == "measure":
        for name in rest[3:]:
            measure(name, Path(rest[0]), int(rest[1]), float(rest[2]))
    elif command == "summary":
        files = [path for name in SETS for path in sorted(Path(rest[0]).glob(f"{name}.*.json"))]
        records = [json.loads(path.read_text()) for path in files]
        SUMMARY.write_text(json.dumps({"grid": GRID, "records": records}) + "\n")
    elif command == "table":
        table(json.loads(SUMMARY.read_text())["records"])


if __name__ == "__main__":
    main()
