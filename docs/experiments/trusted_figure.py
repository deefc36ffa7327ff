"""Draw docs/images/trusted_masks.png from docs/experiments/trusted_masks.json.

    python docs/experiments/trusted_figure.py

For each set: mIoU of the masks of images without a trusted mask, with trusted masks of other images and without.
"""

import json
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
IMAGE = HERE.parent / "images" / "trusted_masks.png"
LINES = {"doubt": ("most doubtful images", "o", "#c0392b"), "random_0": ("random images", "s", "#2471a3")}


def main() -> None:
    found = json.loads((HERE / "trusted_masks.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    for place, (name, record) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(1, len(found), place)
        start = record["rows"][0]["without"]
        for choice, (label, marker, colour) in LINES.items():
            rows = [row for row in record["rows"] if row["choice"] == choice]
            counts = [0, *(row["count"] for row in rows)]
            for key, style, what in (("with", "-", ""), ("without", ":", ", same images without trusted masks")):
                values = [start, *(row[key] for row in rows)]
                axes.plot(counts, values, style, marker=marker, markersize=4, color=colour, label=label + what)
        axes.set_title(f"{name}: {record['images']} images", fontsize=9)
        axes.set_xlabel("trusted masks", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if place == 1:
            axes.set_ylabel("mIoU of the other images", fontsize=8)
            figure.legend(fontsize=7, ncols=2, loc="outside lower center")
    figure.savefig(IMAGE, dpi=110)


if __name__ == "__main__":
    main()
