"""Methods side by side in one run: they take turns, the tables give medians, and peak memory stands beside time."""

import argparse
import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

MIB = 1024 * 1024
# Seconds before each run: threads of PyTorch spin for milliseconds after their work, in the next method's time.
PAUSE = 0.02


def options(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="smallest case only, without torch.compile")
    parser.add_argument("--output", type=Path, help="a .json file for the rows")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def compare(case: str, methods: dict[str, Callable[[], object]], ours: str, rounds: int, device: str) -> list[dict]:
    """One row per method: median seconds, the median over rounds of its time relative to ours, peak MiB added."""
    memory, times = {}, {name: [] for name in methods}
    for name, run in methods.items():
        run()  # warms up and compiles
        memory[name] = _peak_growth(run, device)
    for _ in range(rounds):
        for name, run in methods.items():
            _wait(device)
            time.sleep(PAUSE)
            begin = time.perf_counter()
            run()
            _wait(device)
            times[name].append(time.perf_counter() - begin)
    rows = []
    for name in methods:
        ratios = [theirs / own for theirs, own in zip(times[name], times[ours], strict=True)]
        row = {"case": case, "method": name, "seconds": statistics.median(times[name])}
        rows.append(row | {"times_ours": statistics.median(ratios), "mib": memory[name]})
        print(_line(rows[-1]), flush=True)
    return rows


def _line(row: dict) -> str:
    seconds, ratio = f"{row['seconds'] * 1e3:.2f} ms", f"{row['times_ours']:.1f}"
    return f"| {row['case']} | {row['method']} | {seconds} | {ratio} | {row['mib']:.1f} MiB |"


def report(rows: list[dict], chosen: argparse.Namespace) -> None:
    header = f"{date.today()}, {_machine(chosen)}"
    print(header)
    if chosen.output:
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        chosen.output.write_text(json.dumps({"run": header, "rows": rows}, indent=1) + "\n")


HEAD = "| case | method | time | × ours | peak memory added |\n|---|---|---|---|---|"


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_growth(run: Callable[[], object], device: str) -> float:
    """MiB by which memory grows at most while `run` runs: of the process (Linux), or of the GPU's allocator."""
    if device == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def _machine(chosen: argparse.Namespace) -> str:
    if chosen.device == "cuda":
        return torch.cuda.get_device_name(0)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.machine()
    cores, load = f"{chosen.threads} of {os.cpu_count()} cores", f"load {os.getloadavg()[0]:.1f}"
    return f"{name}, {cores}, {load}, PyTorch {torch.__version__}"
