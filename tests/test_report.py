"""The report: what is on the page, what its pictures show, and that it stands alone."""

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

from amn_fast.errors import InputError
from amn_fast.metrics import ActivationHistogram, Confusion, ThresholdCurve
from amn_fast.report import Segmented, voc_palette, write_report

VOID_ELEMENTS = {"meta", "img", "br"}


class Page(HTMLParser):
    """A parsed page; a tag that is closed out of order is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open
        self.text = " ".join(" ".join(self.words).split())

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

    def titles(self) -> list[str]:
        """Ids of the pictures, in the order of the page."""
        return re.findall(r'<div class="title"><b>(.*?)</b>', self.source)


class Squares:
    """A made-up data set: picture n shows a square of class 1, and its mask misses n columns of it."""

    size = (40, 60)

    def __init__(self, n_pictures: int = 20) -> None:
        self.ids = [f"p{n:02d}" for n in range(n_pictures)]
        self.missing: set[str] = set()

    def image(self, id):
        return np.random.default_rng(int(id[1:])).integers(0, 256, (*self.size, 3), dtype=np.uint8)

    def truth(self, id):
        truth = np.zeros(self.size, np.uint8)
        truth[10:30, 20:50] = 1
        truth[10:11, 20:50] = 255
        return None if "truth" in self.missing else truth

    def mask(self, id):
        mask = np.zeros(self.size, np.uint8)
        mask[10:30, 20 + int(id[1:]) : 50] = 1
        return None if "mask" in self.missing else mask

    def cam(self, id):
        return None if "cam" in self.missing else cv2.GaussianBlur((self.mask(id) == 1).astype(np.float32), (0, 0), 4)

    def amn(self, id):
        return None if "amn" in self.missing else cv2.GaussianBlur((self.mask(id) == 1).astype(np.float32), (0, 0), 2)

    def seed(self, id):
        if "seed" in self.missing:
            return None
        cam = self.cam(id)
        return np.where(cam > 0.5, 1, np.where(cam > 0.2, 255, 0)).astype(np.uint8)

    amn_seed = seed


def measured(pictures: Squares, classes: tuple[str, ...] = ("cat", "cup")) -> dict:
    """metrics.json of those pictures, as it comes back from a file."""
    n_classes = len(classes)
    curves = {key: ThresholdCurve(n_classes) for key in ("cam", "amn")}
    histograms = {key: ActivationHistogram(n_classes) for key in ("cam", "amn")}
    masks, seeds = Confusion(n_classes), Confusion(n_classes)
    per_picture = {}
    for id in pictures.ids:
        truth = pictures.truth(id)
        for key in ("cam", "amn"):
            activation = getattr(pictures, key)(id)[None]
            curves[key].add(activation, [1], truth)
            histograms[key].add(activation, [1], truth)
        masks.add(pictures.mask(id), truth)
        seeds.add(pictures.seed(id), truth)
        alone = Confusion(n_classes)
        alone.add(pictures.mask(id), truth)
        per_picture[id] = alone.scores().to_json()["miou"]
    metrics: dict = {
        "dataset": {"name": "squares", "classes": list(classes), "pictures": len(pictures.ids)},
        "environment": {"date": "2026-01-02", "machine": "two cores", "python": "3.12", "amn_fast": "0.1.0"},
        "stages": {
            "make-mask": {"seconds": 75.0, "peak_memory_mb": 2048.0, "skipped": False},
            "train-cam": {"seconds": 12.34, "peak_memory_mb": 512.4, "skipped": True},
        },
    }
    for key in ("cam", "amn"):
        curve = curves[key].to_json()
        scores = curves[key].scores(curve["best_threshold"]).to_json()
        metrics[key] = {
            "scores": scores,
            "curve": curve,
            "histogram": histograms[key].to_json(),
            "miou": curve["best_miou"],
        }
    for key, confusion, rule in (("refined_seed", seeds, "ignore"), ("mask", masks, "wrong")):
        scores = confusion.scores(rule).to_json()
        metrics[key] = {"scores": scores, "miou": scores["miou"]}
    metrics["mask"]["per_picture"] = per_picture
    return json.loads(json.dumps(metrics))


def decoded(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.partition("base64,")[2])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope="module")
def squares() -> Squares:
    return Squares()


@pytest.fixture(scope="module")
def metrics(squares) -> dict:
    return measured(squares)


@pytest.fixture(scope="module")
def page(squares, metrics, tmp_path_factory) -> Page:
    return Page(write_report(tmp_path_factory.mktemp("run"), metrics, squares, "name: squares\nseed: 0\n"))


def test_loads_nothing_from_anywhere(page):
    assert "://" not in page.source
    assert not page.all("script")
    assert not page.all("link")
    sources = [attributes["src"] for attributes in page.all("img")]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert all(address.startswith("data:") for address in re.findall(r"url\((?!#)(.{5})", page.source))


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'href="#([^"]+)"', page.source) + re.findall(r"url\(#([^)]+)\)", page.source)
    assert set(targets) <= set(ids)


def test_every_picture_and_plot_is_described(page, metrics):
    assert all(attributes["alt"] for attributes in page.all("img"))
    plots = [attributes["aria-label"] for attributes in page.all("svg")]
    assert len(plots) == 4
    amn = metrics["amn"]["curve"]
    assert f"AMN is best at {amn['best_threshold']:.2f}: {amn['best_miou']:.3f}, width {amn['width']:.2f}" in plots[0]
    mask = next(attributes["alt"] for attributes in page.all("img") if attributes["alt"].startswith("Mask of p00"))
    assert mask == "Mask of p00: background 75%, cat 25%"


def test_figures_are_those_of_the_metrics(page, metrics):
    mask, seed = metrics["mask"]["scores"], metrics["refined_seed"]["scores"]
    assert page.row("make-mask Mask")[1:] == [
        f"{mask['miou']:.3f}",
        f"{mask['mean_precision']:.3f}",
        f"{mask['mean_recall']:.3f}",
        "100.0%",
        "1 min 15 s",
        "2.0 GB",
    ]
    assert page.row("refine-seed Refined seed")[4:] == [f"{seed['coverage']:.1%}", "–", "–"]
    assert page.row("train-cam reused") == ["train-cam reused", "", "", "", "", "12.3 s", "512 MB"]
    assert page.row("All")[-2:] == ["1 min 27 s", "2.0 GB"]
    curve, histogram = metrics["cam"]["curve"], metrics["cam"]["histogram"]
    assert page.row("CAM", 0)[1:] == [
        f"{curve['best_miou']:.3f}",
        f"{curve['best_threshold']:.2f}",
        f"{curve['width']:.2f}",
        f"{curve['mean']:.3f}",
    ]
    assert page.row("CAM", 1)[3:] == [
        f"{histogram['gap']:.3f}",
        f"{histogram['imbalance']:.3f}",
        f"{histogram['low_share']:.1%}",
    ]
    assert page.row("cat")[-1] == f"{mask['iou'][1]:.3f}"
    assert "Without a score, because nowhere true: cup." in page.text
    gain = metrics["amn"]["miou"] - metrics["cam"]["miou"]
    assert gain > 0
    assert f"{gain:+.3f} to CAM" in page.text
    assert "20 pictures · 2 classes" in page.text


def test_rules_of_scoring_are_stated(page):
    assert "A pixel without an answer counts as wrong: CAM, AMN, Mask." in page.text
    assert "A pixel without an answer is left out: Refined seed." in page.text
    assert "A class that is predicted though nowhere true scores 0." in page.text


def test_shows_the_best_and_the_worst_masks(page):
    assert page.titles() == ["p00", "p01", "p02", "p03", "p04", "p05", "p19", "p18", "p17", "p16", "p15", "p14"]
    assert page.text.index("Best masks") < page.text.index("Worst masks")
    order = re.findall(r"<figcaption>(.*?)</figcaption>", page.source)[:7]
    assert order == ["Picture", "CAM", "Refined seed", "AMN", "Refined AMN seed", "Mask", "Truth"]


@pytest.mark.parametrize(("n_pictures", "best", "worst"), [(1, 1, 0), (2, 1, 1), (5, 3, 2), (12, 6, 6), (13, 6, 6)])
def test_few_pictures_are_shown_once(tmp_path, n_pictures, best, worst):
    squares = Squares(n_pictures)
    titles = Page(write_report(tmp_path, measured(squares), squares, "")).titles()
    assert titles == squares.ids[:best] + squares.ids[::-1][:worst]
    assert len(set(titles)) == min(n_pictures, 12)


def test_masks_are_drawn_in_their_colours(page, squares):
    sources = {attributes["alt"].partition(":")[0]: attributes["src"] for attributes in page.all("img")}
    mask, truth = decoded(sources["Mask of p02"]), decoded(sources["Truth of p02"])
    assert mask.shape == (*squares.size, 4)
    assert mask[20, 40].tolist() == [0, 0, 128, 175]  # class 1 of VOC, blue green red alpha
    assert mask[0, 0].tolist() == [0, 0, 0, 115]
    assert (mask[squares.mask("p02") == 1] == mask[20, 40]).all()
    unknown = truth[10, 20:50]
    assert len(np.unique(unknown, axis=0)) == 2  # hatched
    assert (np.ptp(unknown[:, :3].astype(int), axis=1) == 0).all()  # in greys
    assert unknown[:, :3].min() > 128


def test_activations_are_drawn_from_blue_to_red(page, squares):
    sources = {attributes["alt"].partition(":")[0]: attributes["src"] for attributes in page.all("img")}
    heat = decoded(sources["AMN of p00"]).astype(int)
    blue, _, red = heat[20, 35]
    assert red > blue + 60
    blue, _, red = heat[1, 1]
    assert blue > red
    assert heat.shape == (*squares.size, 3)


def test_large_pictures_become_thumbnails(tmp_path):
    squares = Squares(1)
    squares.size = (600, 300)
    page = Page(write_report(tmp_path, {}, squares, ""))
    for attributes in page.all("img"):
        assert decoded(attributes["src"]).shape[:2] == (256, 128)
        assert (attributes["width"], attributes["height"]) == ("128", "256")


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3000, 20)])
def test_extreme_pictures_are_drawn(tmp_path, size):
    squares = Squares(1)
    squares.size = size
    squares.missing = {"cam", "amn", "seed"}
    page = Page(write_report(tmp_path, {}, squares, ""))
    assert [attributes["alt"].partition(" ")[0] for attributes in page.all("img")] == ["Mask", "Truth"]


def test_same_input_same_bytes(page, squares, metrics, tmp_path):
    assert write_report(tmp_path, metrics, squares, "name: squares\nseed: 0\n").read_text("utf-8") == page.source
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_nothing_at_all_is_said_and_not_an_error(tmp_path):
    page = Page(write_report(tmp_path, {}, None, ""))
    for sentence in (
        "No stage has left a record in this run folder.",
        "There are no scores: the data set has no ground truth, or evaluate has not run.",
        "No threshold curves: they need activations and ground truth.",
        "No histograms: they need activations and ground truth.",
        "No scores by class",
        "No pictures to show.",
    ):
        assert sentence in page.text
    assert not page.all("svg")


def test_without_ground_truth_a_selection_of_pictures_is_shown(tmp_path, squares, metrics):
    blind = Squares(30)
    blind.missing = {"truth", "amn"}
    only_times = {key: metrics[key] for key in ("dataset", "environment", "stages")}
    page = Page(write_report(tmp_path, only_times, blind, ""))
    assert page.titles() == blind.ids[::3]
    assert page.row("train-cam reused")[-2:] == ["12.3 s", "512 MB"]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.source)[:5]
    assert captions == ["Picture", "CAM", "Refined seed", "Refined AMN seed", "Mask"]
    assert "No threshold curves" in page.text


@pytest.mark.parametrize("missing", ["cam", "amn", "mask", "refined_seed", "environment", "stages", "dataset"])
def test_any_part_may_be_missing(tmp_path, squares, metrics, missing):
    rest = {key: value for key, value in metrics.items() if key != missing}
    page = Page(write_report(tmp_path, rest, squares, ""))
    name = {"cam": "CAM", "amn": "AMN", "mask": "Mask", "refined_seed": "Refined seed"}.get(missing)
    headings = re.findall(r'<span class="small">(.*?)</span>', page.source)
    assert headings == [key for key in ("CAM", "Refined seed", "AMN", "Mask") if key != name]
    if missing == "cam":
        assert "to CAM" not in page.text


def test_figures_that_are_none_are_dashes(tmp_path):
    empty = {
        "dataset": {"name": "void", "classes": ["cat"], "pictures": 0},
        "cam": {
            "scores": Confusion(1).scores().to_json(),
            "curve": ThresholdCurve(1).to_json(),
            "histogram": ActivationHistogram(1).to_json(),
            "miou": None,
        },
        "mask": {"scores": Confusion(1).scores().to_json(), "miou": None, "per_picture": {"p00": None, "gone": 0.5}},
    }
    page = Page(write_report(tmp_path, empty, Squares(2), ""))
    assert page.row("make-mask Mask")[1:] == ["–"] * 6
    assert page.titles() == ["p00", "p01"]
    assert "nan" not in page.text.lower()


def test_only_foreground_pixels_still_make_a_histogram(tmp_path):
    histogram = ActivationHistogram(1)
    histogram.add(np.full((1, 2, 2), 0.7), [1], np.ones((2, 2), int))
    page = Page(write_report(tmp_path, {"cam": {"histogram": histogram.to_json()}}, None, ""))
    assert page.row("CAM")[1:] == ["0.700", "–", "–", "0.000", "0.0%"]


def test_eighty_classes_are_all_on_the_page(tmp_path):
    names = tuple(f"class {n}" for n in range(1, 81))
    labels = np.arange(81, dtype=np.uint8)[None]
    confusion = Confusion(80)
    confusion.add(labels, labels)
    scores = confusion.scores().to_json()
    metrics = {"dataset": {"name": "many", "classes": names}, "mask": {"scores": scores, "miou": scores["miou"]}}
    page = Page(write_report(tmp_path, metrics, None, ""))
    assert len(page.all("svg")) == 4
    for name in ("background", *names):
        assert page.row(name) == [name, "1.000"]
        assert page.source.count(f">{name}</text>") == 1


def test_names_and_configuration_are_text_and_never_markup(tmp_path):
    class Strange(Squares):
        def __init__(self):
            super().__init__(1)
            self.ids = ["<i>&p"]

        def image(self, id):
            return np.zeros((*self.size, 3), np.uint8)

        def mask(self, id):
            return np.ones(self.size, np.uint8)

    metrics = measured(Squares(1), ("<script>", "cost $x$", "猫"))
    metrics["mask"]["scores"]["iou"] = [0.5] * 4
    metrics["dataset"]["name"] = "<b>bold</b>"
    page = Page(write_report(tmp_path, metrics, Strange(), "a: <b> & </pre>"))
    assert not page.all("script")
    assert not page.all("i")
    assert "a: <b> & </pre>" in page.text
    assert "<b>bold</b>" in page.text
    for name in ("cost $x$", "猫", "&lt;script&gt;"):
        assert page.source.count(f">{name}</text>") == 1
    assert any(attributes["alt"] == "Mask of <i>&p: <script> 100%" for attributes in page.all("img"))


def test_a_mask_of_another_size_is_refused_by_name(tmp_path):
    squares = Squares(1)
    squares.missing = {"cam", "amn", "seed"}
    squares.mask = lambda id: np.zeros((40, 61), np.uint8)
    with pytest.raises(InputError, match=r"Mask of picture p00 has shape \(40, 61\), .* \(40, 60\)"):
        write_report(tmp_path, {}, squares, "")
    assert not (tmp_path / "report.html").exists()


def test_an_activation_that_is_not_a_number_is_refused_by_name(tmp_path):
    squares = Squares(1)
    squares.amn = lambda id: np.full(squares.size, np.nan, np.float32)
    with pytest.raises(InputError, match="AMN of picture p00 holds NaN"):
        write_report(tmp_path, {}, squares, "")


def test_palette_is_that_of_voc():
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    for label, colour in {**known, 255: (224, 224, 192)}.items():
        assert tuple(palette[label].tolist()) == colour
    assert len(np.unique(palette, axis=0)) == 256


@pytest.fixture(scope="module")
def segmentation(metrics):
    """eval-seg's record of those pictures, and what it shows of them."""
    pictures, confusions = Squares(4), {key: Confusion(2) for key in ("without_crf", "with_crf")}
    shown = []
    for id in pictures.ids:
        masks = {"without_crf": np.zeros_like(pictures.mask(id)), "with_crf": pictures.mask(id)}
        for key, mask in masks.items():
            confusions[key].add(mask, pictures.truth(id))
        shown.append(Segmented(id, pictures.image(id), masks, pictures.truth(id), 0.25))
    record = {
        "dataset": {"name": "squares-val", "classes": ["cat", "cup"], "pictures": 4},
        "scored_pictures": 4,
        "train_seg": {"backbone": "resnet101", "masks": None, "checkpoint_every": 50},
        "eval_seg": {"data": None, "options": {"ids": "val"}},
        "losses": [3.0, 1.5, 1.25],
        "stages": {"train-seg": {"seconds": 61.0, "peak_memory_mb": 100.0}},
    }
    for key, confusion in confusions.items():
        scores = confusion.scores(absent="skip").to_json()
        record[key] = {"miou": scores["miou"], "scores": scores}
    return json.loads(json.dumps(record)), shown


def test_the_segmentation_network_has_its_section(squares, metrics, segmentation, tmp_path):
    record, shown = segmentation
    page = Page(write_report(tmp_path, metrics | {"segmentation": record}, squares, "", shown))
    scores = record["with_crf"]["scores"]
    assert page.row("Network and CRF")[1] == f"{scores['miou']:.3f}"
    assert page.row("Network")[1] == f"{record['without_crf']['miou']:.3f}"
    assert page.row("train-seg")[-2:] == ["1 min 01 s", "100 MB"]
    assert "evaluated on 4 pictures of squares-val." in " ".join(page.text.split())
    plots = [attributes["aria-label"] for attributes in page.all("svg")]
    assert "Training loss, from 3.000 to 1.250." in plots
    assert any(label.startswith("IoU by class for Network, Network and CRF") for label in plots)
    drawn = [attributes["alt"] for attributes in page.all("img")]
    assert "Network of p00: background 100%" in drawn
    assert sum(alt.startswith("Network and CRF of") for alt in drawn) == 4
    assert "labels 0.250 mIoU" in " ".join(page.text.split())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "segmentation" in ids


def test_without_scores_the_section_shows_the_labels(squares, metrics, segmentation, tmp_path):
    record, shown = segmentation
    bare = {name: value for name, value in record.items() if name not in ("with_crf", "without_crf", "losses")}
    page = Page(write_report(tmp_path, metrics | {"segmentation": bare}, squares, "", shown))
    assert "There are no scores: the pictures have no ground truth." in page.text
    assert sum(attributes["alt"].startswith("Network and CRF of") for attributes in page.all("img")) == 4


def test_a_run_without_the_network_has_no_such_section(page):
    assert "Segmentation network" not in page.text


def test_the_network_alone_makes_a_page(segmentation, tmp_path):
    record, shown = segmentation
    page = Page(write_report(tmp_path, {"dataset": record["dataset"], "segmentation": record}, None, "", shown))
    assert page.row("Network and CRF")
    assert "No pictures to show." in page.text
