"""The dense CRF on a GPU, as `amn_fast.ops` calls it: tensors in and out, batches that fit the memory."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

from amn_fast.errors import BackendError, InputError
from amn_fast.kernels.common import cuda
from amn_fast.kernels.dense_crf.cuda import lattice, mean_field
from amn_fast.kernels.dense_crf.cuda.batch import PADDING, SOURCE, Batch, Launcher

log = logging.getLogger("amn_fast")
Tensor = torch.Tensor
Array = np.ndarray[Any, np.dtype[Any]]

EXPLICIT = mean_field.FORBIDS | mean_field.LARGE  # flags of energies with which every label has a channel
SHARE = 0.9  # of the free memory that a batch may be estimated to need


class Handle(NamedTuple):
    """What an `ops.lattice.Lattice` holds: the lattices of a batch of one."""

    lattices: lattice.Lattices

    @property
    def vertices(self) -> int:
        return int(self.lattices.count)

    @property
    def nbytes(self) -> int:
        mesh = self.lattices
        tensors = (mesh.vertices, mesh.weights, mesh.neighbours, mesh.row_points, mesh.row_weights)
        return 2 * sum(one.numel() * one.element_size() for one in tensors)  # norms and levels, at most as much again

    def filter(self, values: Any, transpose: bool) -> Any:
        """K · values (channels, n), or Kᵀ · values, an answer of the same kind."""
        rows = on_device(values, self.lattices.weights.device)
        channels, n = rows.shape
        with _at(rows.device):
            padded = rows.new_zeros(self.lattices.batch.total, channels)
            padded[:n] = rows.T
            filtered = self.lattices.filter(padded.view(-1), channels, transpose).view(-1, channels)[:n]
            return like(values, filtered.T.contiguous())


def launcher_for(device: torch.device) -> Launcher:
    return cuda.launcher(device, SOURCE)


def device_of(*values: Any) -> torch.device:
    """The GPU that one of the values is on, or PyTorch's current one."""
    for value in values:
        if isinstance(value, Tensor) and value.device.type == "cuda":
            return value.device
    return torch.device("cuda", torch.cuda.current_device())


def place_of(device: torch.device) -> str:
    """The device and its current stream: tensors that are kept belong to the stream that fills them."""
    return f"{device} {torch.cuda.current_stream(device).cuda_stream if device.type == 'cuda' else 0}"


def free_bytes(device: torch.device) -> int:
    """What PyTorch can still allocate: the device's free memory, and its own reserve."""
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + reserve


def _at(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def on_device(value: Any, device: torch.device, dtype: torch.dtype | None = torch.float32) -> Tensor:
    """`value` on the device, contiguous; without a `dtype` its type stays."""
    tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(_writable(value))
    return tensor.to(device, dtype).contiguous()


def _writable(value: Any) -> Array:
    array = np.ascontiguousarray(value)
    return array if array.flags.writeable else array.copy()


def like(given: Any, result: Tensor) -> Any:
    """`result` as what was given: an array, or a tensor where that was."""
    return result.to(given.device) if isinstance(given, Tensor) else result.cpu().numpy()


def matrix_handle(features: Any) -> Handle:
    """The lattice of features (d, n)."""
    device = device_of(features)
    with _at(device):
        matrix = on_device(features, device)
        if len(matrix) > lattice.MAX_DIMENSION:
            raise InputError(
                f"features have {len(matrix)} dimensions, expected at most {lattice.MAX_DIMENSION} on a GPU"
            )
        if not bool(matrix.isfinite().all()):
            raise InputError("features hold NaN, infinity or values beyond single precision, expected finite numbers")
        batch = Batch(launcher_for(device), [matrix.shape[1]], [matrix.shape[1]])
        return Handle(lattice.build(batch, lattice.matrix_features(matrix)))


def grid_handle(height: int, width: int, sx: float, sy: float, device: torch.device) -> Handle:
    with _at(device):
        batch = Batch(launcher_for(device), [height * width], [width])
        return Handle(lattice.build(batch, lattice.grid_features([(height, width)], sx, sy)))


def image_handle(image: Any, sx: float, sy: float, colours: Sequence[float], device: torch.device) -> Handle:
    with _at(device):
        pixels = on_device(image, device, torch.uint8)
        batch = Batch(launcher_for(device), [pixels.shape[0] * pixels.shape[1]], [pixels.shape[1]])
        return Handle(lattice.build(batch, lattice.image_features([pixels], sx, sy, colours)))


def solve(
    unaries: Sequence[Any],
    terms: Sequence[tuple[Handle, Array, str]],
    iterations: int,
    start: Any = None,
    best: bool = False,
) -> list[Any]:
    """Marginals (L, n), or labels (n,), for unaries (L, n) over the same lattices: see `ops.mean_field.solve`."""
    device = terms[0][0].lattices.weights.device if terms else device_of(*unaries)
    with _at(device):
        planes = [on_device(one, device) for one in unaries]
        labels, n = planes[0].shape
        batch = terms[0][0].lattices.batch if terms else Batch(launcher_for(device), [n], [n])
        starts = None if start is None else [[on_device(start, device)] * len(planes)]
        forbids = bool(_flags(batch, [planes], labels)[0] & EXPLICIT)
        ready = [mean_field.Term(handle.lattices, compat, kind) for handle, compat, kind in terms]
        field = mean_field.MeanField(batch, ready, labels, len(planes), forbids)
        (answers,) = field.run([planes], iterations, starts, best)
        return [like(given, answer) for given, answer in zip(unaries, answers, strict=True)]


def _flags(batch: Batch, planes: Sequence[list[Tensor]], labels: int) -> list[int]:
    """Flags of each image's energies. Large ones are replaced by what they exceed the point's least one by."""
    flags: list[int] = mean_field.examine(batch, planes, labels)
    for flag, problems in zip(flags, planes, strict=True):
        if flag & mean_field.LARGE and not flag & mean_field.INVALID:
            for i, energies in enumerate(problems):
                least = energies.amin(0)
                more = (energies.double() - least).clamp(max=mean_field.MOST_ENERGY).float()
                problems[i] = torch.where(energies.isinf(), energies, more)
    if any(flag & mean_field.INVALID for flag in flags):
        raise InputError("unary holds NaN or -inf, or +inf for every label of a point, expected finite energies")
    return flags


def kept_labels(energies: Tensor, prune: float) -> Tensor:
    """Which labels (L,) of energies (L, n) are at some point at least `prune` times as probable as the best one."""
    lowest = energies.amin(0)
    kept = (energies - lowest <= -np.log(prune)).any(1)
    strange = (lowest.isnan() | lowest.isneginf()).any() | ~kept.any()
    return kept | strange  # the solver names what is wrong


def with_all_labels(answer: Tensor, kept: Tensor, best: bool) -> Tensor:
    """The answer for the `kept` labels as one for all labels."""
    if best:
        return kept.nonzero()[:, 0].int()[answer.long()]
    marginals = answer.new_zeros(len(kept), answer.shape[1])
    marginals[kept] = answer
    return marginals


class Problem(NamedTuple):
    """An image (H, W, 3) uint8 and its unaries (L, n) float32, all on the GPU."""

    image: Tensor
    unaries: list[Tensor]

    @property
    def labels(self) -> int:
        return len(self.unaries[0])

    @property
    def points(self) -> int:
        return self.image.shape[0] * self.image.shape[1]


def problem(image: Any, unaries: list[Tensor], device: torch.device) -> Problem:
    return Problem(on_device(image, device, torch.uint8), unaries)


class Call(NamedTuple):
    """What is asked of all images. `compat_of` checks a compatibility for a number of labels."""

    kernels: (
        Any  # `ops.dense_crf.Settings`: gaussian (sx, sy, compat), bilateral (sx, sy, colours, compat), normalization
    )
    compat_of: Callable[[float | Array, int], Array]
    iterations: int
    best: bool = False


def infer(problems: Sequence[Problem], call: Call) -> list[list[Tensor]]:
    """Marginals (L, n), or labels (n,), of each image's unaries; images of as many labels run together.

    A batch that is estimated not to fit the free memory is cut, and so is one that turns out not to; the log says so.
    What an image's answer is does not depend on the others.
    """
    if not problems:
        return []
    device = problems[0].image.device
    answers: list[list[Tensor]] = [[] for _ in problems]
    with _at(device):
        launcher = launcher_for(device)
        for group, forbids in _alike(problems, launcher):
            for part in _portions([problems[i] for i in group], call.kernels, device):
                chosen = [group[i] for i in part]
                solved = _attempt([problems[i] for i in chosen], forbids, call, launcher)
                for i, answer in zip(chosen, solved, strict=True):
                    answers[i] = answer
    return answers


def _alike(problems: Sequence[Problem], launcher: Launcher) -> Iterator[tuple[list[int], bool]]:
    """Places of the images that run together, of as many labels, and whether labels are forbidden in them."""
    for labels in sorted({one.labels for one in problems}):
        places = [i for i, one in enumerate(problems) if one.labels == labels]
        batch = _batch([problems[i] for i in places], launcher)
        flags = _flags(batch, [problems[i].unaries for i in places], labels)
        for forbids in (False, True):
            group = [i for i, flag in zip(places, flags, strict=True) if bool(flag & EXPLICIT) == forbids]
            if group:
                yield group, forbids


def _batch(problems: Sequence[Problem], launcher: Launcher) -> Batch:
    return Batch(launcher, [one.points for one in problems], [one.image.shape[1] for one in problems])


def _portions(problems: Sequence[Problem], kernels: Any, device: torch.device) -> list[list[int]]:
    """Places of the images that fit the memory together."""
    dimensions = [2] * (kernels.gaussian is not None) + [5] * (kernels.bilateral is not None)
    free = free_bytes(device)
    most_points = lattice.MAX_ENTRIES // (max(dimensions, default=0) + 1)
    portions: list[list[int]] = []
    needed = points = whole = 0
    for i, one in enumerate(problems):
        bytes_ = mean_field.estimated_bytes(one.points, dimensions, one.labels, len(one.unaries))
        whole += bytes_
        if not portions or needed + bytes_ > SHARE * free or points + one.points + PADDING > most_points:
            portions.append([])
            needed = points = 0
        portions[-1].append(i)
        needed += bytes_
        points += one.points + PADDING
    if len(portions) > 1:
        log.info(
            "dense_crf: %d images need about %.1f GiB, and %.1f GiB of the GPU's memory are free: %d batches",
            len(problems),
            whole / 2**30,
            free / 2**30,
            len(portions),
        )
    return portions


def _attempt(problems: Sequence[Problem], forbids: bool, call: Call, launcher: Launcher) -> list[list[Tensor]]:
    try:
        return _together(problems, forbids, call, launcher)
    except torch.cuda.OutOfMemoryError:
        pass  # the failed attempt's tensors are gone once this clause is left
    height, width = problems[0].image.shape[:2]
    if len(problems) == 1:
        raise BackendError(
            f"an image of {height} x {width} with {problems[0].labels} labels does not fit the GPU's free memory"
        )
    half = len(problems) // 2
    log.info("dense_crf: %d images did not fit the GPU's memory; they run in two batches", len(problems))
    return [
        *_attempt(problems[:half], forbids, call, launcher),
        *_attempt(problems[half:], forbids, call, launcher),
    ]


def _together(problems: Sequence[Problem], forbids: bool, call: Call, launcher: Launcher) -> list[list[Tensor]]:
    batch, labels, kernels = _batch(problems, launcher), problems[0].labels, call.kernels
    features = []
    if kernels.gaussian is not None:
        sx, sy, compat = kernels.gaussian
        sizes = [(one.image.shape[0], one.image.shape[1]) for one in problems]
        features.append((lattice.grid_features(sizes, sx, sy), compat))
    if kernels.bilateral is not None:
        sx, sy, colours, compat = kernels.bilateral
        features.append((lattice.image_features([one.image for one in problems], sx, sy, colours), compat))
    terms = [
        mean_field.Term(lattice.build(batch, one), call.compat_of(compat, labels), kernels.normalization)
        for one, compat in features
    ]
    field = mean_field.MeanField(batch, terms, labels, len(problems[0].unaries), forbids)
    answers: list[list[Tensor]] = field.run([one.unaries for one in problems], call.iterations, best=call.best)
    return answers


def label_unaries(scores: Tensor, thresholds: Sequence[float], gt_prob: float) -> list[Tensor]:
    """Energies (K + 1, n) of the label maps argmax([t, scores]) for each threshold t; scores (K, n)."""
    right, wrong = -np.log(gt_prob), -np.log((1.0 - gt_prob) / len(scores))
    highest, best = scores.max(0)
    unaries = []
    for threshold in thresholds:
        labels = torch.where(highest > threshold, best + 1, 0)
        energies = torch.full((len(scores) + 1, scores.shape[1]), float(wrong), device=scores.device)
        unaries.append(energies.scatter_(0, labels[None], float(right)))
    return unaries


def seeds(maps: Sequence[Tensor] | None, names: Array, size: tuple[int, int], device: torch.device) -> Tensor:
    """The seed (H, W) uint8 from the labels found with the foreground's and the background's threshold."""
    if maps is None:
        return torch.zeros(size, dtype=torch.uint8, device=device)
    sure, possible = maps
    named = torch.from_numpy(np.concatenate([[0], names]).astype(np.uint8)).to(device)
    unsure = torch.where(possible > 0, 255, 0).to(torch.uint8)
    return torch.where(sure > 0, named[sure.long()], unsure).view(size)
