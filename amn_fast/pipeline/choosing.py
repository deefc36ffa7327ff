"""Stages that choose thresholds without ground truth.

They fit a linear head for every candidate pair of thresholds on a random subset of the images, score the heads, and
write thresholds/SECTION.json: the chosen pair, the scores of all pairs, and curves over mask thresholds; below
thresholds/SECTION, NUMBER.{looser,chosen,stricter}.png, seeds of example images, and heads/ID.npz, the activations of
the chosen pair's head, which AMN is compared with.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amn_fast.config import AUTO, Seed
from amn_fast.data.masks import write_mask
from amn_fast.data.store import read_activations, read_strided, write_activations
from amn_fast.files import write_json
from amn_fast.metrics import ThresholdCurve
from amn_fast.models import HeadsNet, IrnNet, prepare
from amn_fast.ops.mask import mask_from_scores
from amn_fast.pipeline.chosen import choice_file, heads_file, neighbours
from amn_fast.pipeline.engine import console, cores, for_each, on_device
from amn_fast.pipeline.features import feature_net, subset
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.inference import full_activations
from amn_fast.pipeline.training import load_weights
from amn_fast.steps import choice, heads, irn, mask, seed

New = Callable[[Path], Path]

MOST_IMAGES = 300
"""Images that a choice is made from: a random subset of a larger set."""
MOST_CRF_IMAGES = 100
"""The same for the threshold of masks by a CRF, which runs once for each threshold of an image."""
FITS = 2
"""Fits of each head, on other random cells; scores are means over them."""
EXAMPLES = 3
ROUNDS = 3
"""Times that the grid may be extended where the winner lies on its edge."""


def choose_seed(work: Workspace, new: New) -> None:
    """Choose the thresholds of the seeds from the class activations."""
    _choose(work, new, "cam", work.config.cam_seed)


def choose_amn_seed(work: Workspace, new: New) -> None:
    """Choose the thresholds of the seeds from AMN's activations."""
    _choose(work, new, "amn", work.config.amn_seed)


def choose_background(work: Workspace, new: New) -> None:
    """Choose the threshold of the masks.

    Of masks by a CRF: see `choice.crf_threshold`. Of propagated activations: where the masks agree most with those of
    choose-seed's linear heads at .5, by the mean IoU of the classes; without such heads, where the scores, read as
    probabilities, promise the highest IoU.
    """
    crf = work.config.mask.kind == "crf"
    ids = subset(work, MOST_CRF_IMAGES if crf else MOST_IMAGES)
    if crf:
        at, by, merits = choice.CRF_THRESHOLDS, "regions", _following_regions(work, ids)
        background = choice.crf_threshold(merits["regions"], merits["expected_iou"])
    else:
        at, merits = choice.MASK_THRESHOLDS, _agreeing_with_heads(work, ids)
        by = "heads" if "heads" in merits else "expected_iou"
        background = at[int(merits[by].argmax())]
    result = {
        "background": background,
        "by": by,
        "images": len(ids),
        "of": len(work.dataset.ids),
        "mask_thresholds": list(at),
        **{name: values.round(6).tolist() for name, values in merits.items()},
    }
    write_json(new(choice_file(work.config.run, "mask")), result)
    console.print(f"  mask.background: {background:g}")


Merits = dict[str, NDArray[np.float64]]
"""Measures of the masks at each threshold."""


def _following_regions(work: Workspace, ids: Sequence[str]) -> Merits:
    """How well masks by the CRF follow the images' regions, and the IoU that the activations promise of them."""
    activations = full_activations(work, "amn")
    found: dict[str, tuple[NDArray[np.float64], choice.Promise]] = {}

    def one(id: str) -> None:
        image = work.dataset.image(id)
        maps = activations(id, image)
        masks = mask.crf_masks(image, maps.full, maps.keys, choice.CRF_THRESHOLDS)
        p = maps.full.max(0).reshape(1, -1).astype(np.float64)
        found[id] = choice.following(image, masks), choice.promise(p, [made.reshape(1, -1) > 0 for made in masks])

    for_each("regions of masks", ids, one, cores())
    return {
        "regions": np.asarray(np.mean([found[id][0] for id in ids], axis=0)),
        "expected_iou": choice.expected_iou([found[id][1] for id in ids])[0],
    }


def _agreeing_with_heads(work: Workspace, ids: Sequence[str]) -> Merits:
    """The IoU that propagated scores promise, and how their masks agree with those of the heads, if there are any."""
    config = work.config
    scores_of, lock = mask_scores(work), threading.Lock()
    by_heads = config.cam_seed.fg == AUTO and all(heads_file(config.run, "cam_seed", id).exists() for id in ids)
    found: dict[str, choice.Promise] = {}
    curve = ThresholdCurve(len(work.dataset.classes), choice.MASK_THRESHOLDS)

    def one(id: str) -> None:
        scores = scores_of(id)
        found[id] = choice.promise(scores.max(0).reshape(1, -1).astype(np.float64))
        if by_heads:
            own = read_activations(heads_file(config.run, "cam_seed", id))
            like = mask_from_scores(own.full, [0, *own.keys], 0.5)
            with lock:
                curve.add(scores, own.keys, like)

    for_each("scores of masks", ids, one, cores())
    merits = {"expected_iou": choice.expected_iou([found[id] for id in ids])[0]}
    return merits | {"heads": curve.result().miou} if by_heads else merits


def mask_scores(work: Workspace) -> Callable[[str], NDArray[np.float32]]:
    """The function of an id that gives the scores that its mask is made from, (K, H, W)."""
    config = work.config
    net = IrnNet(config.backbone).to(work.device)
    load_weights(work.weights("irn"), net)
    net = prepare(net, config.precision)

    def one(id: str) -> NDArray[np.float32]:
        with on_device(work.device):
            edge = irn.find_edge(net, work.dataset.image(id), config.edge.pad, work.device)
        return mask.scores(read_strided(work.item("amn", id)), edge, config.mask, work.device, threads=1)

    return one


def _choose(work: Workspace, new: New, kind: str, settings: Seed) -> None:
    ids = subset(work, MOST_IMAGES)
    with heads.one_thread():
        net = feature_net(work, ids)
        search = Search(work, net, kind, settings, ids)
        for _ in range(ROUNDS):
            search.score_new_pairs()
            if not search.extend():
                break
        pair = search.winner()
        write_json(new(choice_file(work.root, f"{kind}_seed")), {**search.to_json(), "examples": ids[:EXAMPLES]})
        console.print(f"  {kind}_seed: fg {pair[0]:g}, bg {pair[1]:g}")
        folder = choice_file(work.root, f"{kind}_seed").with_suffix("")
        for number, id in enumerate(ids[:EXAMPLES]):
            image = work.dataset.image(id)
            found = search.activations(id, image)
            for name, (fg, bg) in neighbours(pair).items():
                example = seed.refine(image, found, Seed(fg=fg, bg=bg, bilateral=settings.bilateral))
                write_mask(new(folder / f"{number}.{name}.png"), example)
        search.write_heads(lambda id: new(heads_file(work.root, f"{kind}_seed", id)))


class Search:
    """The candidates of a set of images, their heads, and their scores."""

    def __init__(self, work: Workspace, net: HeadsNet, kind: str, settings: Seed, ids: Sequence[str]) -> None:
        self._work, self._net, self._kind, self._settings, self._ids = work, net, kind, settings, ids
        self._n_classes = len(work.dataset.classes)
        self._fg, self._bg = list(choice.FG), list(choice.BG)
        self._thresholds: list[float] = []
        self.activations = full_activations(work, kind)
        self._images: dict[str, choice.Candidates] = {}
        self._scores: dict[choice.Pair, choice.PairScores] = {}
        self._heads: dict[choice.Pair, Tensor] = {}

    def score_new_pairs(self) -> None:
        """Fit and measure the heads of the pairs that have no scores yet."""
        pairs = [pair for pair in choice.pairs_of(self._fg, self._bg) if pair not in self._scores]
        self._prepare()
        cells, seed = self._cells(pairs), self._work.config.seed
        fits = [heads.fit(*cells, self._n_classes, random_seed=FITS * seed + k) for k in range(FITS)]
        measured: dict[str, list[choice.Measured]] = {}

        def one(id: str) -> None:
            measured[id] = [choice.measure(fitted, self._images[id]) for fitted in fits]

        for_each("scores of thresholds", self._ids, one, cores())
        scores = choice.summarise([found for id in self._ids for found in measured[id]])
        self._scores |= dict(zip(pairs, scores, strict=True))
        self._heads |= dict(zip(pairs, fits[0], strict=True))

    def _prepare(self) -> None:
        """Features and labels of all images; for a grid that was extended, labels at the new thresholds."""
        wanted = sorted({*self._fg, *self._bg})
        fresh = [threshold for threshold in wanted if threshold not in self._thresholds]

        def one(id: str) -> None:
            image = self._work.dataset.image(id)
            found = self.activations(id, image)
            bilateral = self._settings.bilateral
            if id in self._images:
                self._images[id] = self._images[id].with_labels(image, found, fresh, bilateral)
            else:
                self._images[id] = choice.prepare(self._net, image, found, fresh, bilateral, self._work.device)

        for_each("candidates", self._ids, one, cores())
        self._thresholds += fresh

    def _cells(self, pairs: Sequence[choice.Pair]) -> tuple[Tensor, Tensor]:
        """Cells that the heads are fitted on: features (N, D) and labels (P, N)."""
        features, labels = [], []
        for number, id in enumerate(self._ids):
            image = self._images[id]
            grid = heads.grid_features(image.maps).flatten(1).T
            rng = np.random.default_rng([self._work.config.seed, 1, number])
            cells = heads.cells_of_image(len(grid), len(self._ids), rng)
            features.append(grid[torch.from_numpy(cells)])
            seeds = choice.seeds(image.labels, self._thresholds, pairs)
            labels.append(torch.from_numpy(seeds.reshape(len(pairs), -1)[:, cells]))
        return torch.cat(features), torch.cat(labels, 1)

    def winner(self) -> choice.Pair:
        """The pair with the highest score."""
        return choice.best_pair(self._scores)

    def write_heads(self, path_of: Callable[[str], Path]) -> None:
        """Write the activations of the winner's head, compact, to the path of each image."""
        head = self._heads[self.winner()][None]
        for id in self._ids:
            image, size = self._images[id], self._work.dataset.image(id).shape[:2]
            found = heads.activations(head, heads.grid_features(image.maps), image.keys, (size[0], size[1]))
            write_activations(path_of(id), found, compact=True)

    def extend(self) -> bool:
        """Add thresholds beyond the edge of the grid that the winner lies on; whether there are any."""
        fg, bg = choice.beyond_edge(self.winner(), self._fg, self._bg)
        self._fg, self._bg = sorted({*self._fg, *fg}), sorted({*self._bg, *bg})
        return bool(fg or bg)

    def to_json(self) -> dict[str, Any]:
        """The choice and what it was made from."""
        return {
            "pair": list(self.winner()),
            "images": len(self._ids),
            "of": len(self._work.dataset.ids),
            "mask_thresholds": list(choice.MASK_THRESHOLDS),
            "scores": [{"fg": fg, "bg": bg, **scores.to_json()} for (fg, bg), scores in sorted(self._scores.items())],
        }
