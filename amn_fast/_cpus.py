"""How many CPUs this process may use."""

import math
import os
from functools import cache
from pathlib import Path, PurePosixPath


def available_cpus() -> int:
    """The CPUs of the affinity mask, limited by the CPU quota of the cgroup, rounded up."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(available, cpu_quota())))


@cache
def cpu_quota(root: Path = Path("/")) -> float:
    """The CPUs that the cgroups (v2 and v1) of this process grant it; infinity without a limit or without cgroups."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    granted = [math.inf]
    mounts = root / "sys/fs/cgroup"
    for line in memberships:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            granted += [_quota_v2(mounts / part) for part in _with_parents(group)]
        elif "cpu" in controllers.split(","):
            granted += [
                _quota_v1(mounts / name / part) for name in {controllers, "cpu"} for part in _with_parents(group)
            ]
    return min(granted)


def _with_parents(group: str) -> list[str]:
    """A cgroup and all groups above it, relative to the mount point. In a container the upper ones may be hidden."""
    path = PurePosixPath(group.lstrip("/"))
    return [str(path), *map(str, path.parents)]


def _quota_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _quota_v1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return math.inf if quota <= 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return math.inf
