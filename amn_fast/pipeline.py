"""All stages in order."""

from amn_fast.config import Config
from amn_fast.stages import (
    evaluate,
    make_amn_cam,
    make_cam,
    make_mask,
    refine_amn_seed,
    refine_seed,
    train_amn,
    train_cam,
    train_irn,
)
from amn_fast.stages._stage import Stage

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


def run(config: Config) -> None:
    """Run every stage; those whose outputs exist under this configuration are skipped.

    Raises:
        InputError: a picture, label or setting is wrong; the sentence names it.
    """
    for stage in STAGES:
        stage.run(config)
