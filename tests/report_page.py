"""A report page as a browser sees it, and a data set of squares to report on."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("jinja2", reason="the report needs the pipeline extra")
pytest.importorskip("matplotlib", reason="the report needs the pipeline extra")

from amn_fast.metrics import ActivationHistogram, Confusion, ThresholdCurve
from amn_fast.report.statistics import LabelStatistics

VOID_ELEMENTS = {"meta", "img", "br"}
LAYERS = ["Image", "CAM", "Refined seed", "AMN", "Refined AMN seed", "Mask", "Ground truth"]
CONFIG = "name: squares\nseed: 0\n"


class Page(HTMLParser):
    """A parsed page. It is well-formed, its ids are unique, its links lead somewhere and it loads nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        self.text = " ".join(" ".join(self.words).split())
        self._check(path.parent)

    def _check(self, folder: Path) -> None:
        assert not self._open
        assert "://" not in self.source
        assert not self.all("script") + self.all("link")
        assert all(image["alt"] and image["src"].startswith("data:image/") for image in self.all("img"))
        assert all(plot["aria-label"] for plot in self.all("svg"))
        assert all(address.startswith("data:") for address in re.findall(r"url\((?!#)(.{5})", self.source))
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = [link["href"] for link in self.all("a")]
        targets = [link[1:] for link in links if link.startswith("#")] + re.findall(r"url\(#([^)]+)\)", self.source)
        assert set(targets) <= set(ids)
        self.files = [link for link in links if not link.startswith("#")]
        assert all((folder / link).resolve().is_relative_to(folder.parent.resolve()) for link in self.files)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID_ELEMENTS:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open or "svg" in self._open:
            return
        self.words.append(data)
        if self.rows and ("td" in self._open or "th" in self._open):
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, first: str, number: int = 0) -> list[str]:
        return [row for row in self.rows if row[0] == first][number]

    def headings(self) -> list[str]:
        return re.findall(r"<h2[^>]*>(.*?)</h2>", self.source)

    def titles(self) -> list[str]:
        """Ids of the images, in the order of the page."""
        return re.findall(r'<div class="title"><b>(.*?)</b>', self.source)

    def drawn(self, name: str) -> np.ndarray:
        """The image whose description starts with `name`, BGR or BGRA."""
        source = next(image["src"] for image in self.all("img") if image["alt"].startswith(f"{name}:"))
        return cv2.imdecode(np.frombuffer(base64.b64decode(source.partition("base64,")[2]), np.uint8), -1)


class Squares:
    """A made-up data set: image n shows a square of class 1, and its mask misses n columns of it."""

    def __init__(self, n_images: int = 20, size: tuple[int, int] = (40, 60), missing: tuple[str, ...] = ()) -> None:
        self.ids = [f"p{n:02d}" for n in range(n_images)]
        self.size, self.missing, self.with_truth = size, missing, set(self.ids)

    def image(self, id):
        return np.random.default_rng(int(id[1:])).integers(0, 256, (*self.size, 3), dtype=np.uint8)

    def ground_truth(self, id):
        ground_truth = np.zeros(self.size, np.uint8)
        ground_truth[10:30, 20:50] = 1
        ground_truth[10:11, 20:50] = 255
        return ground_truth if id in self.with_truth and "truth" not in self.missing else None

    def mask(self, id):
        mask = np.zeros(self.size, np.uint8)
        mask[10:30, 20 + int(id[1:]) : 50] = 1
        return mask

    def _blurred(self, id, sigma):
        return cv2.GaussianBlur((self.mask(id) == 1).astype(np.float32), (0, 0), sigma)

    def cam(self, id):
        return None if "cam" in self.missing else self._blurred(id, 4)

    def amn(self, id):
        return None if "amn" in self.missing else self._blurred(id, 2)

    def seed(self, id):
        if "seed" in self.missing:
            return None
        cam = self._blurred(id, 4)
        return np.where(cam > 0.5, 1, np.where(cam > 0.2, 255, 0)).astype(np.uint8)

    amn_seed = seed


def measured(images: Squares, classes: tuple[str, ...] = ("cat", "cup")) -> dict:
    """metrics.json of those images, as it comes back from a file."""
    n_classes, shown = len(classes), np.arange(len(classes)) == 0
    curves = {key: ThresholdCurve(n_classes) for key in ("cam", "amn")}
    histograms = {key: ActivationHistogram(n_classes) for key in ("cam", "amn")}
    masks, seeds = Confusion(n_classes), Confusion(n_classes)
    maps = {key: LabelStatistics(n_classes) for key in ("refined_seed", "mask")}
    per_image = {}
    for id in images.ids:
        for key, label_map in (("refined_seed", images.seed(id)), ("mask", images.mask(id))):
            maps[key].add(label_map, shown)
        ground_truth = images.ground_truth(id)
        if ground_truth is None:
            continue
        for key in ("cam", "amn"):
            activation = getattr(images, key)(id)[None]
            curves[key].add(activation, [1], ground_truth)
            histograms[key].add(activation, [1], ground_truth)
        masks.add(images.mask(id), ground_truth)
        seeds.add(images.seed(id), ground_truth)
        alone = Confusion(n_classes)
        alone.add(images.mask(id), ground_truth)
        per_image[id] = alone.scores().to_json()["miou"]
    counts = {"images": len(images.ids), "scored": len(per_image)}
    metrics: dict = {
        "dataset": {"name": "squares", "classes": list(classes), **counts},
        "environment": {"date": "2026-01-02", "machine": "two cores", "python": "3.12", "amn_fast": "0.1.0"},
        "stages": {
            "make-mask": {"seconds": 75.0, "peak_memory_mb": 2048.0},
            "train-cam": {"seconds": 12.34, "peak_memory_mb": 512.4},
        },
        "label_maps": {key: statistics.to_json() for key, statistics in maps.items()},
        "training": {"cam": {"loss": [0.6, 0.25], "accuracy": [0.5, 0.9]}, "amn": {"loss": [1.5, 1.0]}},
    }
    metrics["dataset"]["images_per_class"] = (shown * len(images.ids)).tolist()
    for key in ("cam", "amn") if per_image else ():
        curve = curves[key].to_json()
        scores = curves[key].scores(curve["best_threshold"]).to_json()
        histogram = histograms[key].to_json()
        metrics[key] = {"scores": scores, "curve": curve, "histogram": histogram, "miou": curve["best_miou"] + 4e-7}
    for key, confusion, rule in (("refined_seed", seeds, "ignore"), ("mask", masks, "wrong")) if per_image else ():
        scores = confusion.scores(rule).to_json()
        metrics[key] = {"scores": scores, "miou": scores["miou"]}
    if per_image:
        metrics["mask"]["per_image"] = per_image
    return json.loads(json.dumps(metrics))
