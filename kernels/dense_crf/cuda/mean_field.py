"""Mean field on a GPU: what `mean_field.cu` is launched with, for batches of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from amn_fast.errors import InputError
from amn_fast.kernels.dense_crf.cuda.batch import THREADS, Batch, over
from amn_fast.kernels.dense_crf.cuda.lattice import Lattices, Workspace, lanes_of, terms_table

Tensor = torch.Tensor

SHARED_BYTES = 48 * 1024
FORBIDS, INVALID, LARGE = 1, 2, 4  # flags of examine_energies
MOST_ENERGY = 1e29  # far above the logit of a channel that stands for no label (device.hpp: far_below)


class Term(NamedTuple):
    """A pairwise term: `compat` is a number (Potts), or energies (L,) or (L, L), the last symmetric."""

    lattices: Lattices
    compat: np.ndarray[Any, np.dtype[Any]]
    normalization: str


def addresses(batch: Batch, planes: Sequence[Sequence[Tensor]]) -> Tensor:
    """Pointers to each image's problems' planes."""
    rows = [one.data_ptr() for problems in planes for one in problems]
    return torch.tensor(rows, dtype=torch.int64, device=batch.launcher.device)


def examine(batch: Batch, planes: Sequence[Sequence[Tensor]], labels: int) -> list[int]:
    """FORBIDS and INVALID for each image's unaries (labels, points)."""
    flags = torch.zeros(len(batch.points), dtype=torch.int32, device=batch.launcher.device)
    place = (batch.tiles, batch.plain, len(planes[0]), labels)
    batch.launcher.launch("examine_energies", batch.tile_count, *place, addresses(batch, planes), flags)
    found: list[int] = flags.tolist()
    return found


@dataclass
class Channels:
    """How the labels of an image's problems become channels.

    Attributes:
        implicit: the last label has no channel. The softmax does not change when one number is taken from all logits,
            so with Potts terms alone the filters run on Q less the last label's Q.
        stride: channels of one problem in a row, padding included.
    """

    labels: int
    problems: int
    implicit: bool

    @property
    def own(self) -> int:
        return self.labels - self.implicit

    @property
    def stride(self) -> int:
        return channel_stride(self.own)

    @property
    def width(self) -> int:
        return self.problems * self.stride


def channel_stride(channels: int) -> int:
    return channels if channels <= 2 else -(-channels // 4) * 4


class MeanField:
    """Mean field over a batch: every unary has the same number of labels, every image as many unaries."""

    def __init__(self, batch: Batch, terms: Sequence[Term], labels: int, problems: int, forbids: bool) -> None:
        potts = all(term.compat.ndim == 0 for term in terms)
        self.batch = batch
        self.launch = batch.launcher.launch
        self.device = batch.launcher.device
        self.channels = Channels(labels, problems, potts and not forbids and labels > 1)
        stride = self.channels.stride
        self.team = min(stride // 4, THREADS)  # threads for one point of many labels
        self.teams = THREADS // max(1, self.team)
        self.shared = 4 * self.teams * (stride + 2 * self.team)
        if stride > 4 and self.shared > SHARED_BYTES:
            raise InputError(f"there are {labels} labels, expected at most {SHARED_BYTES // 4 - 2 * THREADS} on a GPU")
        terms = [term for term in terms if term.compat.ndim or term.compat != 0]
        self.terms = [(term, Workspace(term.lattices, self.channels.width)) for term in terms]
        self.splats = [term.lattices.norm(term.normalization)[0] for term in terms]
        self.kept: list[Tensor] = []  # behind the pointers of the tables
        self.mixed: list[tuple[Tensor, Tensor]] = []  # matrices and their terms' tables
        fused = []
        for term, work in self.terms:
            after = term.lattices.norm(term.normalization)[1]
            if term.compat.ndim == 2:
                matrix = torch.from_numpy(np.ascontiguousarray(term.compat, np.float32)).to(self.device)
                self.mixed.append((matrix, terms_table([(term.lattices, after, work.result, after)])))
            else:
                factors = torch.zeros(stride, dtype=torch.float32)
                sign = 1.0 if term.compat.ndim == 0 else -1.0
                factors[: self.channels.own] = sign * torch.from_numpy(np.asarray(term.compat))
                self.kept.append(factors.to(self.device))
                fused.append((term.lattices, after, work.result, self.kept[-1]))
        self.fused = len(fused)
        self.table = terms_table(fused) if fused else None

    def run(
        self,
        planes: Sequence[Sequence[Tensor]],
        iterations: int,
        starts: Sequence[Sequence[Tensor]] | None = None,
        best: bool = False,
    ) -> list[list[Tensor]]:
        """Marginals (labels, points) float32, or with `best` labels (points,) int32, of each image's unaries."""
        if starts is not None and iterations == 0:
            return [[one.argmax(0).int() if best else one.clone() for one in problems] for problems in starts]
        base = self.loaded(planes, False)
        last = torch.empty(self.batch.total * self.channels.problems, dtype=torch.float32, device=self.device)
        if starts is None:
            q = torch.empty_like(base)
            self.update(False, base, q, None if iterations else last)
        else:
            q = self.loaded(starts, True)
        self.iterate(base, q, last, iterations)
        return self.answers(q, last, best)

    def iterate(self, base: Tensor, q: Tensor, last: Tensor, iterations: int) -> None:
        """The updates, in `q` and at last `last`. Nothing here waits for the device."""
        logits = torch.empty_like(base) if self.mixed else base
        filtered = torch.empty_like(base) if self.mixed else None
        for step in range(1, iterations + 1):
            for (_, work), splat in zip(self.terms, self.splats, strict=True):
                work.filtered(q, splat)
            self.mix(base, filtered, logits)
            self.update(True, logits, q, last if step == iterations else None)

    def update(self, sliced: bool, base: Tensor, q: Tensor, last: Tensor | None) -> None:
        channels, total = self.channels, self.batch.total
        items, stride = total * channels.problems, channels.stride
        terms = (self.table, self.fused if sliced else 0, total, channels.problems)
        values = (int(channels.implicit), base, q, last)
        if stride <= 4:
            self.launch(f"update_{stride}", over(items), *terms, *values)
        else:
            blocks = -(-items // self.teams)
            self.launch("update_many", blocks, *terms, stride // 4, self.team, *values, shared=self.shared)

    def mix(self, base: Tensor, filtered: Tensor | None, logits: Tensor) -> None:
        """What the matrices of compatibilities add to the base."""
        channels, total = self.channels, self.batch.total
        lanes, groups = lanes_of(channels.width)
        items = total * channels.problems
        for number, (matrix, table) in enumerate(self.mixed):
            self.launch(f"slice_{lanes}", over(total * groups), table, total, groups, filtered)
            values = (matrix, filtered, logits if number else base, logits)
            blocks = over(items * channels.stride)
            self.launch("mix_labels", blocks, items, channels.labels, channels.stride, *values)

    def loaded(self, planes: Sequence[Sequence[Tensor]], marginals: bool) -> Tensor:
        channels, batch = self.channels, self.batch
        out = torch.empty(batch.total * channels.width, dtype=torch.float32, device=self.device)
        place = (batch.tiles, batch.plain, channels.problems, channels.labels, channels.stride)
        values = (int(channels.implicit), int(marginals), addresses(batch, planes), out)
        self.launch("load_rows", batch.tile_count, *place, *values)
        return out

    def answers(self, q: Tensor, last: Tensor, best: bool) -> list[list[Tensor]]:
        channels, batch = self.channels, self.batch
        shapes = [(n,) if best else (channels.labels, n) for n in batch.points]
        kind = torch.int32 if best else torch.float32
        planes = [
            [torch.empty(shape, dtype=kind, device=self.device) for _ in range(channels.problems)] for shape in shapes
        ]
        place = (batch.tiles, batch.plain, channels.problems, channels.labels, channels.stride)
        values = (int(channels.implicit), int(best), q, last, addresses(batch, planes))
        self.launch("give_answer", batch.tile_count, *place, *values)
        return planes


def estimated_bytes(points: int, dimensions: Sequence[int], labels: int, problems: int = 1) -> int:
    """What an image needs at most at one time, on a photograph: lattices while they are built, and inference.

    Vertices are guessed from above (1.75 a point, of the grid alone 0.75; photographs have 0.2 to 1.6, and 0.13 at a
    sigma of 3 pixels); keys are taken as one word.
    """
    width = problems * channel_stride(labels)
    kept, building = 0, 0
    for d in dimensions:
        sides, vertices = d + 1, (0.75 if d < 3 else 1.75) * points
        entries = sides * points
        kept += int(20 * entries + vertices * (8 * sides + 12 + 8 * width))
        building = max(building, 60 * entries + int(vertices * 64))
    inference = points * (3 * width + 2 * labels * problems) * 4
    return kept + max(building, inference)
