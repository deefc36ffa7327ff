"""Trains networks one after the other in each process that torchrun starts: one start for all of them.

Usage: in_turn.py JOBS, a JSON list of [port, configuration file, settings, stage, epoch]: the processes meet at that
free port of this machine. All stop before that epoch, as if they were killed; null for an uninterrupted training run.
"""

import contextlib
import json
import os
import sys

from amn_fast.config import read_config
from amn_fast.pipeline import run_stage, training


class Stopped(Exception):
    pass


def main(jobs: str) -> None:
    iterate = training.Shares.__iter__
    for port, file, settings, stage, stop in json.loads(jobs):
        os.environ["MASTER_PORT"] = str(port)  # torchrun's own store still holds the addresses of the last job

        def batches(shares, stop=stop):
            if shares.batches.epoch == stop:
                raise Stopped
            return iterate(shares)

        training.Shares.__iter__ = batches
        with contextlib.suppress(Stopped):
            run_stage(read_config(file, settings), stage)


if __name__ == "__main__":
    main(*sys.argv[1:])
