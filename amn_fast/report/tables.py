"""The figures on the page as rows, from metrics.json."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amn_fast.report.names import COMPARED, NETWORKS, RESULTS, SEGMENTATION, STAGES, TONES, result_name
from amn_fast.steps.doubt import rank_correlation

Metrics = Mapping[str, Any]
CLASSES_PER_CHART = 21
DOUBTFUL = 20
"""Rows of the table of doubtful masks."""


def results_of(metrics: Metrics) -> dict[str, Metrics]:
    """The results with scores, in the order of the pipeline; empty without ground truth."""
    return {key: metrics[key] for key in RESULTS if metrics.get(key)}


def image_counts(dataset: Metrics) -> tuple[int | None, int | None]:
    """How many images were scored, and how many there are; None where the record does not say."""
    return dataset.get("scored"), dataset.get("images", dataset.get("pictures"))


def scored_of(scored: int | None, images: int | None) -> str:
    """ "5 of 10 images", "all 10 images", or "" where it is not known."""
    if scored is None or images is None:
        return ""
    return f"{'all ' if scored == images else f'{scored} of '}{images} image{'s' * (images != 1)}"


def headline(results: Mapping[str, Metrics]) -> list[dict[str, Any]]:
    """mIoU of each result, and its difference to the CAM's."""
    base = results.get("cam", {}).get("miou")
    tiles = []
    for key, result in results.items():
        miou = result.get("miou")
        gain = None if key == "cam" or base is None or miou is None else miou - base
        tiles.append({"key": key, "name": RESULTS[key], "miou": miou, "gain": gain, "note": _condition(result)})
    return tiles


def _condition(result: Metrics) -> str:
    """What a headline figure depends on, in a few words."""
    curve, scores = result.get("curve") or {}, result.get("scores") or {}
    coverage = scores.get("coverage")
    if scores.get("unknown") == "ignore" and coverage is not None and coverage < 1:
        return f"on its labelled pixels, {coverage:.0%}"
    best, miou = curve.get("best_miou"), result.get("miou")
    if best is not None and miou is not None and math.isclose(best, miou, abs_tol=1e-6):  # one of them is rounded
        return f"best, at threshold {curve['best_threshold']:.2f}"
    return ""


def facts_without_scores(metrics: Metrics) -> list[dict[str, str]]:
    """The headline of a run without ground truth: what is known of seeds, masks and the classifier."""
    maps, tiles = metrics.get("label_maps") or {}, []
    for key in ("refined_seed", "amn_refined"):
        if key in maps and maps[key]["coverage"] is not None:
            tiles.append(
                {
                    "key": key,
                    "name": RESULTS[key],
                    "value": f"{maps[key]['coverage']:.0%}",
                    "note": f"of the pixels labelled, {maps[key]['foreground'] or 0:.0%} of these foreground",
                }
            )
    mask = maps.get("mask")
    if mask and mask["foreground"] is not None:
        tiles.append({"key": "mask", "name": "Mask", "value": f"{mask['foreground']:.0%}", "note": "foreground"})
    for row in training_rows(metrics):
        if row["key"] == "cam":
            note = "of the training images with all labels right, last epoch"
            known = row["accuracy"] is not None
            tiles.append(
                {
                    "key": "cam",
                    "name": "Classifier",
                    "value": f"{row['accuracy']:.0%}" if known else f"{row['loss']:.3f}",
                    "note": note if known else "training loss, last epoch",
                }
            )
    return tiles


def stage_rows(metrics: Metrics, results: Mapping[str, Metrics]) -> dict[str, Any]:
    """The stages that ran or left a result, in the order of the pipeline, and their total time and highest memory."""
    stages = (metrics.get("stages") or {}) | ((metrics.get("segmentation") or {}).get("stages") or {})
    maps = metrics.get("label_maps") or {}
    rows = []
    for name in [*STAGES, *(name for name in stages if name not in STAGES)]:
        key = STAGES.get(name)
        result = results.get(key) if key else None
        if name not in stages and result is None:
            continue
        measured, scores, counted = stages.get(name) or {}, (result or {}).get("scores") or {}, maps.get(key) or {}
        rows.append(
            {
                "name": name,
                "makes": RESULTS[key] if key and (result is not None or counted) else "",
                "miou": (result or {}).get("miou"),
                "precision": scores.get("mean_precision"),
                "recall": scores.get("mean_recall"),
                "coverage": scores.get("coverage", counted.get("coverage")),
                "foreground": counted.get("foreground"),
                "seconds": measured.get("seconds"),
                "memory": measured.get("peak_memory_mb"),
            }
        )
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    memory = [row["memory"] for row in rows if row["memory"] is not None]
    return {"rows": rows, "seconds": sum(seconds) if seconds else None, "memory": max(memory, default=None)}


def with_figure(results: Mapping[str, Metrics], keys: Sequence[str], part: str, figure: str) -> dict[str, Metrics]:
    """The `part` ("curve", "histogram") of the results that have it with a `figure`."""
    parts = {key: (results.get(key) or {}).get(part) or {} for key in keys}
    return {key: found for key, found in parts.items() if found.get(figure) is not None}


def class_rows(results: Mapping[str, Metrics], names: list[str]) -> dict[str, Any] | None:
    """IoU by class: rows for the table, and values for the charts, in parts of at most `CLASSES_PER_CHART` classes."""
    scored = {
        key: result["scores"]["iou"] for key, result in results.items() if (result.get("scores") or {}).get("iou")
    }
    if not scored:
        return None
    compared = {key: scored[key] for key in COMPARED if key in scored} or scored
    seen = [k for k in range(len(names)) if any(_entry(values, k) is not None for values in scored.values())]
    parts = [seen[start : start + CLASSES_PER_CHART] for start in range(0, len(seen), CLASSES_PER_CHART)]
    return {
        "charts": [
            ([names[k] for k in part], {key: [_entry(values, k) for k in part] for key, values in compared.items()})
            for part in parts
        ],
        "keys": [(TONES.get(key, key), result_name(key)) for key in compared],
        "columns": [result_name(key) for key in scored],
        "rows": [{"name": names[k], "values": [_entry(values, k) for values in scored.values()]} for k in seen],
        "unseen": [name for k, name in enumerate(names) if k not in seen],
    }


def _entry(values: Sequence[float | None], k: int) -> float | None:
    return values[k] if k < len(values) else None


def label_rows(metrics: Metrics, names: list[str]) -> dict[str, Any] | None:
    """What seeds and masks hold of each class, from `LabelStatistics`: needs no ground truth."""
    maps = metrics.get("label_maps") or {}
    columns = [key for key in RESULTS if key in maps]
    images = (metrics.get("dataset") or {}).get("images_per_class")
    if not columns or images is None:
        return None
    rows = [
        {
            "name": name,
            "images": images[k],
            "shares": [maps[key]["share"][k] for key in columns],
            "empty": maps["mask"]["empty"][k] if "mask" in maps else None,
        }
        for k, name in enumerate(names[1:])
    ]
    return {
        "keys": columns,
        "columns": [RESULTS[key] for key in columns],
        "rows": rows,
        "images": maps[columns[-1]]["images"],
    }


def doubt_rows(
    doubt: Mapping[str, float], scores: Mapping[str, float | None], by_doubt: Sequence[Sequence[float]] = ()
) -> dict[str, Any] | None:
    """The most doubtful masks, and how doubt agrees with the scores where there are any.

    Args:
        by_doubt: (doubt, expected IoU), doubt ascending, from calibration.json.
    """
    if not doubt:
        return None
    order = sorted(doubt, key=lambda id: (-doubt[id], id))
    known = [id for id in order if scores.get(id) is not None]
    correlation = None
    if len(known) > 2:
        found = rank_correlation(np.array([doubt[id] for id in known]), np.array([scores[id] for id in known]))
        correlation = None if math.isnan(found) else found
    return {
        "rows": [
            {"id": id, "doubt": doubt[id], "miou": scores.get(id), "expected": _expected(doubt[id], by_doubt)}
            for id in order[:DOUBTFUL]
        ],
        "calibrated": bool(by_doubt),
        "images": len(order),
        "scored": bool(known),
        "correlation": correlation,
    }


def _expected(doubt: float, by_doubt: Sequence[Sequence[float]]) -> float | None:
    if not by_doubt:
        return None
    return float(np.interp(doubt, [one for one, _ in by_doubt], [iou for _, iou in by_doubt]))


def calibration_rows(found: Metrics) -> dict[str, Any] | None:
    """The quality of the masks with intervals, from calibration.json."""
    if not found:
        return None
    what = "answers about pixels" if found["source"] == "answers" else "trusted masks"
    rows = [{"name": name, **found[key]} for key, name in (("chosen", "Chosen"), ("current", "Current")) if found[key]]
    classes = [{"name": name, **iou} for name, iou in zip(found["classes"], found["chosen"]["iou"], strict=True)]
    return {"used": f"{found['used']} {what}", "rows": rows, "classes": classes}


def choice_table(record: Metrics) -> dict[str, Any]:
    """Scores of all candidate pairs of thresholds: a row for each fg, a column for each bg.

    Each cell has the score and its place between the lowest (0) and the highest (1); None where bg >= fg.
    """
    scores = {(row["fg"], row["bg"]): row["score"] for row in record["scores"]}
    columns = sorted({bg for _, bg in scores})
    low, high = min(scores.values()), max(scores.values())

    def cell(fg: float, bg: float) -> dict[str, Any] | None:
        if (score := scores.get((fg, bg))) is None:
            return None
        place = (score - low) / (high - low) if high > low else 1.0
        return {"score": score, "place": round(place, 3), "chosen": [fg, bg] == list(record["pair"])}

    rows = [{"fg": fg, "cells": [cell(fg, bg) for bg in columns]} for fg in sorted({fg for fg, _ in scores})]
    return {"columns": columns, "rows": rows}


def training_rows(metrics: Metrics) -> list[dict[str, Any]]:
    """Loss, and accuracy where it is known, of each network's training: all epochs and the last one."""
    training = metrics.get("training") or {}
    rows = []
    for key, name in NETWORKS.items():
        losses = (training.get(key) or {}).get("loss") or []
        if losses:
            accuracy = training[key].get("accuracy") or []
            rows.append(
                {
                    "key": key,
                    "name": name,
                    "losses": losses,
                    "loss": losses[-1],
                    "accuracy": accuracy[-1] if accuracy else None,
                }
            )
    return rows


def scoring_rules(results: Mapping[str, Metrics]) -> dict[str, list[str]]:
    """The results that were scored under each rule: {"wrong": [names], ...}."""
    rules: dict[str, list[str]] = {"wrong": [], "ignore": [], "zero": [], "skip": []}
    for key, result in results.items():
        for kind in ("unknown", "absent"):
            rule = (result.get("scores") or {}).get(kind)
            if rule in rules:
                rules[rule].append(RESULTS[key])
    return rules


def segmentation_rows(record: Metrics) -> list[dict[str, Any]]:
    """Scores of the segmentation network, with and without CRF."""
    return [
        {"name": name, **(record[key].get("scores") or {})} for key, name in SEGMENTATION.items() if record.get(key)
    ]
