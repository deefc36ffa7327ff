"""Experiments for docs/explanation/thresholds.md: variants of the fast mode, mIoU of class activations and of heads.

    python docs/experiments/fast_variants.py SET DATA [--images 80] [--only PART]

SET is one of docs/experiments/thresholds.py, DATA its folder. Images have a long side of at most 320 pixels. First the
linear classifier: on which views it is fitted and at which scales the class activations are computed. Then the heads,
from the seeds of the first classifier at the pair that the rule chose for the set (thresholds.json). Prints one line
for each variant: best mIoU over all thresholds, at .5, and the CPU seconds that the variant takes for one image.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import thresholds as study
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from amn_fast.data.augment import resize_image, resize_labels
from amn_fast.data.store import Activations
from amn_fast.metrics import ThresholdCurve
from amn_fast.models import CamNet
from amn_fast.models import heads as model
from amn_fast.models.heads import HeadsNet
from amn_fast.ops.merge import merge_amn, merge_cam
from amn_fast.ops.refine_seed import crf_labels
from amn_fast.steps import choice, heads, linear_cam

CPU = torch.device("cpu")
SCALES = (0.75, 1.0, 1.5, 2.0)
BILATERAL = (50.0, 5.0, 10.0)


class Images:
    """The images of a set with their ground truth, in memory."""

    def __init__(self, name: str, data: Path, most: int) -> None:
        dataset = study.open_set(name, data)
        ids = [id for id in dataset.ids if dataset.labels(id).any()]
        ids = [ids[k] for k in np.sort(np.random.default_rng(0).permutation(len(ids))[:most])]
        self.classes = len(dataset.classes)
        self.images = [study.image_of(dataset, id) for id in ids]
        self.labels = np.stack([dataset.labels(id) for id in ids])
        self.keys = [np.flatnonzero(label) + 1 for label in self.labels]
        truths = [dataset.ground_truth(id) for id in ids]
        self.truths = [resize_labels(truth, image.shape[:2]) for truth, image in zip(truths, self.images, strict=True)]

    def score(self, found: Sequence[Activations]) -> str:
        curve = ThresholdCurve(self.classes)
        for one, truth in zip(found, self.truths, strict=True):
            curve.add(one.full, one.keys, truth)
        best = curve.result()
        return f"best {best.best_miou:.3f} at {best.best_threshold:.2f}, at .5 {curve.scores(0.5).miou:.3f}"


@torch.no_grad()
def views(net: CamNet, image: NDArray[np.uint8], scale: float) -> Tensor:
    """Last features of an image at a scale and of its flip, (2, C, h, w) half precision."""
    size = (round(image.shape[0] * scale), round(image.shape[1] * scale))
    x = net.backbone.normalize(resize_image(image, size))
    return torch.cat([net.backbone(one[None])[-1] for one in (x, x.flip(-1))]).half()


def tiles(maps: Tensor) -> Tensor:
    """Pooled features of the whole view and of its four quarters, (10, C)."""
    h, w = (side // 2 for side in maps.shape[-2:])
    parts = [maps, maps[..., :h, :w], maps[..., :h, w:], maps[..., h:, :w], maps[..., h:, w:]]
    return torch.cat([part.float().mean((2, 3)) for part in parts])


def cam_of(weights: Tensor, maps: Sequence[Tensor], size: tuple[int, int], keys: NDArray[np.int64]) -> Activations:
    """Class activations, as `CamNet.activations` and `merge_cam` give them."""
    summed = []
    for pair in maps:
        one = F.relu(torch.einsum("kc,bchw->bkhw", weights, pair.float()))
        summed.append(one[0] + one[1].flip(-1))
    strided, full = merge_cam(summed, size, (keys - 1).tolist())
    return Activations(keys.astype(np.uint8), strided.numpy(), full.numpy())


def study_cam(data: Images) -> list[Activations]:
    """All variants of the classifier; the class activations of the first one."""
    net = CamNet(data.classes, study.BACKBONE, "imagenet").eval()
    found: dict[float, list[Tensor]] = {}
    for scale in SCALES:
        start = time.process_time()
        found[scale] = [views(net, image, scale) for image in data.images]
        print(f"features at {scale}: {(time.process_time() - start) / len(data.images):.3f} s", flush=True)
    labels = torch.from_numpy(data.labels).float()

    def weights(scales: Sequence[float], decay: float = 1e-3) -> Tensor:
        pooled = [torch.cat([found[s][k].float().mean((2, 3)) for s in scales]) for k in range(len(labels))]
        return linear_cam.fit(torch.cat(pooled), labels.repeat_interleave(len(pooled[0]), 0), decay=decay)

    fits = {
        "fit at 1.0": weights([1.0]),
        "fit at .75, 1.0, 1.5": weights([0.75, 1.0, 1.5]),
        "fit at 1.0, 1.5, 2.0": weights([1.0, 1.5, 2.0]),
        "fit at 1.0, decay 1e-2": weights([1.0], 1e-2),
        "fit at 1.0, decay 1e-4": weights([1.0], 1e-4),
        "fit at 1.0 and 1.5, decay 1e-4": weights([1.0, 1.5], 1e-4),
    }
    first: list[Activations] = []
    for name, fitted in fits.items():
        for scales in ([1.0, 1.5], [1.0, 1.5, 2.0], [1.5]):
            maps = [
                cam_of(fitted, [found[s][k] for s in scales], image.shape[:2], data.keys[k])
                for k, image in enumerate(data.images)
            ]
            print(f"CAM, {name}, seen at {scales}: {data.score(maps)}", flush=True)
            first = first or maps
    return first


def seeds_of(data: Images, cams: Sequence[Activations], pair: choice.Pair) -> list[NDArray[np.uint8]]:
    result = []
    for image, cam in zip(data.images, cams, strict=True):
        high, low = crf_labels(image, cam.full, cam.keys, pair, bilateral=BILATERAL, threads=1)
        result.append(choice.combine(high, low))
    return result


class Heads:
    """Frozen features of all images at several scales, each with its flip, for heads."""

    def __init__(self, data: Images, scales: Sequence[float], channels: int = 128) -> None:
        model.MOST_CHANNELS = channels
        self.data, self.net = data, HeadsNet(data.classes, study.BACKBONE).eval()
        self.net.backbone.load_state_dict(CamNet(data.classes, study.BACKBONE, "imagenet").backbone.state_dict())
        some = [heads.level_maps(self.net, image, CPU) for image in data.images[:50]]
        heads.fit_projections(self.net, some, np.random.default_rng([0, 0]))
        self.maps: dict[float, list[list[list[Tensor]]]] = {}
        for scale in scales:
            start = time.process_time()
            self.maps[scale] = [
                [
                    heads.project(self.net, heads.level_maps(self.net, image, CPU, scale=scale, flip=flip))
                    for flip in (False, True)
                ]
                for image in data.images
            ]
            print(f"heads' features at {scale}: {(time.process_time() - start) / len(data.images):.3f} s", flush=True)

    def fit(
        self,
        seeds: Sequence[NDArray[np.uint8]],
        *,
        scales: Sequence[float] = (1.5,),
        random_seed: int = 0,
        steps: int = heads.STEPS,
    ) -> Tensor:
        features, labels = [], []
        for k, seed in enumerate(seeds):
            for scale in scales:
                grid = heads.grid_features(self.maps[scale][k][0])
                chosen = heads.cells_of_image(grid[0].numel(), len(seeds), np.random.default_rng([0, 1, k]))
                features.append(grid.flatten(1).T[torch.from_numpy(chosen)])
                own = heads.grid_labels(seed, (grid.shape[1], grid.shape[2]))
                labels.append(torch.from_numpy(own.ravel()[chosen]))
        options = {"random_seed": random_seed, "steps": steps}
        return heads.fit(torch.cat(features), torch.cat(labels)[None], self.data.classes, **options)[0]

    def see(
        self, fitted: Sequence[Tensor], scales: Sequence[float], seeds: Sequence[NDArray[np.uint8]] | None
    ) -> list[Activations]:
        """Activations by the mean logits over heads, scales and flips; sharpened by the seed where there are seeds."""
        result = []
        for k, image in enumerate(self.data.images):
            keys, size = self.data.keys[k].tolist(), image.shape[:2]
            maps = []
            for scale in scales:
                both = [
                    sum(heads.logits(head[None], heads.grid_features(m), keys)[0] for head in fitted) / len(fitted)
                    for m in self.maps[scale][k]
                ]
                maps.append((both[0] + both[1]) / 2)
            seed = np.full(size, 255, np.uint8) if seeds is None else seeds[k]
            strided, full = merge_amn(maps, size, list(range(len(keys))), torch.from_numpy(seed))
            result.append(Activations(np.array(keys, np.uint8), strided[1:].numpy(), full[1:].numpy()))
        return result


def study_heads(data: Images, cams: Sequence[Activations], pair: choice.Pair) -> None:
    seeds = seeds_of(data, cams, pair)
    known = Heads(data, (1.0, 1.5, 2.0))

    three = [1.0, 1.5, 2.0]

    def tell(
        name: str, fitted: list[Tensor], scales: list[float], own: Sequence[NDArray[np.uint8]]
    ) -> list[Activations]:
        found = known.see(fitted, scales, own)
        print(f"heads, {name}: {data.score(found)}", flush=True)
        return found

    first = known.fit(seeds)
    base = tell("one fit", [first], [1.5], seeds)
    several = tell("seen at 1.0, 1.5, 2.0", [first], three, seeds)
    tell("seen at 1.0, 1.5", [first], [1.0, 1.5], seeds)
    tell("two fits", [first, known.fit(seeds, random_seed=1)], [1.5], seeds)
    tell("400 steps", [known.fit(seeds, steps=400)], [1.5], seeds)
    tell("fitted and seen at 1.0, 1.5, 2.0", [known.fit(seeds, scales=three)], three, seeds)
    for high, low in ((0.5, 0.3), (0.6, 0.4), (0.7, 0.3), (0.8, 0.2)):
        for text, scales, start in (("", [1.5], base), (" at three scales", three, several)):
            second = seeds_of(data, start, (high, low))
            tell(f"second round from {high} / {low}{text}", [known.fit(second)], scales, second)
    known = Heads(data, (1.5,), channels=256)
    tell("256 channels of each level", [known.fit(seeds)], [1.5], seeds)


def chosen_pair(name: str) -> choice.Pair:
    records = [one for one in json.loads(study.SUMMARY.read_text())["records"] if one["set"] == name]
    scores = np.mean([study.criteria(record)["Q x view²"] for record in records], axis=0)
    return study.GRID[int(scores.argmax())]


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("set", choices=study.SETS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--no-heads", action="store_true")
    options = parser.parse_args()
    data = Images(options.set, options.data, options.images)
    print(f"{options.set}: {len(data.images)} images")
    cams = study_cam(data)
    if not options.no_heads:
        study_heads(data, cams, chosen_pair(options.set))


if __name__ == "__main__":
    main()
