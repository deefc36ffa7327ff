"""Experiments for docs/explanation/thresholds.md: trained AMNs and final masks at several pairs of seed thresholds.

    python docs/experiments/thresholds_trained.py run DATA WORK SEED demo voc76 msrc msrc_val voc20 voc437
    python docs/experiments/thresholds_trained.py fast DATA WORK demo voc76 msrc msrc_val voc20 voc437
    python docs/experiments/thresholds_trained.py table
    python docs/experiments/thresholds_trained.py crf-thresholds
    python docs/experiments/thresholds_trained.py backgrounds WORK demo voc76 msrc msrc_val voc20 voc437

DATA holds `msrc_v2` and `voc12_animals` in VOC layout. `run` writes each set, reduced, to WORK/sets and its runs to
WORK/SET. Class activations are computed once for a set, and `choose-seed` chooses the pair; then AMN, IRN and the masks
follow at that pair, at .3 / .05, at .6 / .2, at the best pair of the heads (thresholds.json) and at the pair of the
shipped configuration. At the chosen pair there are also AMN's seeds by `amn_seed: auto`. SEED is the random
seed of the runs. `fast` makes masks by configuration fast at the same pairs. Each run's figures are added to
thresholds_trained.json beside this script at once; a run whose figures are there is not repeated. `table` prints all
runs and the regrets of the chosen pairs. `backgrounds` compares rules for the threshold of the masks on the runs of
seed 0 in WORK, `crf-thresholds` on those of the fast mode.

It is made to fit into one hour of one CPU core: images have a long side of at most 320 pixels, large sets are 80
random images (120 with 20 labels), the networks compute in bfloat16 (fast on CPUs with avx512_bf16 alone), and the
training runs are short. Their class activations come from a linear classifier, as in thresholds.py.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import thresholds as linear
import torch
from numpy.typing import NDArray

from amn_fast.config import Config, read_config
from amn_fast.data import read_activations
from amn_fast.data.augment import resize_labels
from amn_fast.data.demo import make_demo
from amn_fast.data.image import read_mask
from amn_fast.data.labels import write_labels
from amn_fast.data.masks import write_mask
from amn_fast.data.store import Activations, read_strided
from amn_fast.files import write_atomically, write_json
from amn_fast.metrics import Confusion, ThresholdCurve
from amn_fast.pipeline import run_stage
from amn_fast.pipeline.chosen import choice_file, heads_file, read_choice
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.inference import read_edge
from amn_fast.steps import choice, doubt, mask
from amn_fast.steps.regions import find_regions

Pair = tuple[float, float]

RESULTS = Path(__file__).with_suffix(".json")
PUBLISHED, STRICT = (0.3, 0.05), (0.6, 0.2)
HAND = {"demo": (0.6, 0.2), "msrc": (0.6, 0.3), "msrc_val": (0.6, 0.3)}
"""Pairs of the shipped configurations; the others' is .6 / .2."""
TRIED = {
    "run": dict.fromkeys(("msrc", "voc20", "voc437", "voc76"), (0.4, 0.1)),
    "fast": {"msrc": (0.4, 0.2), "voc437": (0.4, 0.1), "voc20": (0.6, 0.1)},
}
"""Pairs that the score with a factor towards .5 / .2 chose."""
PUBLISHED_BACKGROUND = 0.25
PHOTOGRAPHS = [
    "train_cam.kind=linear",
    "cam.scales=[1.5]",
    "train_amn={epochs: 4, batch: 8, crop: 192, lr: 5.0e-4, new_lr: 1.0e-3, rescale: [0.75, 1.0]}",
    "train_irn={epochs: 2, batch: 8, crop: 192, lr: 0.1, rescale: [0.75, 1.0], displacement: false}",
    "mask.exp_times=6",  # 2^8 steps are for maps of 94 x 125; these are at most 80 wide
]
DEMO = ["train_amn.epochs=5", "train_irn.epochs=3"]
SHORT = ["amn.scales=[1.0, 1.5]"]
FIXED = ["amn_seed={fg: 0.45, bg: 0.15}", f"mask.background={PUBLISHED_BACKGROUND}"]
OPTIONS = "{masks: masks, classes: classes.txt, ids: ids.txt}"
BFLOAT = ["precision=bfloat16", "training_precision=bfloat16", "device=cpu"]


def write_set(name: str, data: Path, folder: Path) -> None:
    """The images of a set, reduced, with labels and ground truth, as a data set of kind folder."""
    if (folder / "ids.txt").exists():
        return
    if name == "demo":
        shutil.rmtree(folder, ignore_errors=True)
        make_demo(folder)
        return
    dataset = linear.open_set(name, data)
    ids = [id for id in linear.ids_of(name, dataset) if dataset.labels(id).any()]
    for id in ids:
        image, truth = linear.image_of(dataset, id), dataset.ground_truth(id)
        assert truth is not None
        _write_png(folder / "images" / f"{id}.png", image)
        write_mask(folder / "masks" / f"{id}.png", resize_labels(truth, image.shape[:2]))
    write_labels(folder / "labels.csv", {id: dataset.labels(id) for id in ids}, dataset.classes, ids)
    (folder / "classes.txt").write_text("\n".join(dataset.classes) + "\n")
    (folder / "ids.txt").write_text("\n".join(ids) + "\n")


def _write_png(path: Path, image: NDArray[np.uint8]) -> None:
    from PIL import Image

    write_atomically(path, lambda file: Image.fromarray(image).save(file, "PNG"))


def places(name: str, work: Path, folder: str) -> list[str]:
    """The settings of a run that say where it and its data are."""
    return [
        f"name={name}",
        f"data.root={work / 'sets' / name}",
        f"data.options={OPTIONS}",
        f"run={work / name / folder}",
    ]


def fast_configuration(name: str, work: Path, folder: str, *changes: str) -> Config:
    return read_config("fast", [*places(name, work, folder), "device=cpu", *changes])


def configuration(name: str, work: Path, folder: str, *changes: str) -> Config:
    own = ["data.kind=folder"] if name == "demo" else []
    base, settings = ("demo", DEMO) if name == "demo" else ("auto", PHOTOGRAPHS)
    return read_config(base, [*own, *places(name, work, folder), *settings, *SHORT, *BFLOAT, *FIXED, *changes])


def pair_setting(pair: Pair) -> str:
    return f"cam_seed={{fg: {pair[0]}, bg: {pair[1]}}}"


def best_of_heads(name: str) -> Pair:
    """The pair of the grid whose heads have the highest mIoU, mean of the fits."""
    found = json.loads(linear.SUMMARY.read_text())
    miou = np.mean([np.max(one["miou"], 1) for one in found["records"] if one["set"] == name], 0)
    fg, bg = found["grid"][int(miou.argmax())]
    return fg, bg


def compute(config: Config, *stages: str) -> float:
    """Run stages; the CPU time that they took, in seconds."""
    start = time.process_time()
    for stage in stages:
        run_stage(config, stage, overwrite=True)
    return time.process_time() - start


def score(config: Config) -> dict[str, Any]:
    """AMN's activations, the masks at several thresholds, and the signs of doubt of each image."""
    work = Workspace(config)
    dataset, n_classes = work.dataset, len(work.dataset.classes)
    amn, propagated, seeds = ThresholdCurve(n_classes), ThresholdCurve(n_classes), Confusion(n_classes)
    promises, images = [], {}
    for id in dataset.ids:
        truth = dataset.ground_truth(id)
        assert truth is not None
        found = read_activations(work.item("amn", id))
        scores = mask.scores(
            read_strided(work.item("amn", id)), read_edge(work.item("edge", id)), config.mask, threads=1
        )
        amn.add(found.full, found.keys, truth)
        propagated.add(scores, found.keys, truth)
        seeds.add(read_mask(work.item("cam_seed", id)), truth)
        if len(found.keys):
            promises.append(choice.promise(scores.max(0).reshape(1, -1).astype(np.float64)))
            images[id] = signs(work, id, found, scores, truth, PUBLISHED_BACKGROUND)
    expected = choice.expected_iou(promises)[0]
    auto = choice.MASK_THRESHOLDS[int(expected.argmax())]
    best, best_mask = amn.result(), propagated.result()
    write_json(config.run / "signs.json", images)
    return {
        "amn": best.best_miou, "amn_threshold": best.best_threshold, "amn_at_half": amn.scores(0.5).miou,
        "seed": seeds.scores(unknown="ignore").miou, "coverage": seeds.scores(unknown="ignore").coverage,
        "mask": propagated.scores(PUBLISHED_BACKGROUND).miou, "mask_auto": propagated.scores(auto).miou,
        "auto_background": auto, "mask_best": best_mask.best_miou, "mask_threshold": best_mask.best_threshold,
        "mask_curve": [round(float(value), 4) for value in best_mask.miou[::5]],
        "expected_iou": expected.round(4).tolist(),
    }  # fmt: skip


def signs(
    work: Workspace,
    id: str,
    found: Activations,
    scores: NDArray[np.float32],
    truth: NDArray[np.uint8],
    threshold: float,
) -> dict[str, float]:
    """Signs of doubt of the mask of an image with a class at a threshold, and its mIoU."""
    made = mask.mask_from_scores(scores, np.concatenate([[0], found.keys]), threshold)
    regions = find_regions(work.dataset.image(id))
    confusion = Confusion(len(work.dataset.classes))
    confusion.add(made, truth)
    inside = [float(scores[k][made == key].mean()) if (made == key).any() else 0.0 for k, key in enumerate(found.keys)]
    low = np.count_nonzero(found.full.max(0) > 0.35)
    values = {
        **dict(zip(doubt.SIGNS, doubt.signs(scores, found.full, found.keys, made, threshold), strict=True)),
        "regions": float(choice.separation((made > 0).reshape(1, -1).astype(np.float64), regions.ravel())[0]),
        "sureness": np.count_nonzero(found.full.max(0) > 0.65) / low if low else 0.0,
        "lowest_class": min(inside),
        "iou": confusion.scores().miou,
        "wrong": int(((made != truth) & (truth != 255)).sum()),
    }
    return {name: round(value, 4) for name, value in values.items()}


def add(name: str, key: str, found: dict[str, Any]) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results.setdefault(name, {})[key] = found
    write_json(RESULTS, results)


def has(name: str, key: str) -> bool:
    return RESULTS.exists() and key in json.loads(RESULTS.read_text()).get(name, {})


def copied(config: Config, source: Config) -> Config:
    """The run folder of `config`, begun as a copy of another one."""
    if not config.run.exists():
        shutil.copytree(source.run, config.run)
    return config


BEHIND = ("refine-amn-seed", "train-irn", "make-mask")


def begun(name: str, work: Path, seed: int) -> Config:
    """The run that the runs at pairs are copied from."""
    return configuration(name, work, f"base_{seed}" if seed else "base", "cam_seed=auto", f"seed={seed}")


def begin(name: str, data: Path, work: Path, seed: int) -> None:
    """The set, its class activations, and the choice of its pair."""
    write_set(name, data, work / "sets" / name)
    config = begun(name, work, seed)
    if has(name, f"base #{seed}"):
        return
    seconds = compute(config, "train-cam", "make-cam", "choose-seed")
    dataset = Workspace(config).dataset
    curve = ThresholdCurve(len(dataset.classes))
    for id in dataset.ids:
        found, truth = read_activations(config.run / "cam" / f"{id}.npz"), dataset.ground_truth(id)
        assert truth is not None
        curve.add(found.full, found.keys, truth)
    size = {"images": len(dataset.ids), "classes": len(dataset.classes)}
    pairs = {"auto": read_choice(choice_file(config.run, "cam_seed"), "pair"), "best": best_of_heads(name)}
    figures = {"cam": curve.result().best_miou, "seconds": round(seconds, 1)}
    add(name, f"base #{seed}", size | pairs | {"hand": HAND.get(name, STRICT)} | figures)


def text(pair: Pair) -> str:
    return f"{pair[0]:g} / {pair[1]:g}"


def at_pair(name: str, work: Path, pair: Pair, seed: int) -> Config:
    """The run at a pair of a set."""
    return configuration(name, work, f"{pair[0]:g}_{pair[1]:g}_{seed}", pair_setting(pair), f"seed={seed}")


def run_pair(name: str, work: Path, pair: Pair, seed: int) -> None:
    """AMN, IRN and masks at a pair."""
    key = f"{text(pair)} #{seed}"
    if has(name, key):
        return
    config = copied(at_pair(name, work, pair, seed), begun(name, work, seed))
    seconds = compute(config, "refine-seed", "train-amn", "make-amn-cam", *BEHIND)
    add(name, key, {"pair": pair, "seconds": round(seconds, 1), **score(config)})
    print(name, key, f"{seconds:.0f} s", flush=True)


def run_auto(name: str, work: Path, pair: Pair, seed: int) -> None:
    """AMN's seeds by `amn_seed: auto`, at the chosen pair of the first seeds."""
    key = f"auto #{seed}"
    if has(name, key):
        return
    changes = [pair_setting(pair), "amn_seed=auto", f"seed={seed}"]
    config = copied(configuration(name, work, f"auto_{seed}", *changes), at_pair(name, work, pair, seed))
    seconds = compute(config, "choose-amn-seed", *BEHIND)
    chosen = read_choice(choice_file(config.run, "amn_seed"), "pair")
    add(name, key, {"pair": pair, "amn_seed": chosen, "seconds": round(seconds, 1), **score(config)})
    print(name, key, chosen, f"{seconds:.0f} s", flush=True)


def compared_pairs(command: str, name: str, auto: Pair) -> list[Pair]:
    """The pairs of a set that are run, the chosen one first."""
    pairs = [auto, HAND.get(name, STRICT), PUBLISHED, best_of_heads(name), STRICT, TRIED[command].get(name, auto)]
    return list(dict.fromkeys(pairs))


def run_sets(names: list[str], data: Path, work: Path, seed: int) -> None:
    """All runs of all sets, those first that matter most."""
    for name in names:
        begin(name, data, work, seed)
        found = json.loads(RESULTS.read_text())[name][f"base #{seed}"]
        for pair in compared_pairs("run", name, tuple(found["auto"])):
            run_pair(name, work, pair, seed)
    for name in names:
        run_auto(name, work, tuple(json.loads(RESULTS.read_text())[name][f"base #{seed}"]["auto"]), seed)


def run_fast(names: list[str], data: Path, work: Path) -> None:
    """Masks of the fast mode at the chosen pair and at others, and what the rule for their threshold sees."""
    for name in names:
        write_set(name, data, work / "sets" / name)
        base = fast_configuration(name, work, "fast")
        if not has(name, "fast"):
            compute(base, "train-cam", "make-cam", "choose-seed")
            add(name, "fast", {"auto": read_choice(choice_file(base.run, "cam_seed"), "pair")})
        auto = tuple(json.loads(RESULTS.read_text())[name]["fast"]["auto"])
        for pair in compared_pairs("fast", name, auto):
            key = f"fast {text(pair)}"
            if has(name, key):
                continue
            folder = f"fast_{pair[0]:g}_{pair[1]:g}"
            config = copied(fast_configuration(name, work, folder, pair_setting(pair)), base)
            compute(config, "refine-seed", "train-amn", "make-amn-cam", "choose-background", "make-mask")
            add(name, key, {"pair": pair, **score_fast(config)})
            print(name, key, flush=True)


SCORED = (0.1, *choice.CRF_THRESHOLDS, 0.6, 0.7)
"""Thresholds at which masks by CRF are scored."""


def score_fast(config: Config) -> dict[str, Any]:
    """The heads' activations, and masks by CRF at all thresholds with the measures that choose one."""
    work = Workspace(config)
    n_classes = len(work.dataset.classes)
    heads, masks = ThresholdCurve(n_classes), [Confusion(n_classes) for _ in SCORED]
    for id in work.dataset.ids:
        found, truth = read_activations(work.item("amn", id)), work.dataset.ground_truth(id)
        assert truth is not None
        heads.add(found.full, found.keys, truth)
        made = mask.crf_masks(work.dataset.image(id), found.full, found.keys, SCORED)
        for confusion, one in zip(masks, made, strict=True):
            confusion.add(one, truth)
    chosen = json.loads(choice_file(config.run, "mask").read_text())
    curve = [round(one.scores().miou, 4) for one in masks]
    return {
        "heads": heads.result().best_miou, "background": chosen["background"],
        "mask": curve[SCORED.index(chosen["background"])], "mask_best": max(curve),
        "mask_curve": curve, "regions": chosen["regions"], "expected_iou": chosen["expected_iou"],
    }  # fmt: skip


FIGURES = {
    "amn": "AMN best", "amn_at_half": "AMN at .5", "mask": "mask at .25", "mask_auto": "mask at expected IoU",
    "mask_best": "mask best",
}  # fmt: skip


def table() -> None:
    """Print every run, and regrets of the chosen pairs."""
    results = json.loads(RESULTS.read_text())
    print("| set | seed | pair | " + " | ".join(FIGURES.values()) + " |\n" + "|---" * (len(FIGURES) + 3) + "|")
    regrets: dict[str, list[list[float]]] = {}
    for name, runs in results.items():
        for seed in [key[-1] for key in runs if key.startswith("base")]:
            base = runs[f"base #{seed}"]
            words = {word: text(base[word]) for word in ("auto", "best", "hand")}
            pairs = {key.split(" #")[0]: one for key, one in runs.items() if key.endswith(f" #{seed}") and "/" in key}
            for key, one in pairs.items():
                roles = [word for word, pair in words.items() if pair == key]
                _print_row(name, seed, f"{key} ({', '.join(roles)})" if roles else key, one)
            if f"auto #{seed}" in runs:
                one = runs[f"auto #{seed}"]
                _print_row(name, seed, f"{words['auto']}, AMN's seeds {text(one['amn_seed'])} (auto)", one)
            if {*words.values(), text(PUBLISHED), text(STRICT)} <= pairs.keys():  # without one, regret would look small
                best = {key: max(one[key] for one in pairs.values()) for key in FIGURES}
                regrets.setdefault(name, []).append([best[key] - pairs[words["auto"]][key] for key in FIGURES])
    _print_regrets({name: np.mean(rows, 0) for name, rows in regrets.items()}, list(FIGURES.values()))
    _fast_table(results)


def _fast_runs(results: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], bool]]:
    """Set, pair, figures, and whether the rule chose that pair, of all runs of the fast mode."""
    for name, runs in results.items():
        for key, one in runs.items():
            if key.startswith("fast "):
                pair = key.removeprefix("fast ")
                yield name, pair, one, pair == text(runs["fast"]["auto"])


def crf_thresholds() -> None:
    """Print what each rule for the threshold of CRF masks loses against the best of `SCORED`."""
    losses: dict[str, list[float]] = {}
    chosen: list[bool] = []
    at = np.array(choice.CRF_THRESHOLDS)
    for _, _, one, auto in _fast_runs(json.loads(RESULTS.read_text())):
        curve, regions, expected = (np.array(one[key]) for key in ("mask_curve", "regions", "expected_iou"))
        rules = {
            "regions": at[regions.argmax()], "expected IoU": at[expected.argmax()],
            "their product": at[(regions * expected).argmax()], "the rule": choice.crf_threshold(regions, expected),
            **{f"fixed {value:g}": value for value in (0.2, 0.25, 0.3, 0.35, 0.4)},
        }  # fmt: skip
        for rule, threshold in rules.items():
            losses.setdefault(rule, []).append(float(curve.max() - curve[SCORED.index(threshold)]))
        chosen.append(auto)
    print("| rule | mean, chosen pairs | worst | mean, all pairs | worst |\n|---|---|---|---|---|")
    for rule, values in losses.items():
        own, every = np.array(values)[chosen], np.array(values)
        print(f"| {rule} | {own.mean():.3f} | {own.max():.3f} | {every.mean():.3f} | {every.max():.3f} |")
    print(f"{sum(chosen)} chosen pairs, {len(chosen)} pairs")


def _print_row(name: str, seed: str, label: str, one: dict[str, Any]) -> None:
    cells = " | ".join(f"{one[figure]:.3f}" for figure in FIGURES)
    print(f"| {name} | {seed} | {label} | {cells} at {one['mask_threshold']:.2f} |")


def _print_regrets(regrets: dict[str, Any], figures: list[str]) -> None:
    """Regrets by set, their mean and the worst."""
    if not regrets:
        return
    print("\n| regret of the chosen pair | " + " | ".join(figures) + " |\n" + "|---" * (len(figures) + 1) + "|")
    rows = [*regrets.values()]
    for name, row in {**regrets, "mean": np.mean(rows, 0), "worst": np.max(rows, 0)}.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")


FAST_FIGURES = {"heads": "heads best", "mask": "mask", "mask_best": "mask best"}


def _fast_table(results: dict[str, Any]) -> None:
    """The runs of the fast mode; the threshold of the masks by the rule as it is now."""
    print("\n| set | pair | heads best | mask at the chosen threshold | mask best |\n|---|---|---|---|---|")
    rows: dict[str, list[tuple[list[float], bool]]] = {}
    for name, pair, one, auto in _fast_runs(results):
        threshold = choice.crf_threshold(np.array(one["regions"]), np.array(one["expected_iou"]))
        made = one["mask_curve"][SCORED.index(threshold)]
        place = SCORED[int(np.argmax(one["mask_curve"]))]
        print(
            f"| {name} | {pair}{' (auto)' if auto else ''} | {one['heads']:.3f} | {made:.3f} at {threshold:.2f} |"
            f" {one['mask_best']:.3f} at {place:.2f} |"
        )
        rows.setdefault(name, []).append(([one["heads"], made, one["mask_best"]], auto))
    regrets = {}
    for name, found in rows.items():
        (own,) = (figures for figures, auto in found if auto)
        regrets[name] = np.max([figures for figures, _ in found], 0) - own
    _print_regrets(regrets, list(FAST_FIGURES.values()))


BACKGROUNDS = (
    "expected IoU", "regions", "heads", "heads' share", "AMN's seeds", "fixed .25", "fixed .35", "fixed .5",
)  # fmt: skip


def background_regrets(config: Config, base: Config) -> dict[str, float]:
    """What each rule for the mask threshold loses against the best of .05, .10, ... .95.

    The rules: the highest expected IoU; masks that follow the image's regions most (eta squared); masks that agree most
    with those of the linear heads of choose-seed, by class; as much foreground as the heads' probabilities sum up to;
    masks that agree most with AMN's seeds where these have a label.
    """
    work, thresholds = Workspace(config), choice.MASK_THRESHOLDS
    n_classes = len(work.dataset.classes)
    curve, promises, regions = ThresholdCurve(n_classes, thresholds), [], []
    agreeing = {name: [Confusion(n_classes) for _ in thresholds] for name in ("heads", "AMN's seeds")}
    share, wanted = [], []
    for id in work.dataset.ids:
        truth = work.dataset.ground_truth(id)
        found = read_strided(work.item("amn", id))
        if truth is None or not len(found.keys):
            continue
        scores = mask.scores(found, read_edge(work.item("edge", id)), config.mask, threads=1)
        curve.add(scores, found.keys, truth)
        promises.append(choice.promise(scores.max(0).reshape(1, -1).astype(np.float64)))
        parts = find_regions(work.dataset.image(id))
        heads = read_activations(heads_file(base.run, "cam_seed", id))
        names = np.concatenate([[0], found.keys])
        like = {
            "heads": mask.mask_from_scores(heads.full, names, 0.5),
            "AMN's seeds": read_mask(work.item("amn_seed", id)),
        }
        made = [mask.mask_from_scores(scores, names, threshold) for threshold in thresholds]
        foreground = np.stack([(one > 0).ravel() for one in made]).astype(np.float64)
        regions.append(choice.separation(foreground, parts.ravel()))
        share.append([float((one > 0).mean()) for one in made])
        wanted.append(float(heads.full.max(0).mean()))
        for name, other in like.items():
            for confusion, one in zip(agreeing[name], made, strict=True):
                confusion.add(one, other)
    miou = curve.result().miou
    merits = {
        "expected IoU": choice.expected_iou(promises)[0],
        "regions": np.mean(regions, 0),
        "heads' share": -np.abs(np.mean(share, 0) - np.mean(wanted)),
        **{name: np.array([one.scores().miou for one in found]) for name, found in agreeing.items()},
    }
    at = {name: int(np.argmax(values)) for name, values in merits.items()}
    at |= {f"fixed {text}": thresholds.index(float(text)) for text in (".25", ".35", ".5")}
    return {name: round(float(miou.max() - miou[at[name]]), 4) for name in BACKGROUNDS} | {"best": float(miou.max())}


def backgrounds(work: Path, names: list[str]) -> None:
    """Print what each rule for the mask threshold loses at the chosen pair of each set."""
    print("| set | best | " + " | ".join(BACKGROUNDS) + " |\n" + "|---" * (len(BACKGROUNDS) + 2) + "|")
    rows = []
    for name in names:
        base = begun(name, work, 0)
        high, low = json.loads(RESULTS.read_text())[name]["base #0"]["auto"]
        config = at_pair(name, work, (high, low), 0)
        found = background_regrets(config, base)
        rows.append([found[rule] for rule in BACKGROUNDS])
        print(
            f"| {name} | {found['best']:.3f} | " + " | ".join(f"{value:.3f}" for value in rows[-1]) + " |", flush=True
        )
    for what, row in (("mean", np.mean(rows, 0)), ("worst", np.max(rows, 0))):
        print(f"| {what} | | " + " | ".join(f"{value:.3f}" for value in row) + " |")


def main() -> None:
    torch.set_num_threads(1)
    command, *rest = sys.argv[1:]
    if command == "run":
        os.environ["OMP_NUM_THREADS"] = "1"
        run_sets(rest[3:], Path(rest[0]).resolve(), Path(rest[1]).resolve(), int(rest[2]))
    elif command == "fast":
        run_fast(rest[2:], Path(rest[0]).resolve(), Path(rest[1]).resolve())
    elif command == "crf-thresholds":
        crf_thresholds()
    elif command == "table":
        table()
    elif command == "backgrounds":
        backgrounds(Path(rest[0]).resolve(), rest[1:])


if __name__ == "__main__":
    main()
