"""The commands that run the pipeline, and one for each stage."""

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from amn_fast.cli._common import ConfigArgument, RootOption, RunOption, SetOption, app, console, read_settings
from amn_fast.cli.summary import print_segmentation, print_summary, print_sweep
from amn_fast.config import Config

SWEEP_BETAS, SWEEP_STEPS, SWEEP_POWERS = [5.0, 10.0, 20.0], [4, 6, 8], [1.0, 1.3, 2.0]


@app.command()
def run(config: ConfigArgument, set: SetOption = None, run: RunOption = None, root: RootOption = None) -> None:
    """Run all stages: pictures and their labels in, masks and a report out. What is done already is skipped."""
    _run_all(read_settings(config, set, run, root))


@app.command()
def demo(
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path("runs/demo"), set: SetOption = None
) -> None:
    """Make the demo's pictures, run all stages on them, and say where the masks and the report are."""
    _run_all(read_settings("demo", set, run, run / "data"))


def _run_all(config: Config) -> None:
    from amn_fast import pipeline

    pipeline.run(config)
    print_summary(config.run)
    console.print(f"masks:  {config.run / 'masks'}\nreport: {config.run / 'report.html'}")


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
        settings = read_settings(config, set, run, root)
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

    training.run(read_settings(config, set, run, root))


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
    settings = read_settings(config, overrides, run, root)
    if from_published is not None:
        from amn_fast.stages.from_published import adopt_segmentation

        adopt_segmentation(settings, from_published)
    evaluating.run(settings)
    print_segmentation(json.loads((settings.run / evaluating.SEGMENTATION).read_text()))
    if settings.eval_seg.save_masks:
        console.print(f"masks:  {settings.run / evaluating.layout(settings)}")


@app.command()
def report(config: ConfigArgument, set: SetOption = None, run: RunOption = None, root: RootOption = None) -> None:
    """Write the report page of a finished run again."""
    from amn_fast.stages import evaluate

    console.print(evaluate.report(read_settings(config, set, run, root)))


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

    path, results = sweeping.run(read_settings(config, set, run, root), beta, exp_times, power)
    print_sweep(path, results)
