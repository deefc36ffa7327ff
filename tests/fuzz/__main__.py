"""Runs the fuzz modules beside this file in turn: `python tests/fuzz --seconds 60 --seed 0`.

Each `fuzz_*.py` has a function `one(rng: numpy.random.Generator, folder: pathlib.Path) -> None` that tries one random
case and raises on a fault; `folder` is empty and removed afterwards. Cases run in a worker process, so that a crash or
a hang is a failure with its seed and not the end of the run. `--case MODULE:SEED` repeats one case in this process.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
LIMIT = 180.0  # seconds for one case, also on a busy machine
START_LIMIT = 300.0  # seconds for the imports of a module
MOST_FAILURES = 10


def load(module: str) -> Callable[[np.random.Generator, Path], None]:
    """The function `one` of a fuzz module."""
    spec = importlib.util.spec_from_file_location(module, HERE / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    one: Callable[[np.random.Generator, Path], None] = loaded.one
    return one


def try_case(module: str, seed: int) -> None:
    """One case; raises what its module raises."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        load(module)(np.random.default_rng(seed), Path(folder))


def work(module: str) -> None:
    """A worker: for each seed, a line on standard input, a line with "" or a traceback in JSON on standard output.

    The first answer says that it has started.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a case prints goes to standard error
    one = load(module)
    print(json.dumps(""), file=answers, flush=True)
    for line in sys.stdin:
        problem = ""
        try:
            with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
                one(np.random.default_rng(int(line)), Path(folder))
        except Exception:
            problem = traceback.format_exc()
        print(json.dumps(problem), file=answers, flush=True)


class Worker:
    """A process that tries the cases of one module. It is started anew after a crash or a hang."""

    def __init__(self, module: str, limit: float) -> None:
        self.module, self.limit = module, limit
        self.process: subprocess.Popen[str] | None = None

    def run(self, seed: int) -> str:
        """Try one case: "" or what went wrong."""
        if self.process is None:
            command = [sys.executable, str(HERE), "--worker", self.module]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if problem := self._answer(START_LIMIT):
                return f"at the start: {problem}"
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(seed, file=self.process.stdin, flush=True)
        return self._answer(self.limit)

    def _answer(self, limit: float) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], limit)[0]:
            self.stop()
            return f"no answer within {limit:g} s"
        line = self.process.stdout.readline()
        if line:
            answer: str = json.loads(line)
            return answer
        code = self.process.wait()
        self.stop()
        return f"the process died with exit code {code}"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def main() -> int:
    """The exit code: 1 if a case failed."""
    parser = argparse.ArgumentParser(description="Tries random cases against the references.")
    parser.add_argument("--seconds", type=float, default=60, help="how long to run (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="of the run (default: a new one each time)")
    parser.add_argument("--only", default="", help="one module, e.g. fuzz_ops")
    parser.add_argument("--case", default="", help="repeat one case, MODULE:SEED")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one case (default: 60)")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return 0
    if options.case:
        module, seed = options.case.split(":")
        try_case(module, int(seed))
        print(f"{options.case}: passed")
        return 0
    modules = sorted(path.stem for path in HERE.glob("fuzz_*.py") if options.only in ("", path.stem))
    if not modules:
        sys.exit(f"no module {options.only or 'fuzz_*'} in {HERE}")
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "little")
    print(f"fuzz: {', '.join(modules)}; {options.seconds:g} s, seed {seed}", flush=True)
    return run(modules, options.seconds, seed, options.limit)


def run(modules: list[str], seconds: float, seed: int, limit: float) -> int:
    workers = {module: Worker(module, limit) for module in modules}
    seeds = np.random.default_rng(seed)
    tried, failures = Counter(dict.fromkeys(modules, 0)), 0
    end = time.monotonic() + seconds
    try:
        while failures < MOST_FAILURES:
            for module in modules:
                case = int(seeds.integers(2**62))
                problem = workers[module].run(case)
                tried[module] += 1
                if problem:
                    failures += 1
                    repeat = f"{sys.executable} {HERE} --case {module}:{case}"
                    print(f"FAILED {module} seed {case}\n{problem}\nrepeat: {repeat}\n", flush=True)
            if time.monotonic() >= end:
                break
    finally:
        for worker in workers.values():
            worker.stop()
    for module, count in tried.items():
        print(f"{module}: {count} cases")
    print(f"{failures} failures" if failures else "no failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
