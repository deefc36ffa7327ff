"""The command line: `amn-fast demo`, `amn-fast run CONFIG`, and a command for each stage."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from amn_fast import info as describe_installation
from amn_fast.config import Config, read_config
from amn_fast.data.base import list_ids
from amn_fast.errors import BackendError, InputError, MissingExtra

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Image-level labels to segmentation masks.",
)
console = Console()

ConfigArgument = Annotated[
    str, typer.Argument(help="A YAML file, or a shipped configuration: demo, msrc, voc6, voc12, coco14.")
]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads the annotation)
    typer.Option("--set", help="A setting that wins over the file, e.g. --set mask.background=0.3; repeatable."),
]
RunOption = Annotated[Optional[Path], typer.Option("--run", help="Run folder; wins over the file.")]  # noqa: UP045
RootOption = Annotated[Optional[Path], typer.Option("--root", help="Folder of the data set; wins over the file.")]  # noqa: UP045


def _config(config: str, settings: list[str] | None, run: Path | None, root: Path | None) -> Config:
    overrides = list(settings or [])
    if run is not None:
        overrides.append(f"run={json.dumps(str(run))}")  # quoted: a path is text, whatever YAML makes of it
    if root is not None:
        overrides.append(f"data.root={json.dumps(str(root))}")
    return read_config(config, overrides)


def _progress() -> Progress:
    """A bar on standard error, with how many are done of how many."""
    return Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True))


SWEEP_BETAS, SWEEP_STEPS, SWEEP_POWERS = [5.0, 10.0, 20.0], [4, 6, 8], [1.0, 1.3, 2.0]


@app.command()
def run(config: ConfigArgument, set: SetOption = None, run: RunOption = None, root: RootOption = None) -> None:
    """Run all stages: pictures and their labels in, masks and a report out. What is done already is skipped."""
    _run_all(_config(config, set, run, root))


@app.command()
def demo(
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path("runs/demo"), set: SetOption = None
) -> None:
    """Make the demo's pictures, run all stages on them, and say where the masks and the report are."""
    _run_all(_config("demo", set, run, run / "data"))


def _run_all(config: Config) -> None:
    from amn_fast import pipeline

    pipeline.run(config)
    _print_summary(config.run)
    console.print(f"masks:  {config.run / 'masks'}\nreport: {config.run / 'report.html'}")


def _print_summary(run: Path) -> None:
    """What the run reached, as the report's first table says at more length."""
    metrics = json.loads((run / "metrics.json").read_text())
    table = Table("", "mIoU", "at threshold", "coverage", title=f"{metrics['dataset']['name']}, on its own pictures")
    for key, name in (
        ("cam", "CAM, best threshold"),
        ("refined_seed", "refined seed"),
        ("amn", "AMN, best threshold"),
        ("amn_refined", "refined AMN seed"),
        ("mask", "mask"),
    ):
        if key in metrics:
            result = metrics[key]
            at = f"{result['curve']['best_threshold']:.2f}" if key in ("cam", "amn") else ""
            table.add_row(name, f"{result['miou']:.3f}", at, f"{result['scores']['coverage']:.2f}")
    console.print(table)
    if "segmentation" in metrics:
        _print_segmentation(metrics["segmentation"])


def _print_segmentation(found: dict[str, Any]) -> None:
    table = Table(
        "", "mIoU", title=f"{found['dataset']['name']}, {found['scored_pictures']} pictures with ground truth"
    )
    for key, name in (("without_crf", "network"), ("with_crf", "network and CRF")):
        if key in found:
            table.add_row(name, f"{found[key]['miou']:.3f}")
    console.print(table)


def _add_stage(name: str, module: str, text: str) -> None:
    def command(
        config: ConfigArgument,
        set: SetOption = None,
        run: RunOption = None,
        root: RootOption = None,
        from_published: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option(help="Folder of the published code (result/, sess/) to take earlier stages' outputs from."),
        ] = None,
    ) -> None:
        import importlib

        stage = importlib.import_module(f"amn_fast.stages.{module}").stage
        settings = _config(config, set, run, root)
        if from_published is not None:
            from amn_fast.stages.from_published import adopt

            adopt(settings, from_published, stage)
        stage.run(settings)

    app.command(name, help=text)(command)


for _name, _text in (
    ("train-cam", "Train the classifier whose activations start everything."),
    ("make-cam", "Class activations of every picture."),
    ("refine-seed", "Dense CRF on the CAM: the seeds that AMN learns from."),
    ("train-amn", "Train the activation manipulation network."),
    ("make-amn-cam", "AMN's activations of every picture."),
    ("refine-amn-seed", "Dense CRF on AMN's activations: the seeds that IRN learns from."),
    ("train-irn", "Train IRN's edges."),
    ("make-mask", "Random walk over the edges, threshold, pseudo-masks."),
    ("evaluate", "Scores against ground truth, threshold curves, report."),
):
    _add_stage(_name, _name.replace("-", "_"), _text)


@app.command()
def train_seg(config: ConfigArgument, set: SetOption = None, run: RunOption = None, root: RootOption = None) -> None:
    """Train the segmentation network on the masks."""
    from amn_fast.stages import train_seg as training

    training.run(_config(config, set, run, root))


@app.command()
def eval_seg(
    config: ConfigArgument,
    save_masks: Annotated[
        bool, typer.Option("--save-masks", help="Write masks as VOC's server takes them; COCO's by category id.")
    ] = False,
    from_published: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Published weights of DeepLabV2 (.pth) to take in place of train-seg's."),
    ] = None,
    set: SetOption = None,
    run: RunOption = None,
    root: RootOption = None,
) -> None:
    """Scores of the segmentation network with and without CRF, and perhaps masks for a server."""
    from amn_fast.stages import eval_seg as evaluating

    overrides = [*(set or []), *(["eval_seg.save_masks=true"] if save_masks else [])]
    settings = _config(config, overrides, run, root)
    if from_published is not None:
        from amn_fast.stages.from_published import adopt_segmentation

        adopt_segmentation(settings, from_published)
    evaluating.run(settings)
    _print_segmentation(json.loads((settings.run / evaluating.SEGMENTATION).read_text()))
    if settings.eval_seg.save_masks:
        console.print(f"masks:  {settings.run / evaluating.layout(settings)}")


@app.command()
def report(config: ConfigArgument, set: SetOption = None, run: RunOption = None, root: RootOption = None) -> None:
    """Write the report page of a finished run again."""
    from amn_fast.stages import evaluate

    console.print(evaluate.report(_config(config, set, run, root)))


@app.command()
def sweep(
    config: ConfigArgument,
    beta: Annotated[list[float], typer.Option(help="Exponents of the affinity; repeatable.")] = SWEEP_BETAS,
    exp_times: Annotated[list[int], typer.Option(help="log2 of the steps; repeatable.")] = SWEEP_STEPS,
    power: Annotated[list[float], typer.Option(help="Exponents of the activation; repeatable.")] = SWEEP_POWERS,
    set: SetOption = None,
    run: RunOption = None,
    root: RootOption = None,
) -> None:
    """mIoU of the masks over a grid of walk settings and all thresholds, from the edges of a finished run."""
    from amn_fast.stages import sweep as sweeping

    path, results = sweeping.run(_config(config, set, run, root), beta, exp_times, power)
    table = Table(
        "beta", "exp_times", "power", "best mIoU", "at threshold", "width", "mean", title="best settings first"
    )
    for setting, curve in sorted(results.items(), key=lambda item: -item[1].best_miou)[:10]:
        figures = (curve.best_miou, curve.best_threshold, curve.width, curve.mean)
        table.add_row(*(f"{value:g}" for value in setting), *(f"{value:.3f}" for value in figures))
    console.print(table)
    console.print(f"all thresholds: {path}")


@app.command()
def build_labels(
    source: Annotated[Path, typer.Argument(help="Folder of VOC XML files or of masks, or a COCO instances JSON.")],
    output: Annotated[Path, typer.Argument(help="Label file to write: .csv, .json or the published code's .npy.")],
    classes: Annotated[Optional[Path], typer.Option(help="Class names, one a line; needed for masks.")] = None,  # noqa: UP045
) -> None:
    """Write a file of image-level labels from annotations."""
    from amn_fast.data.labels import open_labels, read_classes, write_labels

    labels = open_labels(source, read_classes(classes) if classes else None)
    write_labels(output, labels, labels.classes, labels)
    console.print(f"{len(labels)} pictures, {len(labels.classes)} classes: {output}")


@app.command()
def check_masks(config: ConfigArgument, masks: Annotated[Path, typer.Argument(help="Folder of masks.")]) -> None:
    """Check a folder of masks against a data set: one for each picture, its size, known ids, not all 255."""
    from amn_fast.data import open_dataset
    from amn_fast.data.masks import check_masks as check

    data = read_config(config).data
    dataset = open_dataset(data.kind, data.root, **data.options)
    check(masks, dataset)
    console.print(f"{len(dataset.ids)} masks in {masks} fit")


@app.command()
def crf(
    images: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    probabilities: Annotated[
        Path, typer.Argument(help="Folder of probabilities (L, H, W) or label maps (H, W): STEM.npy, .npz or .png.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the masks, STEM.png.")],
    preset: Annotated[
        Literal["irn", "psa", "deeplab"], typer.Option(help="Whose gaussian and bilateral to take.")
    ] = "irn",
    gaussian: Annotated[
        Optional[tuple[float, float]],  # noqa: UP045
        typer.Option(help="Smoothness kernel: sxy compat.", show_default="preset's"),
    ] = None,
    bilateral: Annotated[
        Optional[tuple[float, float, float]],  # noqa: UP045
        typer.Option(help="Appearance kernel: sxy srgb compat.", show_default="preset's"),
    ] = None,
    iterations: Annotated[int, typer.Option(help="Mean-field steps.", min=0)] = 10,
    gt_prob: Annotated[float, typer.Option(help="How far label maps are trusted.")] = 0.7,
    labels: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Labels of the label maps, 0 included.", show_default="those that occur in each"),
    ] = None,
    unknown: Annotated[int, typer.Option(help='The label that stands for "unknown" in label maps.')] = 255,
    key: Annotated[Optional[str], typer.Option(help="Which array to take of NPZ files with several.")] = None,  # noqa: UP045
    threads: Annotated[Optional[int], typer.Option(help="Pictures at once.", show_default="all cores")] = None,  # noqa: UP045
) -> None:
    """Refine the probabilities or label maps of your own model with a dense CRF; what is done already is skipped."""
    from amn_fast import crf_folder

    default = crf_folder.PRESETS[preset]
    settings = crf_folder.Settings(
        gaussian or default[0], bilateral or default[1], iterations, gt_prob, labels, unknown, key
    )
    pairs, without = crf_folder.find_pairs(images, probabilities, out)
    if without:
        console.print(f"{list_ids(without)} without probabilities in {probabilities}, left out")
    with _progress() as progress:
        task = progress.add_task("dense CRF", total=len(pairs))
        computed = crf_folder.refine_folder(
            pairs, out, settings, threads=threads, advance=lambda: progress.advance(task)
        )
    console.print(f"{len(pairs)} masks in {out}: {computed} computed, {len(pairs) - computed} there already")


@app.command()
def check_data(
    config: ConfigArgument,
    set: SetOption = None,
    root: RootOption = None,
    masks: Annotated[bool, typer.Option("--masks", help="Read every ground-truth mask too.")] = False,
) -> None:
    """Count a data set's pictures and classes and list what is missing; exit code 1 if anything is."""
    from amn_fast.data import open_dataset
    from amn_fast.data.inventory import expected_pictures, take_inventory

    data = _config(config, set, None, root).data
    dataset = open_dataset(data.kind, data.root, **data.options)
    expected = expected_pictures(data.kind, data.options, dataset.classes)
    with _progress() as progress:
        task = progress.add_task("masks", total=len(dataset.ids), visible=masks)
        found = take_inventory(dataset, expected, masks=masks, advance=lambda: progress.advance(task))
    official = "" if expected is None else f", expected {expected}"
    console.print(f"{dataset.name}: {found.pictures} pictures{official}")
    table = Table("class", "pictures")
    for name, count in found.positives.items():
        table.add_row(name, str(count))
    console.print(table)
    for kind, ids in found.missing.items():
        console.print(f"without {kind}: {list_ids(ids) if ids else 'none'}", soft_wrap=True)
    if not found.complete:
        raise typer.Exit(1)


@app.command()
def convert_activations(
    source: Annotated[Path, typer.Argument(help="Folder of activations: the published ID.npy, or our ID.npz.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    to: Annotated[Literal["store", "published"], typer.Option(help="The form to write.")],
    full: Annotated[bool, typer.Option("--full", help="To our store: keep the maps at full size too.")] = False,
    background: Annotated[
        bool, typer.Option("--background", help="To the published form: AMN's, with a channel for the background.")
    ] = False,
    pictures: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="To our store: folder of the pictures, needed where one has no class."),
    ] = None,
) -> None:
    """Convert a folder of the published code's activation dictionaries to our store, or back. Nothing is executed."""
    from amn_fast.data import published

    with _progress() as progress:
        task = progress.add_task("activations", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        if to == "store":
            size_of = published.sizes_in(pictures) if pictures else None
            count = published.to_store(source, target, compact=not full, size_of=size_of, advance=advance)
        else:
            count = published.to_published(source, target, background=background, advance=advance)
    console.print(f"{count} pictures' activations in {target}")


@app.command()
def export_published(
    config: ConfigArgument,
    folder: Annotated[Path, typer.Argument(help="Folder to write result/, sess/ and cls_labels.npy into.")],
    set: SetOption = None,
    run: RunOption = None,
    root: RootOption = None,
) -> None:
    """Write a run's weights, activations, seeds and masks under the names and in the forms of the published code."""
    from amn_fast.stages.to_published import export

    for place, outcome in export(_config(config, set, run, root), folder).items():
        console.print(f"{folder / place}: {outcome}", soft_wrap=True)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def shim(
    script: Annotated[list[str], typer.Argument(help="A Python script, then its own arguments.", metavar="SCRIPT")],
) -> None:
    """Run an unchanged script whose `import pydensecrf` is answered by amn_fast."""
    from amn_fast.compat.run_script import run_script

    run_script(script)


@app.command()
def info() -> None:
    """Versions, devices and backends, and why one is missing."""
    print(describe_installation())


def main() -> None:
    """Run the command line; an expected error is one sentence on stderr and exit status 1."""
    try:
        app(standalone_mode=True)
    except (InputError, BackendError, MissingExtra, OSError) as error:
        print(f"amn-fast: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
