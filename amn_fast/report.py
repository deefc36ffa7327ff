"""The report of a run: one self-contained HTML page, readable offline, in light and dark, on paper and on a phone."""

import base64
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from amn_fast._extras import require
from amn_fast.data.masks import voc_palette
from amn_fast.errors import InputError
from amn_fast.files import write_text
from amn_fast.pipeline import table

require("jinja2", "pipeline")
require("matplotlib", "pipeline")

import jinja2  # noqa: E402  (after the checks, so that their sentence is what a user sees)
import matplotlib  # noqa: E402
from markupsafe import Markup  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import PercentFormatter  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Metrics = Mapping[str, Any]

RESULTS = {
    "cam": "CAM",
    "refined_seed": "Refined seed",
    "amn": "AMN",
    "amn_refined": "Refined AMN seed",
    "mask": "Mask",
}
"""Names of results in metrics.json, in the order of the pipeline, and what the page calls them."""

STAGES = {stage.name: stage.result or None for stage in table.STAGES}
"""Stages in the order of the pipeline, and the result that each one makes."""

SEGMENTATION = {"without_crf": "Network", "with_crf": "Network and CRF"}
"""Names of results in the record of the segmentation network, and what the page calls them."""

TONES = {"without_crf": "amn", "with_crf": "mask"}
"""Whose colours they have."""

CURVES = ("cam", "amn", "mask")
"""Results that are plotted against each other; each has a colour and a dash pattern of its own."""

DASHES: dict[str, Any] = {"cam": (0, (6, 2)), "amn": "solid", "mask": (0, (1, 1.2))}

# Plots are drawn in these stand-ins, which the page's style sheet then colours for light and dark.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
COLOURS = {"cam": "#0a0b0c", "amn": "#0d0e0f", "mask": "#101112"}
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", **{colour: name for name, colour in COLOURS.items()}}

THUMBNAIL = 256
"""Long side of a picture on the page, in pixels."""

PICTURES_SHOWN = 12
CLASSES_PER_CHART = 21


class Pictures(Protocol):
    """What the report draws. Masks are (H, W) uint8 with 0..C and 255, activations (H, W) floats in [0, 1].

    All of a picture have its size. None stands for what there is not: a stage that was not run, no ground truth.
    """

    ids: Sequence[str]

    def image(self, id: str) -> NDArray[np.uint8]:
        """The picture, (H, W, 3) uint8 RGB."""
        ...

    def cam(self, id: str) -> NDArray[np.floating[Any]] | None:
        """Largest activation of the CAM over the picture's classes."""
        ...

    def seed(self, id: str) -> NDArray[np.uint8] | None:
        """Refined seed of the CAM."""
        ...

    def amn(self, id: str) -> NDArray[np.floating[Any]] | None:
        """Largest foreground activation of AMN."""
        ...

    def amn_seed(self, id: str) -> NDArray[np.uint8] | None:
        """Refined seed of AMN's activations."""
        ...

    def mask(self, id: str) -> NDArray[np.uint8] | None:
        """The pseudo-mask."""
        ...

    def truth(self, id: str) -> NDArray[np.uint8] | None:
        """The ground truth."""
        ...


@dataclass(frozen=True)
class Segmented:
    """A picture that the segmentation network was evaluated on; masks as in `Pictures`.

    Attributes:
        id, image: the picture.
        masks: by the names of `SEGMENTATION`.
        truth: None where there is none.
        miou: of the last of the masks, where there is truth.
    """

    id: str
    image: NDArray[np.uint8]
    masks: Mapping[str, NDArray[np.uint8]]
    truth: NDArray[np.uint8] | None
    miou: float | None


def write_report(
    run_dir: Path | str,
    metrics: Metrics,
    pictures: Pictures | None,
    config_text: str,
    segmented: Sequence[Segmented] = (),
) -> Path:
    """Write `run_dir`/report.html: one page with everything in it, that loads nothing from anywhere.

    Args:
        run_dir: the run folder.
        metrics: what metrics.json holds. "dataset": name, classes, pictures; "environment": date, machine, versions;
            "stages": name -> seconds, peak_memory_mb, skipped; and for each name of `RESULTS`: "scores"
            (`Scores.to_json`), "miou", and where they apply "curve" (`ThresholdCurve.to_json`), "histogram"
            (`ActivationHistogram.to_json`) and, for the mask, "per_picture" (id -> mIoU). "segmentation": eval-seg's
            record; without it the page has no such section.
            Whatever is missing, the page says so in its place.
        pictures: what to draw; the pictures with the best and the worst masks are shown.
        config_text: the resolved configuration.
        segmented: what to draw of the segmentation network's answers.

    Returns:
        the path of the page. The same input gives the same bytes.

    Raises:
        InputError: a mask or an activation is of another size than its picture, or not finite.
    """
    path = Path(run_dir) / "report.html"
    dataset = metrics.get("dataset") or {}
    names = ["background", *map(str, dataset.get("classes") or [])]
    results = {key: metrics[key] for key in RESULTS if metrics.get(key)}
    segmentation = metrics.get("segmentation") or {}
    page = _template().render(
        dataset=dataset,
        environment=metrics.get("environment") or {},
        headline=_headline(results),
        stages=_stages((metrics.get("stages") or {}) | (segmentation.get("stages") or {}), results),
        curves=_curves(results),
        histograms=_histograms(results),
        classes=_classes(results, names),
        groups=_picture_groups(results, pictures, names),
        legend=[(name, _css_colour(label)) for label, name in enumerate(names) if label],
        rules=_rules(results),
        segmentation=_segmentation(segmentation, segmented),
        config=config_text,
    )
    write_text(path, page)
    return path


# What the page says in figures


def _headline(results: Metrics) -> list[dict[str, Any]]:
    """mIoU of each result, and how far it is above the CAM."""
    base = results.get("cam", {}).get("miou")
    tiles = []
    for key, result in results.items():
        miou = result.get("miou")
        gain = None if key == "cam" or base is None or miou is None else miou - base
        tiles.append({"key": key, "name": RESULTS[key], "miou": miou, "gain": gain, "note": _where(result)})
    return tiles


def _where(result: Metrics) -> str:
    """What a headline figure stands for, in a few words."""
    curve, scores = result.get("curve") or {}, result.get("scores") or {}
    coverage = scores.get("coverage")
    if scores.get("unknown") == "ignore" and coverage is not None and coverage < 1:
        return f"on the {coverage:.0%} it covers"
    if curve.get("best_miou") is not None and curve["best_miou"] == result.get("miou"):
        return f"best, at threshold {curve['best_threshold']:.2f}"
    return ""


def _stages(stages: Metrics, results: Metrics) -> dict[str, Any]:
    """Rows of the table of stages: those that ran and those that left a result, in the order of the pipeline."""
    order = [*STAGES, *(name for name in stages if name not in STAGES)]
    rows = []
    for name in order:
        key = STAGES.get(name)
        result = results.get(key) if key else None
        if name not in stages and result is None:
            continue
        measured = stages.get(name) or {}
        scores = (result or {}).get("scores") or {}
        rows.append(
            {
                "name": name,
                "makes": RESULTS[key] if key and result is not None else "",
                "miou": (result or {}).get("miou"),
                "precision": scores.get("mean_precision"),
                "recall": scores.get("mean_recall"),
                "coverage": scores.get("coverage"),
                "seconds": measured.get("seconds"),
                "memory": measured.get("peak_memory_mb"),
                "skipped": bool(measured.get("skipped")),
            }
        )
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    memory = [row["memory"] for row in rows if row["memory"] is not None]
    return {"rows": rows, "seconds": sum(seconds) if seconds else None, "memory": max(memory, default=None)}


def _curves(results: Metrics) -> dict[str, Any] | None:
    curves = {key: results[key]["curve"] for key in CURVES if _has(results, key, "curve", "best_miou")}
    if not curves:
        return None
    rows = [{"key": key, "name": RESULTS[key], **curve} for key, curve in curves.items()]
    return {"rows": rows, "plot": _plot_curves(curves)}


def _histograms(results: Metrics) -> dict[str, Any] | None:
    histograms = {
        key: results[key]["histogram"] for key in ("cam", "amn") if _has(results, key, "histogram", "foreground_mean")
    }
    if not histograms:
        return None
    rows = [
        {
            "key": key,
            "name": RESULTS[key],
            "plot": _plot_histogram(key, histogram, _histogram_top(histograms)),
            **histogram,
        }
        for key, histogram in histograms.items()
    ]
    return {"rows": rows}


def _has(results: Metrics, key: str, part: str, figure: str) -> bool:
    return ((results.get(key) or {}).get(part) or {}).get(figure) is not None


def _classes(results: Metrics, names: list[str], title: str = "classes") -> dict[str, Any] | None:
    """IoU by class: charts of the compared results, and a table of all of them. `title` keeps the charts' ids apart."""
    scored = {key: result["scores"] for key, result in results.items() if (result.get("scores") or {}).get("iou")}
    if not scored:
        return None
    compared = {key: scored[key]["iou"] for key in CURVES if key in scored} or {
        key: scores["iou"] for key, scores in scored.items()
    }
    seen = [
        label
        for label in range(len(names))
        if any(_entry(scores["iou"], label) is not None for scores in scored.values())
    ]
    charts = []
    for start in range(0, len(seen), CLASSES_PER_CHART):
        part = seen[start : start + CLASSES_PER_CHART]
        iou = {key: [_entry(values, label) for label in part] for key, values in compared.items()}
        charts.append(_plot_classes(f"{title}-{start}", [names[label] for label in part], iou))
    rows = [
        {"name": names[label], "values": [_entry(scores["iou"], label) for scores in scored.values()]} for label in seen
    ]
    return {
        "charts": charts,
        "keys": [(TONES.get(key, key), _name(key)) for key in compared],
        "columns": [_name(key) for key in scored],
        "rows": rows,
        "unseen": [name for label, name in enumerate(names) if label not in seen],
        "few": len(charts) == 1,
    }


def _name(key: str) -> str:
    return RESULTS.get(key) or SEGMENTATION[key]


def _entry(values: Sequence[float | None], label: int) -> float | None:
    return values[label] if label < len(values) else None


def _rules(results: Metrics) -> dict[str, list[str]]:
    """Which results were scored under which rule: {"wrong": [names], ...}."""
    rules: dict[str, list[str]] = {"wrong": [], "ignore": [], "zero": [], "skip": []}
    for key, result in results.items():
        for kind in ("unknown", "absent"):
            rule = (result.get("scores") or {}).get(kind)
            if rule in rules:
                rules[rule].append(RESULTS[key])
    return rules


def _segmentation(record: Metrics, segmented: Sequence[Segmented]) -> dict[str, Any] | None:
    """The segmentation network: its scores, its training, and some of its answers."""
    if not record:
        return None
    results = {key: record[key] for key in SEGMENTATION if record.get(key)}
    dataset, training, settings = (record.get(key) or {} for key in ("dataset", "train_seg", "eval_seg"))
    names = ["background", *map(str, dataset.get("classes") or [])]
    losses = record.get("losses") or []
    return {
        "dataset": dataset,
        "scored": record.get("scored_pictures"),
        "rows": [{"name": SEGMENTATION[key], **(result.get("scores") or {})} for key, result in results.items()],
        "training": training,
        "settings": settings,
        "loss": _plot_loss(losses, training.get("checkpoint_every") or 1) if losses else None,
        "classes": _classes(results, names, "segmentation-classes"),
        "pictures": [_segmented_row(one, names) for one in segmented],
    }


# Plots


def _plot_loss(losses: Sequence[float], each: int) -> Markup:
    """Mean losses of rounds of `each` iterations; a point stands at the end of its round."""
    figure, axes = _axes(4.6, 2.4)
    axes.plot(
        [each * (k + 1) for k in range(len(losses))], losses, "o-", color=COLOURS["amn"], linewidth=1.8, markersize=4
    )
    axes.set_xlim(0, each * len(losses))
    axes.set_ylim(0, None)
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss")
    return _svg(figure, "segmentation-loss", f"Training loss, from {losses[0]:.3f} to {losses[-1]:.3f}.")


def _plot_curves(curves: Metrics) -> Markup:
    figure, axes = _axes(5.4, 3.1)
    for key, curve in curves.items():
        thresholds, miou = np.array(curve["thresholds"], float), np.array(curve["miou"], float)
        colour = COLOURS[key]
        wide = np.where(miou >= curve["best_miou"] - 0.01 - 1e-9, miou, np.nan)
        axes.plot(thresholds, wide, color=colour, linewidth=9, alpha=0.25, solid_capstyle="round")
        axes.plot(thresholds, miou, color=colour, linewidth=1.8, linestyle=DASHES[key])
        axes.plot(curve["best_threshold"], curve["best_miou"], "o", color=colour, markersize=5)
        axes.vlines(curve["best_threshold"], 0, curve["best_miou"], color=colour, linewidth=0.8, linestyle=(0, (2, 2)))
    first = next(iter(curves.values()))["thresholds"]
    axes.set_xlim(first[0], first[-1])
    axes.set_ylim(0, 1)
    axes.set_xlabel("background threshold")
    axes.set_ylabel("mIoU")
    said = "; ".join(
        f"{RESULTS[key]} is best at {curve['best_threshold']:.2f}: {curve['best_miou']:.3f}, width {curve['width']:.2f}"
        for key, curve in curves.items()
    )
    return _svg(figure, "curves", f"mIoU over background thresholds. {said}.")


def _histogram_top(histograms: Metrics) -> float:
    """Upper limit of the histograms' axes; the outermost bins, where most of a CAM's background lies, may exceed it."""
    inner = [
        max(_shares(histogram[side])[1:-1], default=0.0)
        for histogram in histograms.values()
        for side in ("foreground", "background")
    ]
    return 1.25 * max(inner) or 1.0


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _plot_histogram(key: str, histogram: Metrics, top: float) -> Markup:
    figure, axes = _axes(4.6, 2.7)
    edges = histogram["edges"]
    for side, colour in (("background", MUTED), ("foreground", COLOURS[key])):
        shares = _shares(histogram[side])
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(shares, edges, color=colour, linewidth=1.4)
        mean = histogram[f"{side}_mean"]
        if mean is not None:
            axes.axvline(mean, color=colour, linewidth=1.4, linestyle=(0, (3, 2)))
        for index, align in ((0, "left"), (-1, "right")):
            if shares[index] > top:  # the bar leaves the plot: say how far it goes
                shift = 0.0 if side == "background" else 0.12
                x = edges[index] + (shift if index == 0 else -shift)
                axes.text(x, top * 1.02, f"{shares[index]:.0%}", color=colour, ha=align, va="bottom", fontweight="bold")
    low, high, gap = histogram["background_mean"], histogram["foreground_mean"], histogram["gap"]
    said = f"Activations of {RESULTS[key]}: mean over foreground {high:.2f}"
    if gap is not None:
        y = top * 0.7
        axes.annotate(
            "", (high, y), (low, y), arrowprops={"arrowstyle": "<->", "color": INK, "shrinkA": 0, "shrinkB": 0}
        )
        axes.text((low + high) / 2, y + top * 0.02, f"gap {gap:.2f}", ha="center", va="bottom", color=INK)
        said += f", over background {low:.2f}, gap {gap:.2f}"
    axes.set_xlim(0, 1)
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("activation")
    axes.set_ylabel("share of pixels")
    return _svg(figure, f"histogram-{key}", said + ".")


def _plot_classes(title: str, names: list[str], compared: dict[str, list[float | None]]) -> Markup:
    thickness = 0.8 / len(compared)
    figure, axes = _axes(4.6, 0.5 + 0.1 * len(names) * (1 + len(compared)))
    rows = np.arange(len(names))
    for index, (key, iou) in enumerate(compared.items()):
        places = rows + (index - (len(compared) - 1) / 2) * thickness
        values = [0.0 if value is None else value for value in iou]
        axes.barh(places, values, height=thickness * 0.85, color=COLOURS.get(TONES.get(key, key), MUTED))
    axes.set_yticks(rows, names)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a class may well be called "$"
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xlabel("IoU")
    compared_names = ", ".join(_name(key) for key in compared)
    return _svg(figure, title, f"IoU by class for {compared_names}; the figures are in the table below.")


def _axes(width: float, height: float) -> "tuple[Figure, Axes]":
    """A figure of that size in inches and its axes, in the page's style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=9, length=3)
    axes.xaxis.label.set(color=MUTED, size=9)
    axes.yaxis.label.set(color=MUTED, size=9)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an inline SVG that takes its fonts and colours from the page. `name` keeps its ids its own."""
    settings: Any = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9}
    file = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The browser sets the text; that matplotlib's font lacks a letter of a class's name matters to nobody.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # needed in a file of its own only
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # names of groups, the same in every figure
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    body = text[text.index(">") + 1 :]
    return Markup(f'<svg role="img" {box[0]} aria-label="{Markup.escape(description)}">{body}')


# Pictures


def _picture_groups(results: Metrics, pictures: Pictures | None, names: list[str]) -> list[dict[str, Any]]:
    """The pictures with the best and with the worst masks; a selection of all where masks have no scores."""
    if pictures is None or not len(pictures.ids):
        return []
    per_picture = (results.get("mask") or {}).get("per_picture") or {}
    known = set(pictures.ids)
    scores = {id: score for id, score in per_picture.items() if score is not None and id in known}
    if scores:
        ranked = sorted(scores, key=lambda id: (-scores[id], id))
        half = min(PICTURES_SHOWN, len(ranked) + 1) // 2
        groups = [("Best masks", ranked[:half]), ("Worst masks", ranked[half:][-half:][::-1])]
    else:
        step = max(1, math.ceil(len(pictures.ids) / PICTURES_SHOWN))
        groups = [("A selection", list(pictures.ids[::step]))]
    return [
        {"title": title, "rows": [{"id": id, "miou": scores.get(id), **_picture(pictures, id, names)} for id in ids]}
        for title, ids in groups
        if ids
    ]


def _picture(pictures: Pictures, id: str, names: list[str]) -> dict[str, Any]:
    """One row: the picture, and what lies over it at each step."""
    layers = {
        name: getattr(pictures, key)(id)
        for key, name in (
            ("cam", "CAM"),
            ("seed", "Refined seed"),
            ("amn", "AMN"),
            ("amn_seed", "Refined AMN seed"),
            ("mask", "Mask"),
            ("truth", "Truth"),
        )
    }
    return _row(id, pictures.image(id), layers, names)


def _segmented_row(segmented: Segmented, names: list[str]) -> dict[str, Any]:
    layers = {SEGMENTATION[key]: mask for key, mask in segmented.masks.items()}
    row = _row(segmented.id, segmented.image, {**layers, "Truth": segmented.truth}, names)
    return {"id": segmented.id, "miou": segmented.miou, **row}


def _row(
    id: str, image: NDArray[np.uint8], layers: Mapping[str, NDArray[Any] | None], names: list[str]
) -> dict[str, Any]:
    """A picture and what lies over it, by name: masks (uint8) and activations (floats)."""
    scale = min(1.0, THUMBNAIL / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    drawn = []
    shows = ""  # the classes of the last mask: the truth where there is one
    for name, layer in layers.items():
        if layer is None:
            continue
        if layer.shape != image.shape[:2]:
            raise InputError(
                f"{name} of picture {id} has shape {layer.shape}, expected the picture's, {image.shape[:2]}"
            )
        heat = layer.dtype.kind == "f"
        if heat:
            uri, said = _heat(layer, size, f"{name} of picture {id}"), "activation, from blue (low) to red (high)"
        else:
            uri, said = _overlay(layer, size), _shares_in_words(layer, names)
            shows = ", ".join(_called(label, names) for label in np.unique(layer).tolist() if label not in (0, 255))
        drawn.append({"name": name, "uri": uri, "heat": heat, "alt": f"{name} of {id}: {said}"})
    thumbnail = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return {"uri": _jpeg(thumbnail, 82), "width": size[0], "height": size[1], "shows": shows, "layers": drawn}


def _shares_in_words(mask: NDArray[np.uint8], names: list[str]) -> str:
    counts = np.bincount(mask.ravel(), minlength=256)
    labels = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    return ", ".join(f"{_called(label, names)} {counts[label] / mask.size:.0%}" for label in labels)


def _called(label: int, names: list[str]) -> str:
    if label == 255:
        return "unknown"
    return names[label] if label < len(names) else f"class {label}"


def _heat(activation: NDArray[np.floating[Any]], size: tuple[int, int], name: str) -> str:
    """An activation as colours."""
    if not np.isfinite(activation).all():
        raise InputError(f"{name} holds NaN or infinity, expected activations in [0, 1]")
    small = cv2.resize(activation.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    colours = matplotlib.colormaps["turbo"](np.clip(small, 0, 1), bytes=True)[..., :3]
    return _jpeg(np.ascontiguousarray(colours), 75)


def _overlay(mask: NDArray[np.uint8], size: tuple[int, int]) -> str:
    """A mask as colours to lay over its picture: classes tinted, background dimmed, unknown hatched."""
    small = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    alpha = np.full((*small.shape, 1), 175, np.uint8)
    alpha[small == 0] = 115
    overlay = np.concatenate([voc_palette()[small], alpha], axis=2)
    rows, columns = np.indices(small.shape)
    unknown = small == 255
    hatch = (rows + columns) % 8 < 3
    overlay[unknown & hatch] = (255, 255, 255, 165)
    overlay[unknown & ~hatch] = (170, 170, 170, 135)
    return _uri("png", cv2.cvtColor(overlay, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _jpeg(rgb: NDArray[Any], quality: int) -> str:
    return _uri("jpeg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])


def _uri(kind: str, bgr: NDArray[Any], options: list[int]) -> str:
    _, data = cv2.imencode(f".{kind}", bgr, options)
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def _css_colour(label: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*voc_palette()[label])


# The page


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(score=_score, percent=_percent, duration=_duration, memory=_memory, gain=_gain)
    return environment.get_template("report.html.jinja")


def _score(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _gain(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _memory(megabytes: float | None) -> str:
    if megabytes is None:
        return "–"
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"
