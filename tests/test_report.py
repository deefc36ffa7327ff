"""The report: what is on the page and in the gallery, what their images show, and that they stand alone."""

import doctest
import json
import re

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="the report needs the pipeline extra")
pytest.importorskip("matplotlib", reason="the report needs the pipeline extra")

from amn_fast.data import legend
from amn_fast.data.labels import read_classes
from amn_fast.data.legend import write_legend
from amn_fast.errors import InputError
from amn_fast.metrics import ActivationHistogram, Confusion, ThresholdCurve
from amn_fast.report import Segmented, statistics, write_report
from amn_fast.report.gallery import best_and_worst
from amn_fast.report.statistics import LabelStatistics
from report_page import CONFIG, LAYERS, Page, Squares, measured


@pytest.fixture(scope="module")
def squares() -> Squares:
    return Squares()


@pytest.fixture(scope="module")
def metrics(squares) -> dict:
    return measured(squares)


@pytest.fixture(scope="module")
def page(squares, metrics, tmp_path_factory) -> Page:
    return Page(write_report(tmp_path_factory.mktemp("run"), metrics, squares, CONFIG))


def test_figures_are_those_of_the_metrics(page, metrics):
    mask, seed = metrics["mask"]["scores"], metrics["refined_seed"]["scores"]
    curve, histogram = metrics["cam"]["curve"], metrics["cam"]["histogram"]
    share = metrics["label_maps"]["mask"]["share"][0]
    expected = {
        ("make-mask Mask", 0): [
            f"{mask['miou']:.3f}", f"{mask['mean_precision']:.3f}", f"{mask['mean_recall']:.3f}",
            "100.0%", "1 min 15 s", "2.0 GB",
        ],
        ("train-cam", 0): ["", "", "", "", "12.3 s", "512 MB"],
        ("All", 0): ["", "", "", "", "1 min 27 s", "2.0 GB"],
        ("CAM", 0): [
            f"{curve['best_miou']:.3f}", f"{curve['best_threshold']:.2f}", f"{curve['width']:.2f}",
            f"{curve['mean']:.3f}",
        ],
        ("CAM", 1): [
            f"{histogram['foreground_mean']:.3f}", f"{histogram['background_mean']:.3f}", f"{histogram['gap']:.3f}",
            f"{histogram['imbalance']:.3f}", f"{histogram['low_share']:.1%}",
        ],
    }  # fmt: skip
    for (name, number), figures in expected.items():
        assert page.row(name, number)[1:] == figures, name
    assert page.row("refine-seed Refined seed")[4:] == [f"{seed['coverage']:.1%}", "–", "–"]
    assert page.row("cat")[-1] == f"{mask['iou'][1]:.3f}"
    assert page.row("cat", 1)[1] == "20"
    assert page.row("cat", 1)[-2:] == [f"{share:.1%}", "0"]
    gain = metrics["amn"]["miou"] - metrics["cam"]["miou"]
    assert gain > 0
    for sentence in (
        f"{gain:+.3f} to CAM",
        "20 images · 2 classes · scored on all 20 images",
        "No score, because absent from the ground truth: cup.",
        "A pixel without a label counts as wrong: CAM, AMN, Mask.",
        "A pixel without a label does not count: Refined seed.",
        "A class that is predicted but absent from the ground truth scores 0.",
        "0.250 in the last. All labels right in 90.0% of the training images",
        "1.000 in the last.",
    ):
        assert sentence in page.text
    plots = [plot["aria-label"] for plot in page.all("svg")]
    amn = metrics["amn"]["curve"]
    best = f"AMN is best at {amn['best_threshold']:.2f}: {amn['best_miou']:.3f}, width {amn['width']:.2f}"
    assert len(plots) == 6
    assert best in plots[0]
    assert "Training loss of Classifier, from 0.600 to 0.250." in plots


def test_every_figure_states_how_many_images_were_scored(tmp_path):
    squares = Squares(10)
    squares.with_truth = set(squares.ids[::2])
    page = Page(write_report(tmp_path, measured(squares), squares, ""))
    assert "10 images · 2 classes · scored on 5 of 10 images" in page.text
    assert page.text.count("best, at threshold") == 2
    tiles = re.findall(r'<div class="tile.*?</div>', page.source, re.DOTALL)
    assert len(tiles) == 4
    assert all("5 of 10 images" in tile for tile in tiles)
    sections = re.findall(r'<section aria-labelledby="(\w+)">(.*?)</section>', page.source, re.DOTALL)
    said = [name for name, text in sections if "Scored on 5 of 10 images: the others have no ground truth." in text]
    assert said == ["stages", "curves", "histograms", "classes"]
    assert set(page.titles()) == squares.with_truth


def test_images_with_the_best_and_the_worst_masks_are_shown(page):
    assert page.titles() == ["p00", "p01", "p02", "p03", "p04", "p05", "p19", "p18", "p17", "p16", "p15", "p14"]
    assert page.text.index("Best masks") < page.text.index("Worst masks")
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page.source[page.source.index('id="images"') :])[:7] == LAYERS
    for n_images, best, worst in ((1, 1, 0), (2, 1, 1), (5, 3, 2), (13, 6, 6)):
        ids = [f"p{n:02d}" for n in range(n_images)]
        groups = best_and_worst(Squares(n_images), {id: 1 - int(id[1:]) / 20 for id in ids}, ["background", "cat"])
        assert [row["id"] for group in groups for row in group["rows"]] == ids[:best] + ids[::-1][:worst]


def test_masks_and_activations_are_drawn_in_their_colours(page, squares, tmp_path):
    mask, ground_truth = page.drawn("Mask of p02"), page.drawn("Ground truth of p02")
    assert mask.shape == (*squares.size, 4)
    assert mask[20, 40].tolist() == [0, 0, 128, 175]  # class 1 of VOC, blue green red alpha
    assert mask[0, 0].tolist() == [0, 0, 0, 115]
    assert (mask[squares.mask("p02") == 1] == mask[20, 40]).all()
    unknown = ground_truth[10, 20:50]
    assert len(np.unique(unknown, axis=0)) == 2  # hatched
    assert (np.ptp(unknown[:, :3].astype(int), axis=1) == 0).all()  # in greys
    assert unknown[:, :3].min() > 128
    heat = page.drawn("AMN of p00").astype(int)
    assert heat.shape == (*squares.size, 3)
    assert heat[20, 35, 2] > heat[20, 35, 0] + 60  # red
    assert heat[1, 1, 0] > heat[1, 1, 2]  # blue
    assert any(image["alt"] == "Mask of p00: background 75%, cat 25%" for image in page.all("img"))
    for size, thumbnail in (((600, 300), (256, 128)), ((1, 1), (1, 1)), ((1, 700), (1, 256)), ((3000, 20), (256, 2))):
        one = Squares(1, size, ("cam", "amn", "seed"))
        small = Page(write_report(tmp_path, {}, one, ""))
        assert [image["alt"].partition(" of ")[0] for image in small.all("img")] == ["Mask", "Ground truth"]
        assert small.drawn("Mask of p00").shape[:2] == thumbnail
        assert (small.all("img")[0]["height"], small.all("img")[0]["width"]) == tuple(map(str, thumbnail))


def test_the_gallery_has_every_image(squares, metrics, tmp_path, monkeypatch):
    from amn_fast.report import gallery

    monkeypatch.setattr(gallery, "PER_PAGE", 8)
    metrics = {"mask": {"per_image": metrics["mask"]["per_image"]}}  # without plots, which take long
    counted = []
    page = Page(write_report(tmp_path, metrics, squares, CONFIG, threads=2, advance=lambda: counted.append(1)))
    assert page.files == ["gallery/001.html", "gallery/002.html", "gallery/003.html"]
    assert "20 of 20 images" in page.text
    pages = [Page(tmp_path / file) for file in page.files]
    assert [id for one in pages for id in one.titles()] == squares.ids
    assert len(counted) == 20
    assert re.findall(r"<figcaption>(.*?)</figcaption>", pages[0].source)[:7] == LAYERS
    assert f"mask {metrics['mask']['per_image']['p03']:.3f} mIoU" in pages[0].text
    assert pages[1].files == ["../report.html", *2 * ["001.html", "001.html", "003.html", "003.html"]]
    (tmp_path / "gallery" / "004.html").write_text("<html>my own page</html>")
    (tmp_path / "gallery" / "notes.txt").write_text("mine")
    before = (tmp_path / "report.html").read_bytes(), (tmp_path / "gallery" / "001.html").read_bytes()
    write_report(tmp_path, metrics, squares, CONFIG)
    assert before == ((tmp_path / "report.html").read_bytes(), (tmp_path / "gallery" / "001.html").read_bytes())
    monkeypatch.setattr(gallery, "GALLERY_MOST", 7)
    page = Page(write_report(tmp_path, metrics, squares, CONFIG))
    assert "7 of 20 images" in page.text
    assert Page(tmp_path / "gallery" / "001.html").titles() == [f"p{n:02d}" for n in (0, 2, 5, 8, 11, 14, 17)]
    assert sorted(path.name for path in (tmp_path / "gallery").iterdir()) == ["001.html", "004.html", "notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery", "report.html"]


def test_without_ground_truth_the_page_says_what_is_known(tmp_path):
    blind = Squares(30, missing=("truth", "amn"))
    found = measured(blind)
    page = Page(write_report(tmp_path, found, blind, ""))
    assert page.headings() == ["Stages", "Labels and masks", "Training", "Images", "Resolved configuration"]
    tiles = re.findall(r'<span class="small">(.*?)</span><b>(.*?)</b>', page.source)
    seed, mask = found["label_maps"]["refined_seed"], found["label_maps"]["mask"]
    assert tiles == [
        ("Refined seed", f"{seed['coverage']:.0%}"), ("Mask", f"{mask['foreground']:.0%}"), ("Classifier", "90%"),
    ]  # fmt: skip
    assert "There are no scores: the data set has no ground truth" in page.text
    assert page.row("Stage") == ["Stage", "Coverage", "Foreground", "Time", "Peak memory"]
    assert page.row("make-mask Mask")[1:] == ["100.0%", f"{mask['foreground']:.1%}", "1 min 15 s", "2.0 GB"]
    assert page.row("cat") == ["cat", "30", f"{seed['share'][0]:.1%}", f"{mask['share'][0]:.1%}", "0"]
    assert page.row("cup") == ["cup", "0", "–", "–", "0"]
    assert page.titles() == [blind.ids[k * 30 // 12] for k in range(12)]
    assert Page(tmp_path / "gallery" / "001.html").titles() == blind.ids
    del found["training"]["cam"]["accuracy"]
    assert "0.250training loss, last epoch" in write_report(tmp_path, found, None, "").read_text().replace(
        '</b><span class="small muted">', ""
    )


def test_a_part_that_is_missing_has_no_section(metrics, squares, tmp_path):
    page = Page(write_report(tmp_path, {}, None, ""))
    assert page.headings() == ["Resolved configuration"]
    assert "There are no scores" in page.text
    assert not page.all("svg")
    names = {"cam": "CAM", "refined_seed": "Refined seed", "amn": "AMN", "mask": "Mask"}
    for missing in ("cam", "mask", "stages"):
        rest = {key: value for key, value in metrics.items() if key != missing}
        page = Page(write_report(tmp_path, rest, Squares(1), ""))
        tiles = re.findall(r'<span class="small">(.*?)</span>', page.source)
        assert tiles == [name for key, name in names.items() if key != missing]
        assert ("to CAM" in page.text) == (missing != "cam")


def test_an_earlier_record_is_readable(metrics, tmp_path):
    """Before there were "images" and "scored" the number of images was "pictures"."""
    old = {key: value for key, value in metrics.items() if key not in ("label_maps", "training")}
    old["dataset"] = {"name": "squares", "classes": ["cat", "cup"], "pictures": 20}
    old["mask"] = {**old["mask"], "per_picture": old["mask"].pop("per_image", {"p00": 0.25})}
    text = Page(write_report(tmp_path, old, None, "")).text
    assert "20 images · 2 classes" in text
    assert "cored on" not in text


def test_undefined_figures_are_dashes(tmp_path):
    nothing = Confusion(1).scores().to_json()
    curve, histogram = ThresholdCurve(1).to_json(), ActivationHistogram(1).to_json()
    empty = {
        "dataset": {"name": "void", "classes": ["cat"], "images": 0, "scored": 0, "images_per_class": [0]},
        "label_maps": {"mask": LabelStatistics(1).to_json()},
        "cam": {"scores": nothing, "curve": curve, "histogram": histogram, "miou": None},
        "mask": {"scores": nothing, "miou": None, "per_image": {"p00": None, "gone": 0.5}},
    }
    page = Page(write_report(tmp_path, empty, Squares(2), ""))
    assert page.row("make-mask Mask")[1:] == ["–"] * 6
    assert page.row("cat") == ["cat", "0", "–", "0"]
    assert page.titles() == ["p00", "p01"]
    assert "nan" not in page.text.lower()
    only_foreground = ActivationHistogram(1)
    only_foreground.add(np.full((1, 2, 2), 0.7), [1], np.ones((2, 2), int))
    page = Page(write_report(tmp_path, {"cam": {"histogram": only_foreground.to_json()}}, None, ""))
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


def test_the_users_texts_are_never_markup(tmp_path):
    class Strange(Squares):
        def __init__(self):
            super().__init__(1)
            self.ids = ["<i>&[/]\udce9"]

        def image(self, id):
            return np.zeros((*self.size, 3), np.uint8)

        def mask(self, id):
            return np.ones(self.size, np.uint8)

    classes = ("<script>", "cost $x$", "猫", "[red]cat", '<b>&"', '#010203 id="a_1"')
    metrics = measured(Squares(1), classes)
    metrics["mask"]["scores"]["iou"] = [0.5] * 7
    metrics["dataset"]["name"] = "<b>bold</b>"
    page = Page(write_report(tmp_path, metrics, Strange(), "a: <b> & </pre>"))
    gallery = Page(tmp_path / "gallery" / "001.html")
    assert "a: <b> & </pre>" in page.text
    for one in (page, gallery):
        assert not one.all("i")
        assert "<b>bold</b>" in one.text
        assert any(image["alt"] == "Mask of <i>&[/]\\udce9: <script> 100%" for image in one.all("img"))
        assert all(name in one.text for name in classes)
    for name in ("cost $x$", "猫", "&lt;script&gt;", "[red]cat", '&lt;b&gt;&amp;"', '#010203 id="a_1"'):
        assert page.source.count(f">{name}</text>") == 1


@pytest.mark.parametrize(
    ("layer", "values", "message"),
    [
        ("mask", np.zeros((40, 61), np.uint8), r"Mask of image p00 has shape \(40, 61\), .* \(40, 60\)"),
        ("amn", np.full((40, 60), np.nan, np.float32), "AMN of image p00 holds NaN"),
    ],
)
def test_a_layer_that_cannot_be_drawn_is_refused_by_name(tmp_path, layer, values, message):
    squares = Squares(1, missing=("cam", "amn", "seed"))
    setattr(squares, layer, lambda id: values)
    with pytest.raises(InputError, match=message):
        write_report(tmp_path, {}, squares, "")
    assert not (tmp_path / "report.html").exists()


def test_chosen_thresholds(metrics, squares, tmp_path):
    pairs = [(0.3, 0.05), (0.6, 0.05), (0.6, 0.4)]
    scores = [{"fg": fg, "bg": bg, "score": 0.1 * (k + 1)} for k, (fg, bg) in enumerate(pairs)]
    record = {"pair": [0.6, 0.4], "images": 5, "of": 20, "scores": scores}
    example = Segmented("p00", squares.image("p00"), {"looser: fg 0.3, bg 0.05": squares.seed("p00")}, None, None)
    found = metrics | {"thresholds": {"cam_seed": record}}
    page = Page(write_report(tmp_path, found, squares, "", examples={"cam_seed": [example]}))
    assert "Seeds of the CAM: fg 0.6, bg 0.4" in page.text
    assert "from 5 of 20 images" in page.text
    assert ["0.3", "0.100", ""] in page.rows
    assert ["0.6", "0.200", "0.300"] in page.rows
    assert (page.drawn("looser: fg 0.3, bg 0.05 of p00")[..., 3] > 0).all()
    assert "Chosen thresholds" not in Page(write_report(tmp_path, metrics, squares, "")).text


def test_the_segmentation_network_has_a_section(metrics, tmp_path):
    images, confusions = Squares(4), {key: Confusion(2) for key in ("without_crf", "with_crf")}
    shown = []
    for id in images.ids:
        masks = {"without_crf": np.zeros_like(images.mask(id)), "with_crf": images.mask(id)}
        for key, mask in masks.items():
            confusions[key].add(mask, images.ground_truth(id))
        shown.append(Segmented(id, images.image(id), masks, images.ground_truth(id), 0.25))
    record: dict = {
        "dataset": {"name": "squares-val", "classes": ["cat", "cup"], "pictures": 4},
        "scored_images": 3,
        "train_seg": {"backbone": "resnet101", "masks": None, "checkpoint_every": 50},
        "eval_seg": {"data": None, "options": {"ids": "val"}},
        "losses": [3.0, 1.5, 1.25],
        "stages": {"train-seg": {"seconds": 61.0, "peak_memory_mb": 100.0}},
    }
    bare = json.loads(json.dumps({name: value for name, value in record.items() if name != "losses"}))
    for key, confusion in confusions.items():
        scores = confusion.scores(absent="skip").to_json()
        record[key] = {"miou": scores["miou"], "scores": scores}
    page = Page(write_report(tmp_path, metrics | {"segmentation": record}, None, "", shown))
    for key, name in (("without_crf", "Network"), ("with_crf", "Network and CRF")):
        assert page.row(name)[1] == f"{record[key]['scores']['miou']:.3f}"
    assert page.row("train-seg")[-2:] == ["1 min 01 s", "100 MB"]
    plots = [plot["aria-label"] for plot in page.all("svg")]
    assert "Training loss, from 3.000 to 1.250." in plots
    assert any(label.startswith("IoU by class for Network, Network and CRF") for label in plots)
    drawn = [image["alt"] for image in page.all("img")]
    assert "Network of p00: background 100%" in drawn
    assert sum(alt.startswith("Network and CRF of") for alt in drawn) == 4
    assert "scored on 3 of 4 images of squares-val." in page.text
    assert "labels 0.250 mIoU" in page.text
    page = Page(write_report(tmp_path, {"dataset": record["dataset"], "segmentation": bare}, None, "", shown))
    assert "There are no scores: the images have no ground truth." in page.text
    assert sum(image["alt"].startswith("Network and CRF of") for image in page.all("img")) == 4
    assert "Segmentation network" not in Page(write_report(tmp_path, metrics, None, "")).text


def test_statistics_of_label_maps():
    statistics = LabelStatistics(2)
    statistics.add(np.array([[0, 1, 255, 255]], np.uint8), np.array([True, True]))
    statistics.add(np.array([[0, 0, 0, 2]], np.uint8), np.array([False, True]))
    assert statistics.to_json() == {
        "images": 2, "coverage": 0.75, "foreground": 0.333333, "share": [0.5, 0.166667], "empty": [0, 1],
    }  # fmt: skip


def test_classes_and_colours_beside_the_masks(tmp_path):
    write_legend(tmp_path, ["cat", '<b>&"', "猫"])
    assert read_classes(tmp_path / "classes.txt") == ("cat", '<b>&"', "猫")
    rows = [line.split("\t") for line in (tmp_path / "colours.txt").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        ["0", "#000000", "background"], ["1", "#800000", "cat"], ["2", "#008000", '<b>&"'], ["3", "#808000", "猫"],
        ["255", "#e0e0c0", "unknown"],
    ]  # fmt: skip
    assert not any(doctest.testmod(module).failed for module in (legend, statistics))
