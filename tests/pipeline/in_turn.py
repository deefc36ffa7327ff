"""Commands one after the other in each process that torchrun starts: one start for all of them.

Usage: in_turn.py FOLDER JOBS, a JSON list of [epoch, command]. All stop before that epoch of a training run, as if they
were killed; null for an uninterrupted one. In the first job the processes meet through torchrun's store, which would
hold their addresses in the next one: there they meet at a file in FOLDER, since a free port may be taken meanwhile.
"""

import contextlib
import functools
import json
import os
import sys

import torch.distributed as dist

from amn_fast import cli
from amn_fast.pipeline import training


class Stopped(Exception):
    pass


def main(folder: str, jobs: str) -> None:
    iterate, join = training.Shares.__iter__, dist.init_process_group
    numbers = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    for job, (stop, command) in enumerate(json.loads(jobs)):
        if job:
            meeting = f"file://{folder}/meeting{job}"
            dist.init_process_group = functools.partial(join, init_method=meeting, **numbers)
        sys.argv = ["amn-fast", *command]

        def batches(shares, stop=stop):
            if shares.batches.epoch == stop:
                raise Stopped
            return iterate(shares)

        training.Shares.__iter__ = batches
        try:
            with contextlib.suppress(Stopped):
                cli.main()
        except SystemExit as ended:
            if ended.code:
                raise


if __name__ == "__main__":
    main(*sys.argv[1:])
