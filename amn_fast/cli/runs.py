"""The commands that run the pipeline, and one for each stage, from the table of stages."""

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from amn_fast.cli._common import (
    ConfigArgument,
    OverwriteOption,
    RootOption,
    RunOption,
    SetOption,
    app,
    console,
    read_settings,
    resumable,
)
from amn_fast.cli.summary import print_segmentation, print_summary, print_sweep
from amn_fast.config import Config
from amn_fast.pipeline.table import REPORT, STAGES, Stage

SWEEP_BETAS, SWEEP_STEPS, SWEEP_POWERS = [5.0, 10.0, 20.0], [4, 6, 8], [1.0, 1.3, 2.0]


@app.command()
def run(
    config: ConfigArgument,
    set: SetOption = None,
    run: RunOption = None,
    root: RootOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Run all stages: from images and their labels to masks and a report. What is up to date is skipped."""
    _run_all(read_settings(config, set, run, root), overwrite)


@app.command()
def demo(
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path("runs/demo"),
    set: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Make the demo's images, and their masks in two modes: fast in the run folder, and full in its folder `full`.

    The fast mode trains no network and gives the better masks here; its report compares the two.
    """
    from amn_fast.pipeline.comparing import compare

    fast = read_settings("fast", ["name=demo", "data.kind=demo", *(set or [])], run, run / "data")
    full = read_settings("demo", set, run / "full", run / "data")
    for config in (fast, full):
        _run_all(config, overwrite)
    compare({"fast, no network trained": fast, "full, three networks trained": full})
    console.print(f"both modes compared: {run / 'report.html'}", soft_wrap=True)


def _run_all(config: Config, overwrite: bool) -> None:
    from amn_fast import pipeline

    with resumable():
        pipeline.run(config, overwrite=overwrite)
    print_summary(config.run)
    console.print(f"masks:  {config.run / 'masks'}\nreport: {config.run / 'report.html'}")


def _add_stage(stage: Stage) -> None:
    def command(
        config: ConfigArgument,
        set: SetOption = None,
        run: RunOption = None,
        root: RootOption = None,
        from_published: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option(help="Folder of IRN's or AMN's code (result/, sess/): import earlier stages' outputs."),
        ] = None,
        overwrite: OverwriteOption = False,
    ) -> None:
        from amn_fast import pipeline

        settings = read_settings(config, set, run, root)
        with resumable():
            if from_published is not None:
                from amn_fast.pipeline.importing import import_before

                import_before(settings, from_published, stage.name, overwrite=overwrite)
            pipeline.run_stage(settings, stage.name, overwrite=overwrite)

    app.command(stage.name, help=stage.help)(command)


def _add_segmentation(stage: Stage) -> None:
    def command(
        config: ConfigArgument,
        save_masks: Annotated[
            bool, typer.Option("--save-masks", help="Write masks in the layout of VOC's server; COCO's by category id.")
        ] = False,
        from_published: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option(help="Weights of DeepLabV2 (.pth) to import in place of trained ones."),
        ] = None,
        set: SetOption = None,
        run: RunOption = None,
        root: RootOption = None,
        overwrite: OverwriteOption = False,
    ) -> None:
        from amn_fast import pipeline

        overrides = [*(set or []), *(["eval_seg.save_masks=true"] if save_masks else [])]
        settings = read_settings(config, overrides, run, root)
        with resumable():
            if from_published is not None:
                from amn_fast.pipeline.importing import import_segmentation

                import_segmentation(settings, from_published, overwrite=overwrite)
            pipeline.run_stage(settings, stage.name, overwrite=overwrite)
        print_segmentation(json.loads((settings.run / stage.outputs[0]).read_text(encoding="utf-8")))
        if settings.eval_seg.save_masks:
            from amn_fast.pipeline.segmentation import layout

            console.print(f"masks:  {settings.run / layout(settings)}")

    app.command(stage.name, help=stage.help)(command)


for _stage in STAGES:
    (_add_segmentation if _stage.scores and _stage.segmentation else _add_stage)(_stage)


@app.command(REPORT.name, help=REPORT.help)
def report(config: ConfigArgument, set: SetOption = None, run: RunOption = None, root: RootOption = None) -> None:
    from amn_fast.pipeline.reporting import report as write

    console.print(str(write(read_settings(config, set, run, root))))


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
    from amn_fast.pipeline import sweep as sweeping

    path, results = sweeping.run(read_settings(config, set, run, root), beta, exp_times, power)
    print_sweep(path, results)
