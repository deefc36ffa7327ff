"""Operations over random arguments, good and bad, on every backend that runs here.

Bad arguments give the same InputError everywhere; good ones give the answer of the reference.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import amn_fast
from amn_fast import _native
from amn_fast.errors import InputError
from amn_fast.ops.mask import mask_scores

BACKENDS = ("reference", "cpu") if _native.native is not None else ("reference",)
DTYPES = ("float32", "float64", "float16", "bfloat16")
WRONG = (None, "5", [1], (), {}, 1j, True, 2.5, -1, 0, 300, 2**70, math.nan, math.inf, -math.inf, np.float32(3), b"x")


def one(rng: np.random.Generator, folder: Path) -> None:
    torch.manual_seed(int(rng.integers(2**31)))
    case = CASES[int(rng.integers(len(CASES)))]
    function, arguments, tolerance = case(rng)
    if rng.random() < 0.5:
        spoil(rng, arguments)
    compare(function, arguments, tolerance)


def compare(function: Any, arguments: dict[str, Any], tolerance: float) -> None:
    answers = [answer(function, {**arguments, "backend": backend}) for backend in BACKENDS]
    for other in answers[1:]:
        if isinstance(answers[0], str) or isinstance(other, str):
            assert answers[0] == other, (shown(arguments), answers[0], other)
            continue
        for exact, found in zip(answers[0], other, strict=True):
            assert exact.shape == found.shape, shown(arguments)
            finite = np.isfinite(exact)  # infinite logits may give infinity or NaN
            assert np.array_equal(finite, np.isfinite(found)), (shown(arguments), exact, found)
            error = np.abs(np.subtract(found, exact, where=finite, out=np.zeros(exact.shape))).max(initial=0)
            scale = np.abs(exact, where=finite, out=np.zeros(exact.shape)).max(initial=1e-4)  # float16 is coarse below
            assert error <= tolerance * scale, (shown(arguments), error / scale)


def answer(function: Any, arguments: dict[str, Any]) -> Any:
    """The sentence of an InputError, or arrays: the results and the gradients of what asks for one."""
    try:
        results = function(**arguments)
    except InputError as error:
        return str(error)
    parts = list(results) if isinstance(results, list | tuple) else [results]
    arrays = [part.detach().double().numpy() if isinstance(part, torch.Tensor) else np.asarray(part) for part in parts]
    leaves = [value for value in arguments.values() if isinstance(value, torch.Tensor) and value.requires_grad]
    if leaves and function in (amn_fast.pixel_loss, pair_terms):
        total = sum(part.double().sum() for part in parts)
        arrays += [g.double().numpy() for g in torch.autograd.grad(total, leaves)]
    return [array.astype(np.float64) for array in arrays]


def spoil(rng: np.random.Generator, arguments: dict[str, Any]) -> None:
    """Makes one argument wrong, or at least odd."""
    name = list(arguments)[int(rng.integers(len(arguments)))]
    value = arguments[name]
    if isinstance(value, np.ndarray | torch.Tensor) and rng.random() < 0.8 and math.prod(value.shape):
        arguments[name] = spoiled_array(rng, value)
    elif isinstance(value, list) and value and rng.random() < 0.7:
        place = int(rng.integers(len(value)))
        part = value[place]
        odd = spoiled_array(rng, part) if hasattr(part, "dtype") else WRONG[int(rng.integers(len(WRONG)))]
        arguments[name] = [*value[:place], odd, *value[place + 1 :]]
    else:
        arguments[name] = WRONG[int(rng.integers(len(WRONG)))]


def spoiled_array(rng: np.random.Generator, value: Any) -> Any:
    tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    kind = int(rng.integers(8))
    if kind == 0 and tensor.is_floating_point():
        tensor.view(-1)[int(rng.integers(tensor.numel()))] = float(
            rng.choice([math.nan, math.inf, -math.inf, 1e38, -2])
        )
    elif kind == 1:
        tensor = tensor[..., :-1]
    elif kind == 2:
        tensor = tensor[None]
    elif kind == 3:
        tensor = tensor.to(torch.complex64)
    elif kind == 4:
        tensor = tensor.to(torch.int64) if tensor.is_floating_point() else tensor.float()
    elif kind == 5:
        tensor = tensor.bool()
    elif kind == 6:
        tensor = tensor[:0]
    else:
        tensor = tensor.movedim(0, -1)
    return tensor if isinstance(value, torch.Tensor) else tensor.numpy()


def shown(arguments: dict[str, Any]) -> str:
    parts = []
    for name, value in arguments.items():
        found = (
            f"{type(value).__name__} {tuple(value.shape)} {value.dtype}"
            if hasattr(value, "shape")
            else repr(value)[:200]
        )
        parts.append(f"{name}={found}")
    return ", ".join(parts)


def layout(rng: np.random.Generator, tensor: torch.Tensor) -> torch.Tensor:
    """The same values in another memory layout."""
    kind = int(rng.integers(4))
    if kind == 0 and tensor.ndim >= 2:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == 1 and tensor.numel():
        wide = tensor.new_zeros([2 * side for side in tensor.shape])
        view = wide[tuple(slice(None, None, 2) for _ in tensor.shape)]
        return view.copy_(tensor)
    if kind == 2 and tensor.ndim == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def floats(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    values = torch.from_numpy(rng.standard_normal(shape) * float(rng.choice([1, 1e-3, 30])))
    return layout(rng, values.to(getattr(torch, DTYPES[int(rng.integers(len(DTYPES)))])))


def label_maps(rng: np.random.Generator, highest: int, *shape: int) -> torch.Tensor:
    values = rng.integers(0, highest + 1, shape).astype(np.uint8)
    values[rng.random(shape) < rng.choice([0, 0.2, 1])] = 255
    if rng.random() < 0.2:
        values[...] = int(rng.integers(0, highest + 1))
    return layout(rng, torch.from_numpy(values))


def side(rng: np.random.Generator) -> int:
    return int(rng.choice([1, 2, 3, 7, 8, 13, 17, 32, 33]))


def as_kind(rng: np.random.Generator, tensor: torch.Tensor) -> Any:
    """A tensor, or an array where NumPy has the dtype."""
    return tensor if tensor.dtype == torch.bfloat16 or rng.random() < 0.5 else tensor.numpy()


def walk_options(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "radius": int(rng.integers(1, 8)),
        "beta": float(rng.choice([0.5, 1, 10, 30])),
        "exp_times": int(rng.integers(0, 6)),
        "method": str(rng.choice(["chebyshev", "steps"])),
        "threads": [None, 1, 3][int(rng.integers(3))],
    }


def edges(rng: np.random.Generator, h: int, w: int) -> torch.Tensor:
    """Single precision, as the kernels read them: a beta below 1 would show the rounding of an edge next to 1."""
    values = (rng.random((h, w)) ** float(rng.choice([0.3, 1, 6]))).astype(np.float32)
    values[rng.random((h, w)) < 0.1] = 1
    return layout(rng, torch.from_numpy(values).to(getattr(torch, DTYPES[int(rng.integers(len(DTYPES)))])))


def walk_case(rng: np.random.Generator) -> tuple[Any, dict[str, Any], float]:
    h, w = side(rng), side(rng)
    x, edge = floats(rng, int(rng.integers(0, 6)), h, w), edges(rng, h, w)
    tolerance = {torch.float64: 2e-5, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[x.dtype]
    edge = edge[None] if rng.random() < 0.3 else edge
    return amn_fast.random_walk, {"x": as_kind(rng, x), "edge": as_kind(rng, edge), **walk_options(rng)}, tolerance


def mask_case(rng: np.random.Generator) -> tuple[Any, dict[str, Any], float]:
    h, w, count = side(rng), side(rng), int(rng.integers(0, 4))
    size = (int(rng.integers(4 * h - 3, 4 * h + 1)), int(rng.integers(4 * w - 3, 4 * w + 1)))
    arguments = {
        "activations": as_kind(rng, floats(rng, count, h, w).abs()),
        "edge": as_kind(rng, edges(rng, h, w)),
        "size": size,
        "power": float(rng.choice([1, 1.3])),
        "per_class": bool(rng.integers(2)),
        **walk_options(rng),
    }
    if rng.random() < 0.5:
        return mask_scores, arguments, 2e-5
    keys = (rng.permutation(20)[:count] + 1).tolist()
    arguments["keys"] = [0, *keys] if rng.random() < 0.5 else keys
    return only_checked_mask, arguments, 0


def only_checked_mask(**arguments: Any) -> Any:
    """`make_mask` for its errors alone: between scores that are nearly equal, rounding decides."""
    return amn_fast.make_mask(**arguments)[:0]


def pixel_case(rng: np.random.Generator) -> tuple[Any, dict[str, Any], float]:
    batch, channels, h, w = int(rng.integers(0, 4)), int(rng.choice([2, 3, 21, 40])), side(rng), side(rng)
    logits = floats(rng, batch, channels, h, w)
    logits.requires_grad_()
    labels = label_maps(rng, channels - 1, batch, side(rng), side(rng))
    tolerance = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[logits.dtype]
    arguments = {"logits": logits, "labels": labels, "eps": float(rng.choice([0, 0.1, 0.4, 1])), "ignore_index": 255}
    return amn_fast.pixel_loss, arguments, tolerance


def pair_terms(**arguments: Any) -> Any:
    return amn_fast.pair_loss(**arguments)


def pair_case(rng: np.random.Generator) -> tuple[Any, dict[str, Any], float]:
    batch, radius = int(rng.integers(0, 3)), int(rng.integers(2, 6))
    h, w = radius + int(rng.integers(0, 12)), 2 * radius - 1 + int(rng.integers(0, 12))
    edge, displacement = floats(rng, batch, 1, h, w).requires_grad_(), floats(rng, batch, 2, h, w).requires_grad_()
    half = {torch.float16, torch.bfloat16} & {edge.dtype, displacement.dtype}
    tolerance = 2e-2 if half else 2e-3  # the reference loses digits in log(1 + 1e-5 - a)
    arguments = {"edge_logits": edge, "displacement": displacement, "labels": label_maps(rng, 4, batch, h, w)}
    return pair_terms, {**arguments, "radius": radius, "ignore_index": 255}, tolerance


def merge_case(rng: np.random.Generator) -> tuple[Any, dict[str, Any], float]:
    channels, size = int(rng.choice([2, 3, 21])), (side(rng) * 2, side(rng) * 3)
    dtype = getattr(torch, DTYPES[int(rng.integers(len(DTYPES)))])
    maps = [floats(rng, channels, side(rng), side(rng)).to(dtype) for _ in range(int(rng.integers(1, 5)))]
    seeded = rng.random() < 0.5
    valid = rng.permutation(channels - 1)[: int(rng.integers(0, channels))].tolist()
    arguments: dict[str, Any] = {"maps": maps, "size": size, "valid": valid}
    if not seeded:
        arguments["maps"] = [m.abs() for m in maps]
        return amn_fast.merge_cam, arguments, 2e-5
    arguments["seed"] = label_maps(rng, channels - 1, *size)
    # (p - min) / (max - min + 1e-5) multiplies the rounding of nearly equal probabilities by up to 1e5.
    return amn_fast.merge_amn, arguments, 1e-7 if dtype == torch.float64 else 5e-2


CASES = (walk_case, mask_case, pixel_case, pair_case, merge_case)
