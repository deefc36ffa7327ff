"""check-run: looks at a run without ground truth, for signs that its masks are not useful and for the doubtful ones."""

import csv
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from amn_fast.data.augment import resize_image
from amn_fast.data.image import read_mask
from amn_fast.data.store import read_activations
from amn_fast.files import write_json, write_text
from amn_fast.models.backbone import make_backbone
from amn_fast.ops.mask import mask_from_scores
from amn_fast.pipeline.chosen import chosen_mask, chosen_seed
from amn_fast.pipeline.dependencies import stages_of
from amn_fast.pipeline.engine import cores, for_each, track
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.inference import read_edge
from amn_fast.pipeline.table import producer
from amn_fast.pipeline.training import read_divisor, read_losses
from amn_fast.steps import doubt, health, mask
from amn_fast.steps.convergence import guessing_loss
from amn_fast.steps.health import Finding

SIDE = 224
"""Longest side of the images whose features say whether labels fit."""
MOST_IMAGES = 300
"""Images whose features are compared; a random choice of larger sets."""
SEEDS = {"cam_seed": "seeds", "amn_seed": "AMN's seeds"}


@dataclass
class _Tally:
    """What the checks need, over images in any order."""

    n_classes: int
    flat: NDArray[np.int64] = field(init=False)
    maps: NDArray[np.int64] = field(init=False)
    empty: NDArray[np.int64] = field(init=False)
    without: dict[str, list[int]] = field(default_factory=dict)
    """By folder of seeds: how many have no pixel of foreground, and none of background."""
    shares: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Foreground share of each image with a class, before and after the walk."""
    signs: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.flat, self.maps, self.empty = np.zeros((3, self.n_classes), np.int64)


def check_run(work: Workspace, new: Callable[[Path], Path]) -> None:
    """Write health.json, what is wrong with the run, and doubt.csv, its masks with the most doubtful first."""
    dataset, config = work.dataset, work.config
    labels = np.array([dataset.labels(id) for id in dataset.ids])
    tally = _Tally(len(dataset.classes))
    _count(work, tally)
    images = len(tally.shares)
    before, after = (np.array([pair[k] for pair in tally.shares.values()]) for k in range(2))
    settings = config.train_cam
    found = [
        health.classifier(
            read_losses(work, "cam"), guessing_loss(labels), read_divisor(work, "cam"), settings.lr, settings.new_lr,
            len(labels),
        ),
        *separate(work),
        health.activations(tally.flat, tally.maps, dataset.classes),
        *(
            health.seeds(SEEDS[folder], folder, without, images, chosen_seed(config, folder).pair)
            for folder, without in tally.without.items()
        ),
        health.missing_classes(tally.empty.tolist(), labels.sum(0).tolist(), dataset.classes),
        health.flooding(before, after, config.mask.exp_times),
        health.foreground(float(after.mean()) if images else None, images),
    ]  # fmt: skip
    findings = [one for one in found if one is not None]
    for one in findings:
        work.tell(one)
    order = ranked(tally.signs, {id for id in dataset.ids if work.trusted(id) is not None})
    write_json(
        new(work.root / "health.json"),
        {"findings": [one.to_json() for one in findings], "doubt": dict(order)},
    )
    write_text(new(work.root / "doubt.csv"), doubt_table(order, tally.signs))


def _count(work: Workspace, tally: _Tally) -> None:
    lock, settings = threading.Lock(), chosen_mask(work.config)
    made_here = {path.split("/{id}")[0] for stage in stages_of(work.config) for path in stage.outputs}
    walk = "weights/irn.safetensors" in made_here  # without it, masks come from the activations themselves
    folders = [folder for folder in SEEDS if folder in made_here]

    def one(id: str) -> None:
        cam = read_activations(work.item("cam", id))
        flat = cam.full.std((1, 2)) < health.FLAT if len(cam.keys) else np.zeros(0, bool)
        seeds = {folder: read_mask(work.item(folder, id)) for folder in folders}
        made, found = read_mask(work.item("masks", id)), read_activations(work.item("amn", id))
        shares, signs = None, None
        if len(found.keys):
            threshold = settings.threshold
            scores = found.full
            if walk:
                edge = read_edge(work.item("edge", id))
                scores = mask.scores(found, edge, settings, work.device, threads=1)
            keys = np.concatenate([[0], found.keys])
            shares = tuple(float((mask_from_scores(maps, keys, threshold) > 0).mean()) for maps in (found.full, scores))
            signs = doubt.signs(scores, found.full, found.keys, made, threshold)
        present = np.unique(made)
        with lock:
            tally.maps[cam.keys.astype(int) - 1] += 1
            tally.flat[cam.keys[flat].astype(int) - 1] += 1
            for label in np.flatnonzero(work.dataset.labels(id)) + 1:
                tally.empty[label - 1] += label not in present
            if shares is not None and signs is not None:
                tally.shares[id], tally.signs[id] = (shares[0], shares[1]), signs
                for folder, seed in seeds.items():
                    lacking = tally.without.setdefault(folder, [0, 0])
                    lacking[0] += not ((seed > 0) & (seed < 255)).any()
                    lacking[1] += not (seed == 0).any()

    for_each("check-run", work.dataset.ids, one, cores())
    for part in (tally.shares, tally.signs):  # threads finish in any order
        sorted_part = dict(sorted(part.items()))
        part.clear()
        part.update(sorted_part)  # type: ignore[arg-type]


def separate(work: Workspace) -> list[Finding]:
    """Whether images and labels belong together, by features of the pretrained backbone.

    Nothing without one, or where the classifier comes from elsewhere: then its pretrained weights may not be here.
    """
    dataset, config = work.dataset, work.config
    trained = producer("weights/cam.safetensors")
    record = work.record(trained) if trained else None
    if config.weights is None or record is None or record.imported:
        return []
    rng = np.random.default_rng(config.seed)
    ids = [dataset.ids[k] for k in rng.permutation(len(dataset.ids))[:MOST_IMAGES]]
    labels = np.array([dataset.labels(id) for id in ids])
    net = make_backbone(config.backbone, config.weights).to(work.device).eval()
    features = []
    with torch.inference_mode():
        for id in track("labels", ids, len(ids)):
            image = dataset.image(id)
            factor = min(1, SIDE / max(image.shape[:2]))
            small = resize_image(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))
            batch = torch.as_tensor(net.normalize(small))[None].to(work.device)
            features.append(net(batch)[-1].float().mean((2, 3))[0].cpu().numpy())
    return health.separation(health.crossed_scores(np.array(features), labels), labels, dataset.classes)


def ranked(signs: dict[str, tuple[float, ...]], trusted: set[str]) -> list[tuple[str, float]]:
    """(id, doubt) of the images with a class, the most doubtful first; masks that people drew have none."""
    ids = [id for id in signs if id not in trusted]
    found = dict(zip(ids, doubt.doubts([signs[id] for id in ids]).round(4).tolist(), strict=True))
    everything = found | {id: 0.0 for id in signs if id in trusted}
    return sorted(everything.items(), key=lambda pair: (-pair[1], pair[0]))


def doubt_table(order: list[tuple[str, float]], signs: dict[str, tuple[float, ...]]) -> str:
    """The content of doubt.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "doubt", *doubt.SIGNS])
    for id, value in order:
        writer.writerow([id, f"{value:.4f}", *(f"{sign:.4f}" for sign in signs[id])])
    return text.getvalue()
