"""Run every operation's backends on this machine against the references, on small fixed problems.

`amn-fast selftest` prints the table; `amn_fast.ops._verdicts` runs it in a process of its own before `backend="auto"`
uses a GPU kernel for the first time on a GPU.
"""

import json
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from amn_fast import _native
from amn_fast.errors import BackendError, InputError, MissingExtra
from amn_fast.files import write_text
from amn_fast.kernels.common import cuda as _cuda
from amn_fast.ops._arrays import choice, triton_obstacle

DEVICES = ("auto", "cpu", "cuda")
INTERPRETED = "interpreted"
"""The device of Triton kernels that run on the CPU, under TRITON_INTERPRET=1."""
Outputs = list[Any]
"""Arrays or tensors, in a fixed order."""


@dataclass(frozen=True)
class Check:
    """One operation on one small problem.

    Attributes:
        operation: its public name.
        gpu: the backend that runs it on a GPU.
        tolerance: the largest difference from the reference that passes, relative to the reference's largest value.
        run: computes the outputs on a backend; `place` moves an array to the device that is tested, as a tensor.
        torch: whether it needs PyTorch also on the CPU.
    """

    operation: str
    gpu: str
    tolerance: float
    run: Callable[[str, Callable[[Any], Any]], Outputs]
    torch: bool = True


@dataclass
class Result:
    """What a check found for one backend.

    Attributes:
        status: "pass", "fail" or "missing".
        error: the largest difference relative to the reference's largest value; None where nothing was computed.
        seconds: of one call, after a first one that compiles and fills caches.
        reference_seconds: of the reference on the CPU.
        reason: why it failed or is missing.
    """

    operation: str
    backend: str
    device: str
    status: str
    error: float | None = None
    seconds: float | None = None
    reference_seconds: float | None = None
    reason: str = ""


@dataclass
class Report:
    """The results of a self-test, and the machine that gave them."""

    machine: dict[str, str]
    results: list[Result] = field(default_factory=list)

    @property
    def failed(self) -> list[Result]:
        """The results that are wrong; a backend that is missing is not."""
        return [result for result in self.results if result.status == "fail"]

    def to_json(self) -> str:
        """The report as JSON, to attach to a bug report."""
        content = {"machine": self.machine, "results": [asdict(result) for result in self.results]}
        return json.dumps(content, indent=1) + "\n"

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file, atomically."""
        write_text(Path(path), self.to_json())


def selftest(device: str = "auto") -> Report:
    """Compare every backend that can run here with the reference implementation, on small problems.

    Args:
        device: "cpu", "cuda", or "auto" for both where there is a GPU.

    Returns:
        a `Report`: one result for each operation and backend, with the largest error and the time; `report.failed`
        lists the wrong ones, `report.save(path)` writes JSON.

    Raises:
        InputError: `device` is another name, or "cuda" where PyTorch sees no GPU.

    Examples:
        >>> report = amn_fast.selftest("cpu")
        >>> report.failed
        []
    """
    choice("device", device, DEVICES)
    gpu = _gpu_name()
    if device == "cuda" and not gpu:
        raise InputError(f"device is 'cuda', but {_cuda.obstacle()}; expected 'cpu' or 'auto'")
    report = Report(_machine(gpu))
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for check in CHECKS:
        expected, seconds, obstacle = _expected(check)
        if obstacle:
            report.results.append(Result(check.operation, "reference", "cpu", "missing", reason=obstacle))
            continue
        if device != "cuda":
            obstacle = _native.missing
            report.results.append(_result(check, "cpu", "cpu", expected, seconds, obstacle))
            if check.gpu == "triton" and interpreted:
                report.results.append(_result(check, "triton", INTERPRETED, expected, seconds, triton_obstacle()))
        if gpu and device != "cpu":
            obstacle = triton_obstacle() if check.gpu == "triton" else _cuda.obstacle()
            report.results.append(_result(check, check.gpu, "cuda", expected, seconds, obstacle))
    return report


def _expected(check: Check) -> tuple[Outputs, float, str]:
    """The reference's outputs and time, or why there is none."""
    try:
        start = time.perf_counter()
        outputs = _on_host(check.run("reference", _placer("cpu", check.torch)))
        return outputs, time.perf_counter() - start, ""
    except (ImportError, MissingExtra) as error:
        return [], 0.0, f"PyTorch is not installed (extra 'pipeline'): {error}"


def _result(check: Check, backend: str, device: str, expected: Outputs, seconds: float, obstacle: str) -> Result:
    """Run one backend and compare. Whatever it raises is a failure of the backend, and the test goes on."""
    if obstacle:
        return Result(check.operation, backend, device, "missing", reason=obstacle)
    try:
        place = _placer("cuda" if device == "cuda" else "cpu", check.torch or device != "cpu")
        first = _on_host(check.run(backend, place))
        start = time.perf_counter()
        second = _on_host(check.run(backend, place))
        took = time.perf_counter() - start
    except BackendError as error:
        return Result(check.operation, backend, device, "missing", reason=str(error))
    except Exception as error:  # a compiler, a driver: anything can come out of a kernel that no GPU like this has run
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        return Result(check.operation, backend, device, "fail", reason=reason)
    largest = _difference(first, expected)
    problems = []
    if not largest <= check.tolerance:
        problems.append(f"error {largest:.1e}, expected {check.tolerance:.0e} or less")
    if not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)):
        problems.append("two calls gave different results, expected identical ones")
    status = "fail" if problems else "pass"
    return Result(check.operation, backend, device, status, largest, took, seconds, "; ".join(problems))


def _difference(found: Outputs, expected: Outputs) -> float:
    """The largest difference, relative to the largest value of each output; NaN where the result holds NaN."""
    differences = []
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return float("inf")
        scale = max(float(np.abs(other).max(initial=0)), 1e-30)
        differences.append(float(np.abs(one.astype(np.float64) - other).max(initial=0)) / scale)
    return float(np.max(differences))


def _placer(device: str, tensors: bool) -> Callable[[Any], Any]:
    if not tensors:
        return lambda array: array
    import torch

    return lambda array: torch.from_numpy(array).to(device)


def _on_host(outputs: Outputs) -> Outputs:
    return [one if isinstance(one, np.ndarray) else one.detach().cpu().numpy() for one in outputs]


# ------------------------------------------------------------------------------------------------------- the problems


def _image(height: int = 37, width: int = 45) -> np.ndarray:
    """A smooth image with an edge and some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    planes = [120 + 60 * np.sin(x / 7), np.where(x + y > 40, 190, 60), 90 + 2 * y]
    noisy = np.stack(planes, axis=2) + rng.normal(0, 6, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _run_dense_crf(backend: str, place: Callable[[Any], Any]) -> Outputs:
    from amn_fast.ops.dense_crf import dense_crf

    image = _image()
    probabilities = np.random.default_rng(1).dirichlet(np.ones(5), image.shape[:2]).transpose(2, 0, 1)
    unary = -np.log(probabilities + 1e-6).astype(np.float32)
    return [dense_crf(place(image), place(unary), backend=backend)]


def _run_refine_seed(backend: str, place: Callable[[Any], Any]) -> Outputs:
    from amn_fast.ops.dense_crf import refine_seed

    image = _image()
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    blobs = [np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 160) for cx, cy in ((12, 12), (33, 25))]
    activations = np.stack(blobs).astype(np.float32)
    return [refine_seed(place(image), place(activations), [3, 7], fg=0.6, bg=0.2, backend=backend)]


def _run_random_walk(backend: str, place: Callable[[Any], Any]) -> Outputs:
    from amn_fast.ops.random_walk import random_walk

    rng = np.random.default_rng(2)
    x, edge = rng.random((3, 23, 31), dtype=np.float32), rng.random((23, 31), dtype=np.float32)
    return [random_walk(place(x), place(edge), backend=backend)]


def _run_pixel_loss(backend: str, place: Callable[[Any], Any]) -> Outputs:
    from amn_fast.ops.pixel_loss import pixel_loss

    rng = np.random.default_rng(3)
    labels = rng.choice(np.array([0, 1, 5, 255], np.uint8), (2, 35, 29))
    logits = place(rng.normal(0, 2, (2, 6, 35, 29)).astype(np.float32)).requires_grad_()
    loss = pixel_loss(logits, place(labels), backend=backend)
    loss.backward()
    return [loss.reshape(1), logits.grad]


def _run_pair_loss(backend: str, place: Callable[[Any], Any]) -> Outputs:
    from amn_fast.ops.pair_loss import pair_loss

    rng = np.random.default_rng(4)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (2, 28, 30), p=[0.4, 0.3, 0.2, 0.1])
    edge = place(rng.normal(0, 1, (2, 1, 28, 30)).astype(np.float32)).requires_grad_()
    displacement = place(rng.normal(0, 3, (2, 2, 28, 30)).astype(np.float32)).requires_grad_()
    loss = pair_loss(edge, displacement, place(labels), radius=5, backend=backend).total
    loss.backward()
    return [loss.reshape(1), edge.grad, displacement.grad]


def _maps(channels: int) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.normal(0, 2, (channels, side, side + 2)).astype(np.float32) for side in (3, 5, 8)]


def _run_merge_cam(backend: str, place: Callable[[Any], Any]) -> Outputs:
    from amn_fast.ops.merge import merge_cam

    return list(merge_cam([place(np.abs(m)) for m in _maps(4)], (45, 61), [0, 2], backend=backend))


def _run_merge_amn(backend: str, place: Callable[[Any], Any]) -> Outputs:
    from amn_fast.ops.merge import merge_amn

    seed = np.random.default_rng(6).choice(np.array([0, 1, 255], np.uint8), (45, 61))
    return list(merge_amn([place(m) for m in _maps(5)], (45, 61), [0, 2], place(seed), backend=backend))


def _run_local_affinity(backend: str, place: Callable[[Any], Any]) -> Outputs:
    from amn_fast.ops.local_affinity import local_affinity

    image = place(np.random.default_rng(7).random((2, 3, 21, 30), dtype=np.float32))
    return [local_affinity(image, kind=kind, backend=backend) for kind in ("par", "pamr")]


def _run_propagate(backend: str, place: Callable[[Any], Any]) -> Outputs:
    from amn_fast.ops.local_affinity import propagate

    rng = np.random.default_rng(8)
    affinity = place(rng.random((2, 16, 21, 30), dtype=np.float32) / 16)
    mask = place(rng.random((2, 9, 21, 30), dtype=np.float32)).requires_grad_()
    out = propagate(mask, affinity, dilations=(1, 25), iterations=3, backend=backend)
    out.square().sum().backward()
    return [out.detach(), mask.grad]


def _run_pixel_adaptive_refinement(backend: str, place: Callable[[Any], Any]) -> Outputs:
    from amn_fast.ops.local_affinity import pixel_adaptive_refinement

    rng = np.random.default_rng(9)
    image, mask = (place(rng.random((2, channels, 21, 30), dtype=np.float32)) for channels in (3, 5))
    return [pixel_adaptive_refinement(image, mask, iterations=2, backend=backend)]


def _run_bilateral_filter(backend: str, place: Callable[[Any], Any]) -> Outputs:
    from amn_fast.ops.bilateral_filter import bilateral_filter

    rng = np.random.default_rng(10)
    image = place(_image().transpose(2, 0, 1)[None].astype(np.float32))
    values = place(rng.random((1, 5, *image.shape[2:]), dtype=np.float32)).requires_grad_()
    out = bilateral_filter(image, values, 15, 40, backend=backend)
    out.square().sum().backward()
    return [out.detach(), values.grad]


CHECKS: tuple[Check, ...] = (
    Check("dense_crf", "cuda", 1e-4, _run_dense_crf, torch=False),
    Check("refine_seed", "cuda", 0, _run_refine_seed, torch=False),
    Check("random_walk", "triton", 1e-5, _run_random_walk, torch=False),
    Check("pixel_loss", "triton", 1e-5, _run_pixel_loss),
    Check("pair_loss", "triton", 1e-5, _run_pair_loss),
    Check("merge_cam", "triton", 1e-5, _run_merge_cam),
    Check("merge_amn", "triton", 1e-5, _run_merge_amn),
    Check("bilateral_filter", "cuda", 1e-4, _run_bilateral_filter),
    Check("local_affinity", "triton", 1e-5, _run_local_affinity),
    Check("propagate", "triton", 1e-5, _run_propagate),
    Check("pixel_adaptive_refinement", "triton", 1e-5, _run_pixel_adaptive_refinement),
)
"""All operations. A new one is added here."""


# --------------------------------------------------------------------------------------------------------- the machine


def _gpu_name() -> str:
    """The name of PyTorch's current CUDA device; "" without one."""
    if _cuda.obstacle().startswith("PyTorch"):
        return ""
    import torch

    return torch.cuda.get_device_name()


def _machine(gpu: str) -> dict[str, str]:
    from amn_fast._info import info

    lines: Iterator[str] = iter(info().splitlines())
    return {"amn_fast": next(lines), "gpu": gpu, "details": "; ".join(lines)}
