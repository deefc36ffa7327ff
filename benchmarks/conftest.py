"""`pytest benchmarks`: profiles, the fixture `race`, the final table, and the JSON of a session.

pytest benchmarks                     the default profile, under 6 minutes on 2 cores
pytest benchmarks --quick             tiny sizes: parity, and that every benchmark still runs
pytest benchmarks --full              all sizes
pytest benchmarks --results FILE      where the JSON goes (default: benchmarks/results/PROFILE.json)
"""

import json
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from racing import Race, Results, Row, devices

HERE = Path(__file__).parent
ROUNDS = {"quick": 2, "default": 7, "full": 7}
PACKAGES = ("amn-fast", "numpy", "scipy", "opencv-python-headless", "torch", "triton", "cuda-core", "pydensecrf2")
results_key = pytest.StashKey[Results]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("amn_fast benchmarks")
    group.addoption("--quick", action="store_true", help="tiny sizes, two rounds: for parity and rot")
    group.addoption("--full", action="store_true", help="all sizes")
    group.addoption("--results", type=Path, help="the JSON file to write")


def profile_of(config: pytest.Config) -> str:
    if config.getoption("--quick") and config.getoption("--full"):
        raise pytest.UsageError("--quick and --full exclude each other")
    return "quick" if config.getoption("--quick") else "full" if config.getoption("--full") else "default"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[results_key] = Results()
    config.addinivalue_line("markers", "full: only with --full")
    config.option.benchmark_quiet = True  # the table of races says more than pytest-benchmark's own


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = profile_of(config)
    dropped = [item for item in items if chosen != "full" and item.get_closest_marker("full")]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


@pytest.fixture
def profile(request: pytest.FixtureRequest) -> str:
    """ "quick", "default" or "full"."""
    return profile_of(request.config)


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> str:
    """The devices of this machine, one after the other, for operations that run on either."""
    return request.param


@pytest.fixture
def race(benchmark: Any, profile: str, request: pytest.FixtureRequest) -> Any:
    """A `Race`. A benchmark that does not race, or asserts no parity, fails."""
    device = request.getfixturevalue("device") if "device" in request.fixturenames else "cpu"
    running = Race(benchmark, request.config.stash[results_key], ROUNDS[profile], device)
    yield running
    failed = getattr(request.node, "report_of_call", None)
    if not running.finished and failed is not None and failed.passed:
        pytest.fail("the benchmark ended without a race")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    outcome = yield
    if call.when == "call":
        item.report_of_call = outcome.get_result()  # type: ignore[attr-defined]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not session.config.getoption("--collect-only"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED  # a benchmark command that measures nothing is broken
    rows = session.config.stash[results_key].to_json()
    chosen = profile_of(session.config)
    path = session.config.getoption("--results")
    if path is None and chosen != "quick":  # its figures say nothing
        path = HERE / "results" / f"{chosen}.json"
    if rows and path is not None and exitstatus == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"profile": chosen, "machine": machine(), "rows": rows}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[results_key].rows
    if rows:
        terminalreporter.section("ours and the others")
        for line in table(rows):
            terminalreporter.write_line(line)
        found = machine()
        terminalreporter.write_line(f"{found['cpu']}, {found['cpus']} CPUs, load {found['load']}, {found['date']}")


HEAD = ("operation", "case", "other", "other ms (threads)", "ours ms (threads)", "ratio", "other / ours MiB", "error")


def table(rows: list[Row]) -> list[str]:
    """The rows as aligned text."""
    lines = [HEAD] + [
        (
            row.operation + (" [GPU]" if row.device == "cuda" else ""),
            row.case,
            row.method,
            f"{row.ms:.2f} ({row.threads})",
            f"{row.ours_ms:.2f} ({row.ours_threads})",
            f"{row.ratio:.2f} [{row.interval[0]:.2f}, {row.interval[1]:.2f}]",
            f"{_mib(row.mib)} / {_mib(row.ours_mib)}",
            f"{row.error:.1e}" + ("" if row.bandwidth is None else f", {row.bandwidth:.0%} of a copy"),
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _mib(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}"


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    cpu = Path("/proc/cpuinfo")
    facts = dict(
        (part.strip() for part in line.split(":", 1)) for line in (cpu.read_text() if cpu.exists() else "").splitlines()
        if ":" in line
    )  # fmt: skip
    flags = set(facts.get("flags", "").split())
    found: dict[str, Any] = {
        "cpu": facts.get("model name", platform.machine()),
        "flags": sorted(flags & {"sse4_2", "avx2", "fma", "avx512f", "avx512bw", "avx512_bf16"}),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "gpu": "",
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    if "cuda" in devices():
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def _commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or "unknown"
