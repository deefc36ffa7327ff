"""Whether a GPU kernel has passed its check on the GPU at hand: `backend="auto"` uses no other.

The check is `amn-fast selftest --device cuda`. It runs once for each GPU model, driver and version of the packages
involved, in a process of its own: a kernel that reads out of bounds spoils the CUDA context of its process for good.
The verdict is kept in the user's cache folder.

`AMN_FAST_SELFTEST=0` trusts the kernels unchecked; `AMN_FAST_SELFTEST=1` checks again in every process.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import amn_fast.kernels
from amn_fast import __version__
from amn_fast.errors import InputError

log = logging.getLogger("amn_fast")
SWITCH = "AMN_FAST_SELFTEST"
TIME_LIMIT_S = 300
_inside = "AMN_FAST_INSIDE_SELFTEST"
_warned: set[str] = set()


def obstacle(operation: str, backend: str, device_index: int | None = None) -> str:
    """Why `backend="auto"` must not run `operation` on this GPU, or "" if its check has passed.

    A failing check is logged once as a warning, with what is used instead left to the caller.
    """
    switch = os.environ.get(SWITCH, "").strip()
    if switch not in ("", "0", "1"):
        raise InputError(f"environment variable {SWITCH} is {switch!r}, expected 0 or 1")
    if switch == "0" or os.environ.get(_inside):
        return ""
    verdicts = _verdicts(_identity(device_index), switch == "1")
    reason = verdicts.get(f"{operation}/{backend}", verdicts.get("", "the self-test does not know it"))
    message = f"{operation}: backend '{backend}' is not used on this GPU: {reason}"
    if reason and message not in _warned:
        _warned.add(message)
        log.warning("%s. See `amn-fast selftest`; %s=0 uses it all the same", message, SWITCH)
    return reason


@cache
def _verdicts(identity: str, anew: bool) -> dict[str, str]:
    """Operation/backend -> why it failed ("": passed); under the key "" why the self-test itself could not run."""
    path = _folder() / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"
    if not anew:
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["identity"] == identity:
                return dict(kept["verdicts"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not checked yet, or a file that is not ours: check
    log.info("checking the GPU kernels on this GPU, once")
    verdicts = _check()
    if "" not in verdicts:
        _keep(path, {"identity": identity, "verdicts": verdicts})
    return verdicts


def _check() -> dict[str, str]:
    """Run the self-test in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "amn_fast", "selftest", "--device", "cuda", "--json", str(report)]
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, timeout=TIME_LIMIT_S, env=os.environ | {_inside: "1"}
            )
            results = json.loads(report.read_text(encoding="utf-8"))["results"]
        except subprocess.TimeoutExpired:
            return {"": f"its self-test did not end within {TIME_LIMIT_S} s"}
        except (OSError, ValueError):
            last = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
            return {"": f"its self-test could not run: {last}"}
    return {
        f"{result['operation']}/{result['backend']}": "" if result["status"] == "pass" else result["reason"]
        for result in results
    }


def _keep(path: Path, content: dict[str, Any]) -> None:
    from amn_fast.files import write_json

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        log.warning("the verdict of the GPU self-test cannot be kept (%s); it runs again in each process", error)


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "amn_fast" / "selftest"


def _identity(device_index: int | None) -> str:
    """GPU model, driver, versions and the kernels' own sources: what a verdict holds for."""
    import torch

    major, minor = torch.cuda.get_device_capability(device_index)
    parts = [torch.cuda.get_device_name(device_index), f"sm_{major}{minor}", str(torch.version.cuda)]
    parts += [f"driver {_driver()}", f"amn_fast {__version__} {_sources()}"]
    for package in ("torch", "triton", "cuda-core"):
        try:
            parts.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"no {package}")
    return ", ".join(parts)


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


@cache
def _sources() -> str:
    digest = hashlib.sha256()
    folder = Path(amn_fast.kernels.__file__).parent
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.cu"), *folder.rglob("*.hpp")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
