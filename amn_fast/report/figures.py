"""Plots as inline SVG that takes its fonts and colours from the page."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from amn_fast._extras import require
from amn_fast.report.names import NETWORKS, RESULTS, TONES, result_name

require("matplotlib", "pipeline")

import matplotlib  # noqa: E402  (after the check, so that its sentence is what a user sees)
from markupsafe import Markup  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator, PercentFormatter  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Metrics = Mapping[str, Any]

DASHES: dict[str, Any] = {"cam": (0, (6, 2)), "amn": "solid", "mask": (0, (1, 1.2))}

# Plots are drawn in these stand-ins, which the page's style sheet then colours for light and dark.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
COLOURS = {"cam": "#0a0b0c", "amn": "#0d0e0f", "mask": "#101112"}
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", **{colour: name for name, colour in COLOURS.items()}}


def plot_loss(name: str, losses: Sequence[float], each: int = 1, unit: str = "epoch") -> Markup:
    """Mean losses of rounds of `each` units; a point stands at the end of its round."""
    figure, axes = _axes(4.6, 2.4)
    places = [each * (k + 1) for k in range(len(losses))]
    axes.plot(places, losses, "o-", color=COLOURS[TONES.get(name, name)], linewidth=1.8, markersize=4, clip_on=False)
    axes.set_xlim(0, each * len(losses))
    axes.set_ylim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel(unit)
    axes.set_ylabel("loss")
    of = f" of {NETWORKS[name]}" if name in NETWORKS else ""
    return _svg(figure, f"loss-{name}", f"Training loss{of}, from {losses[0]:.3f} to {losses[-1]:.3f}.")


def plot_curves(curves: Mapping[str, Metrics]) -> Markup:
    """mIoU over background thresholds; `curves` as from `ThresholdCurve.to_json`, by result."""
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


def histogram_top(histograms: Mapping[str, Metrics]) -> float:
    """Upper limit of the histograms' axes; the outermost bins, where most of a CAM's background lies, may exceed it."""
    inner = [
        max(_shares(histogram[side])[1:-1], default=0.0)
        for histogram in histograms.values()
        for side in ("foreground", "background")
    ]
    return 1.25 * max(inner) or 1.0


def plot_histogram(key: str, histogram: Metrics, top: float) -> Markup:
    """Activations over foreground and background; `histogram` as from `ActivationHistogram.to_json`."""
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


def plot_classes(title: str, names: list[str], compared: Mapping[str, Sequence[float | None]]) -> Markup:
    """IoU by class of the compared results."""
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
    compared_names = ", ".join(result_name(key) for key in compared)
    return _svg(figure, title, f"IoU by class for {compared_names}; the figures are in the table below.")


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


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
    """The figure as inline SVG. `name` makes its ids unique on the page."""
    settings: Any = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9}
    file = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The browser sets the text; a letter that matplotlib's font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", _cleaned_tag, text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    body = text[text.index(">") + 1 :]
    return Markup(f'<svg role="img" {box[0]} aria-label="{Markup.escape(description)}">{body}')


def _cleaned_tag(tag: re.Match[str]) -> str:
    """A tag for use inside a page: no namespaces, no repeated ids, the page's colours. Text of the user is no tag."""
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| id="[A-Za-z0-9.]+_\d+"', "", tag[0])
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var(--{variable})")
    return text
