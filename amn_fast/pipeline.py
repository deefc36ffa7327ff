"""All stages in order."""

from amn_fast.config import Config
from amn_fast.stages import (
    eval_seg,
    evaluate,
    make_amn_cam,
    make_cam,
    make_mask,
    refine_amn_seed,
    refine_seed,
    train_amn,
    train_cam,
    train_irn,
    train_seg,
)
from amn_fast.stages._stage import Stage, Workspace

STAGES: tuple[Stage, ...] = (
    train_cam.stage,
    make_cam.stage,
    refine_seed.stage,
    train_amn.stage,
    make_amn_cam.stage,
    refine_amn_seed.stage,
    train_irn.stage,
    make_mask.stage,
    evaluate.stage,
)
"""From pictures to masks and their report."""


def stages_of(config: Config) -> tuple[Stage, ...]:
    """The stages of a run: `STAGES` and, when `segmentation` is on, the segmentation network on the masks."""
    if not config.segmentation:
        return STAGES
    return (*STAGES, train_seg.stage_for(config), eval_seg.stage_for(config))


def run(config: Config) -> None:
    """Run every stage; those whose outputs exist under this configuration are skipped.

    Raises:
        InputError: a picture, label or setting is wrong; the sentence names it.
    """
    if config.segmentation:
        eval_seg.evaluated(Workspace(config))  # a missing list is an error now, not after hours of training
    for stage in stages_of(config):
        stage.run(config)
