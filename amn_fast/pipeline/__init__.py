"""The pipeline: a table of stages, and what runs them in a folder.

`table` has one row per stage. `runner` decides what is up to date and runs the rest; `trainings`, `inference`,
`evaluation` and `segmentation` hold the functions of the rows; `folder`, `contents` and `record` know the run folder.
"""

from typing import TYPE_CHECKING

from amn_fast.pipeline.table import STAGES, Stage

if TYPE_CHECKING:
    from amn_fast.config import Config

__all__ = ["STAGES", "Stage", "run", "run_stage"]


def run(config: "Config", *, overwrite: bool = False) -> None:
    """Run every stage of a configuration; stages that are up to date are skipped, an interrupted one resumes.

    Args:
        config: the configuration; `config.run` is the run folder.
        overwrite: replace the results of a finished training, or of a run under other settings.

    Raises:
        InputError: an image, label or setting is wrong, or results would be replaced and `overwrite` is False; the
            sentence names it. Nothing has been touched then.
    """
    from amn_fast.pipeline.runner import run_all

    run_all(config, overwrite=overwrite)


def run_stage(config: "Config", name: str, *, overwrite: bool = False) -> bool:
    """Run one stage, whose upstream stages are up to date.

    Returns:
        whether it ran; False when it is up to date.

    Raises:
        InputError: as for `run`, or an upstream stage is not up to date.
    """
    from amn_fast.pipeline.runner import run_one

    return run_one(config, name, overwrite=overwrite)
