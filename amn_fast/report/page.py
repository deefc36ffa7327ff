"""The report of a run: one self-contained HTML page, and a gallery of all images beside it.

Both are readable offline, in light and dark, on paper and on a phone.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amn_fast._console import printable
from amn_fast._extras import require
from amn_fast.files import write_text
from amn_fast.report import figures, gallery, tables
from amn_fast.report.names import CHOICES, COMPARED, RESULTS

require("jinja2", "pipeline")

import jinja2  # noqa: E402  (after the check, so that its sentence is what a user sees)
from markupsafe import Markup  # noqa: E402

Metrics = Mapping[str, Any]
HERE = Path(__file__).parent


def write_report(
    run_dir: Path | str,
    metrics: Metrics,
    images: gallery.RunImages | None,
    config_text: str,
    segmented: Sequence[gallery.Segmented] = (),
    *,
    examples: Mapping[str, Sequence[gallery.Segmented]] | None = None,
    threads: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> Path:
    """Write `run_dir`/report.html, which loads nothing from anywhere, and `run_dir`/gallery with all images.

    Args:
        run_dir: the run folder.
        metrics: what metrics.json holds. "dataset": name, classes, images, scored (images with ground truth),
            images_per_class; "environment": date, machine, versions; "stages": name -> seconds, peak_memory_mb;
            "label_maps": result -> `LabelStatistics.to_json`; "training": network -> loss and accuracy of each epoch;
            and for each result that was scored: "scores" (`Scores.to_json`), "miou", and where they apply "curve"
            (`ThresholdCurve.to_json`), "histogram" (`ActivationHistogram.to_json`) and, for the mask, "per_image"
            (id -> mIoU). "segmentation": eval-seg's record. "thresholds": section -> the thresholds that the run chose
            (pair, scores of all pairs, images, of; of masks their background).
            "health": findings of check-run; "doubt": of each mask, by id;
            "calibration": what `amn-fast calibrate` found. "comparison": rows of this run and of others over the same
            images. A part that is missing has no section on the page.
        images: what to draw; None draws no image and writes no gallery.
        config_text: the resolved configuration.
        segmented: what to draw of the segmentation network's labels.
        examples: seeds of some images at the chosen thresholds and at others, by section.
        threads: pages of the gallery that are written at the same time.
        advance: called after each image of the gallery.

    Returns:
        the path of the page. The same input gives the same bytes.

    Raises:
        InputError: a mask or an activation has another size than its image, or is not finite.
    """
    run_dir = Path(run_dir)
    dataset = metrics.get("dataset") or {}
    names = ["background", *(printable(str(name)) for name in dataset.get("classes") or [])]
    results = tables.results_of(metrics)
    segmentation = metrics.get("segmentation") or {}
    mask = results.get("mask") or {}
    per_image = mask.get("per_image", mask.get("per_picture")) or {}  # the second: in records of version 0.1
    doubt = metrics.get("doubt") or {}
    environment = _environment()
    common = {"dataset": dataset, "legend": gallery.legend(names)}
    shown = None
    if images is not None and len(images.ids):
        page_of = environment.get_template("gallery.html.jinja")

        def render(**values: Any) -> str:
            return page_of.render(**common, **values)

        shown = gallery.write_gallery(
            run_dir / gallery.FOLDER, images, per_image, names, render, threads=threads, advance=advance
        )
    scored, n_images = tables.image_counts(dataset)
    chosen = (metrics.get("thresholds") or {}).get("mask") or {}
    page = environment.get_template("report.html.jinja").render(
        **common,
        n_images=n_images,
        scored=tables.scored_of(scored, n_images) if results else "",
        unscored=None if scored is None or n_images is None else n_images - scored,
        environment=metrics.get("environment") or {},
        headline=tables.headline(results),
        facts=[] if results else tables.facts_without_scores(metrics),
        stages=tables.stage_rows(metrics, results),
        curves=_curves(results),
        histograms=_histograms(results),
        classes=_classes(results, names, "classes"),
        labels=tables.label_rows(metrics, names),
        training=_training(metrics),
        choices=_choices(metrics, examples or {}, names),
        background=chosen.get("background"),
        background_by=chosen.get("by"),
        groups=gallery.best_and_worst(images, per_image, names, doubt=doubt) if images is not None else [],
        health=metrics.get("health") or [],
        doubt=tables.doubt_rows(doubt, per_image, (metrics.get("calibration") or {}).get("by_doubt") or ()),
        comparison=(metrics.get("comparison") or {}).get("rows") or [],
        calibration=tables.calibration_rows(metrics.get("calibration") or {}),
        gallery=shown,
        rules=tables.scoring_rules(results),
        segmentation=_segmentation(segmentation, segmented),
        config=config_text,
    )
    path = run_dir / "report.html"
    write_text(path, page)
    return path


def _curves(results: Mapping[str, Metrics]) -> dict[str, Any] | None:
    curves = tables.with_figure(results, COMPARED, "curve", "best_miou")
    if not curves:
        return None
    rows = [{"key": key, "name": RESULTS[key], **curve} for key, curve in curves.items()]
    return {"rows": rows, "plot": figures.plot_curves(curves)}


def _histograms(results: Mapping[str, Metrics]) -> list[dict[str, Any]]:
    found = tables.with_figure(results, ("cam", "amn"), "histogram", "foreground_mean")
    top = figures.histogram_top(found) if found else 1.0
    return [
        {"key": key, "name": RESULTS[key], "plot": figures.plot_histogram(key, histogram, top), **histogram}
        for key, histogram in found.items()
    ]


def _classes(results: Mapping[str, Metrics], names: list[str], title: str) -> dict[str, Any] | None:
    """IoU by class with its charts; `title` makes their ids unique."""
    rows = tables.class_rows(results, names)
    if rows is None:
        return None
    charts = [figures.plot_classes(f"{title}-{k}", part, values) for k, (part, values) in enumerate(rows["charts"])]
    return {**rows, "charts": charts}


def _choices(
    metrics: Metrics, examples: Mapping[str, Sequence[gallery.Segmented]], names: list[str]
) -> list[dict[str, Any]]:
    """The thresholds that the run chose: scores of all pairs, and seeds of example images."""
    return [
        {
            "name": CHOICES[section],
            "pair": record["pair"],
            "images": tables.scored_of(record["images"], record["of"]),
            "table": tables.choice_table(record),
            "examples": [gallery.segmented_row(one, names) for one in examples.get(section, ())],
        }
        for section, record in (metrics.get("thresholds") or {}).items()
        if section in CHOICES
    ]


def _training(metrics: Metrics) -> list[dict[str, Any]]:
    return [{**row, "plot": figures.plot_loss(row["key"], row["losses"])} for row in tables.training_rows(metrics)]


def _segmentation(record: Metrics, segmented: Sequence[gallery.Segmented]) -> dict[str, Any] | None:
    """The segmentation network: its scores, its training, and some of its answers."""
    if not record:
        return None
    dataset, training, settings = (record.get(key) or {} for key in ("dataset", "train_seg", "eval_seg"))
    names = ["background", *(printable(str(name)) for name in dataset.get("classes") or [])]
    losses = record.get("losses") or []
    each = training.get("checkpoint_every") or 1
    n_images = dataset.get("images", dataset.get("pictures"))
    results = {key: record[key] for key in ("without_crf", "with_crf") if record.get(key)}
    return {
        "dataset": dataset,
        "scored": tables.scored_of(record.get("scored_images", record.get("scored_pictures")), n_images),
        "rows": tables.segmentation_rows(record),
        "training": training,
        "settings": settings,
        "loss": figures.plot_loss("seg", losses, each, "iteration") if losses else None,
        "classes": _classes(results, names, "segmentation-classes"),
        "images": [gallery.segmented_row(one, names) for one in segmented],
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,  # markup is a str of its own type
    )
    environment.filters.update(score=_score, percent=_percent, duration=_duration, memory=_memory, gain=_gain)
    environment.globals.update(generator=Markup(gallery.MADE_HERE), gallery_folder=gallery.FOLDER)
    return environment


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
