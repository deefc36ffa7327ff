"""Commands one after the other in each process that torchrun starts: one start for all of them.

Usage: in_turn.py JOBS, a JSON list of [port, epoch, command]: the processes meet at that free port of this machine. All
stop before that epoch of a training run, as if they were killed; null for an uninterrupted one.
"""

import contextlib
import json
import os
import sys

from amn_fast import cli
from amn_fast.pipeline import training


class Stopped(Exception):
    pass


def main(jobs: str) -> None:
    iterate = training.Shares.__iter__
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # torchrun's store would hold the addresses of the last job
    for port, stop, command in json.loads(jobs):
        os.environ["MASTER_PORT"] = str(port)
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
