"""Experiments for docs/explanation/thresholds.md: how well a pair of seed thresholds is chosen without ground truth.

    python docs/experiments/thresholds.py prepare DATA CACHE demo msrc msrc_val voc76 voc437 voc20
    python docs/experiments/thresholds.py measure CACHE demo msrc ...
    python docs/experiments/thresholds.py table CACHE demo msrc ...

`prepare` computes what does not depend on the heads (class activations, features, regions, the CRF's labels) and
keeps it in CACHE/SET.pt; `measure` fits the heads of all pairs and keeps their scores and their mIoU in
CACHE/SET.SEED.EPS.npz; `table` compares criteria. DATA holds `msrc_v2` and `voc12_animals` in VOC layout, and `demo`,
the folder of a finished run of the demo (its trained classifier serves). The other sets use the linear CAM. One
thread, one set at a time.
"""

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
    curves = [ThresholdCurve(n_classes) for _ in GRID]
    figures, classes = [], []
    for image, truth in zip(prepared.images, prepared.ground_truth, strict=True):
        found = choice.measure(fitted, image)
        figures.append(np.stack([found.eta, found.eta_mask, found.view]))
        classes.append(np.isin(np.arange(1, n_classes + 1), image.keys))
        logits = heads.logits(fitted, heads.grid_features(image.maps), image.keys)
        size = (truth.shape[0], truth.shape[1])
        p = torch.nn.functional.interpolate(logits, size, mode="bilinear").softmax(1)[:, 1:]
        for curve, one in zip(curves, p.numpy(), strict=True):
            curve.add(one, np.array(image.keys, np.uint8), truth)
    results = [curve.result() for curve in curves]
    half = [float(result.miou[np.argmin(np.abs(np.asarray(result.thresholds) - 0.5))]) for result in results]
    best = [result.best_miou for result in results]
    np.savez(
        cache / f"{name}.{seed}.{eps}.npz",
        figures=np.array(figures), classes=np.array(classes), best=best, half=half,
    )  # fmt: skip
    top = int(np.argmax(best))
    print(f"{name} seed {seed} eps {eps}: heads {seconds:.1f} s, best pair {GRID[top]} {best[top]:.3f}", flush=True)


Figures = dict[str, NDArray[np.float64]]


def _mean(found: Figures, balanced: bool) -> NDArray[np.float64]:
    """Means of the figures over images, (3, P); balanced: over classes of the means over each class's images."""
    if not balanced:
        return found["figures"].mean(0)
    classes = found["classes"][:, found["classes"].any(0)].astype(np.float64)
    weights = (classes / classes.sum(0)).mean(1)
    return np.tensordot(weights, found["figures"], 1)


def _z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return (values - values.mean()) / values.std()


def criteria(found: Figures) -> dict[str, NDArray[np.float64]]:
    """Scores of all pairs by each criterion."""
    result = {}
    for balanced in (False, True):
        eta, eta_mask, view = _mean(found, balanced)
        of_view = ", class-balanced" if balanced else ""
        result[f"Q{of_view}"] = eta * eta_mask
        result[f"view agreement{of_view}"] = view
        result[f"Q x view{of_view}"] = eta * eta_mask * view
        result[f"Q x view²{of_view}"] = eta * eta_mask * view**2
        result[f"z(Q) + z(view){of_view}"] = _z(eta * eta_mask) + _z(view)
        result[f"eta²(mask){of_view}"] = eta_mask
        result[f"eta²(p){of_view}"] = eta
    return result


def chosen(found: Figures, criterion: str) -> int:
    """The pair that a criterion, or a fixed rule, chooses."""
    if criterion in FIXED:
        return GRID.index(FIXED[criterion])
    return int(np.argmax(criteria(found)[criterion]))


FIXED = {"fixed .6 / .2": (0.6, 0.2), "fixed .3 / .05": (0.3, 0.05)}


def table(cache: Path, names: list[str]) -> None:
    """Regrets of each criterion, at the best mask threshold and at .5, means over the files of a set."""
    files = {name: sorted(cache.glob(f"{name}.*.npz")) for name in names}
    loaded: dict[str, list[Figures]] = {name: [dict(np.load(path)) for path in paths] for name, paths in files.items()}
    print("| criterion | " + " | ".join(names) + " | mean | worst |")
    print("|---" * (len(names) + 3) + "|")
    rows = [*criteria(loaded[names[0]][0]), *FIXED, "random pair"]
    for row in rows:
        cells = []
        for name in names:
            regrets = []
            for found in loaded[name]:
                for kind in ("best", "half"):
                    at = found[kind].mean() if row == "random pair" else found[kind][chosen(found, row)]
                    regrets.append(found[kind].max() - at)
            cells.append(np.array(regrets).reshape(-1, 2).mean(0))
        cells += [np.mean(cells, 0), np.max(cells, 0)]
        print(f"| {row} | " + " | ".join(f"{best:.3f} / {half:.3f}" for best, half in cells) + " |")
    for name in names:
        for path, found in zip(files[name], loaded[name], strict=True):
            picks = {row: GRID[chosen(found, row)] for row in ("Q", "view agreement", "z(Q) + z(view)")}
            top = int(np.argmax(found["best"]))
            print(path.stem, "best", GRID[top], f"{found['best'][top]:.3f}", picks)


def main() -> None:
    torch.set_num_threads(1)
    command, *rest = sys.argv[1:]
    if command == "prepare":
        for name in rest[2:]:
            prepare(name, Path(rest[0]), Path(rest[1]))
    elif command == "measure":
        for name in rest[1:]:
            measure(name, Path(rest[0]), 0, heads.EPS)
    elif command == "table":
        table(Path(rest[0]), rest[1:])


if __name__ == "__main__":
    main()
