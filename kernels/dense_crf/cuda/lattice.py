"""Lattices on a GPU: what `lattice.cu` and `filter.cu` are launched with, for batches of images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from amn_fast.errors import InputError
from amn_fast.kernels.dense_crf import reference
from amn_fast.kernels.dense_crf.cuda.batch import Batch, over

Tensor = torch.Tensor

CHUNK = 32  # entries that one thread sums: a whole row of most vertices, and few enough that no thread lags behind
MAX_DIMENSION = 6
MAX_ENTRIES = 2**31 - 1
MOST_WORDS = 2
QUICK_STEPS = 128  # of probing: a table of the usual size that needs more is replaced by one of the largest size


class Features(NamedTuple):
    """What points are embedded by: images, or the grid alone, with sigmas; or matrices of finished features."""

    dimension: int
    lowest: list[float]  # over the whole batch, zero included
    highest: list[float]
    sources: list[Tensor] | None  # (H, W, 3) uint8, or (d, n) float32; None: the grid alone
    sigmas: list[float] | None  # None: matrices


def grid_features(sizes: Sequence[tuple[int, int]], sx: float, sy: float) -> Features:
    highest = reference.highest_features(max(h for h, _ in sizes), max(w for _, w in sizes), sx, sy, [])
    return Features(2, [0.0, 0.0], highest, None, [sx, sy])


def image_features(images: Sequence[Tensor], sx: float, sy: float, colours: Sequence[float]) -> Features:
    height, width = (max(image.shape[side] for image in images) for side in (0, 1))
    highest = reference.highest_features(height, width, sx, sy, colours)
    return Features(5, [0.0] * 5, highest, list(images), [sx, sy, *colours])


def matrix_features(matrix: Tensor) -> Features:
    lowest, highest = matrix.amin(1).clamp(max=0).tolist(), matrix.amax(1).clamp(min=0).tolist()
    return Features(len(matrix), lowest, highest, [matrix], None)


class Packing(NamedTuple):
    """Where the quotients of a key lie."""

    words: int
    word: list[int]
    shift: list[int]
    bias: list[int]


def pack(features: Features) -> Packing:
    """A layout of keys that nothing can overflow.

    Raises:
        InputError: lattice coordinates are too large for single precision.
    """
    d = features.dimension
    word, shift, bias = [0] * d, [0] * d, [0] * d
    at, used = 0, d.bit_length()  # the remainder comes first
    ranges = reference.coordinate_ranges(features.lowest, features.highest)
    for j in range(d - 1, -1, -1):  # coordinate d is not in the key: they sum to 0
        least, most = ranges[j]
        # Rounding, the return to the plane and a neighbour's step move a quotient by less than 4; float error by less.
        lowest, highest = math.floor(least / (d + 1)) - 5, math.ceil(most / (d + 1)) + 5
        bits = (highest - lowest).bit_length()
        if used + bits > 63:
            at, used = at + 1, 0
        word[j], shift[j], bias[j] = at, used, -lowest
        used += bits
    assert at < MOST_WORDS  # coordinates below 2^21 leave quotients of at most 21 bits
    return Packing(at + 1, word, shift, bias)


class Level(NamedTuple):
    """Chunks to sum: begins..ends of entries (of partial sums from the second level on), and where the sums go."""

    count: int
    begins: Tensor
    ends: Tensor
    targets: Tensor


@dataclass
class Lattices:
    """The lattices of a batch's images.

    Attributes:
        count: vertices of all images.
        vertices, weights: (d + 1, total) int32 and float32, each point's simplex and barycentric weights.
        neighbours: (d + 1, count, 2) int32, (previous, following) along each axis; -1 where there is none.
        row_points, row_weights: (entries,) the entries in the order of their vertices.
        levels: how the rows are summed; `partials` is the number of partial sums that takes.
    """

    batch: Batch
    dimension: int
    count: int
    vertices: Tensor
    weights: Tensor
    neighbours: Tensor
    row_points: Tensor
    row_weights: Tensor
    levels: list[Level]
    partials: int
    norms: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def sides(self) -> int:
        return self.dimension + 1

    @property
    def alpha(self) -> float:
        return float(np.float32(1.0) / (np.float32(1.0) + np.float32(2.0) ** np.float32(-self.dimension)))

    def norm(self, normalization: str) -> tuple[Tensor, Tensor]:
        """The splat's weights and the slice's factors (total,), with the normalisation and alpha in them."""
        if normalization not in self.norms:
            factor = torch.full((self.batch.total,), self.alpha, dtype=torch.float32, device=self.weights.device)
            if normalization == "none":
                self.norms["none"] = self.row_weights, factor
                return self.norms["none"]
            mass = self.filter(torch.ones_like(factor), 1).double() + 1e-20
            before = (mass.rsqrt() if normalization == "symmetric" else mass.reciprocal()).float()
            after = factor if normalization == "before" else factor * before
            splat = self.row_weights
            if normalization != "after":
                splat = splat * before.index_select(0, self.row_points)
            self.norms[normalization] = splat, after
        return self.norms[normalization]

    def filter(self, values: Tensor, width: int, transpose: bool = False) -> Tensor:
        """K · values, or Kᵀ · values, of rows (total, width), without normalisation."""
        splat, after = self.norm("none")
        work = Workspace(self, width)
        rows = work.filtered(values, splat, transpose)
        unit = torch.ones(4, dtype=torch.float32, device=values.device)
        term = terms_table([(self, after, rows, unit)])
        out = torch.empty(self.batch.total * width, dtype=torch.float32, device=values.device)
        lanes, groups = lanes_of(width)
        work.launch(f"slice_{lanes}", over(self.batch.total * groups), term, self.batch.total, groups, out)
        return out


def lanes_of(width: int) -> tuple[int, int]:
    """How a row of `width` channels is cut: (channels of a group, groups)."""
    lanes = 4 if width % 4 == 0 else 2 if width % 2 == 0 else 1
    return lanes, width // lanes


def terms_table(terms: Sequence[tuple[Lattices, Tensor, Tensor, Tensor]]) -> Tensor:
    """Rows (vertices, weights, after, rows, compat, sides): see `TermField` in filter.cu."""
    rows = [
        (
            *(tensor.data_ptr() for tensor in (lattices.vertices, lattices.weights, after, values, compat)),
            lattices.sides,
        )
        for lattices, after, values, compat in terms
    ]
    return torch.tensor(rows, dtype=torch.int64, device=terms[0][1].device)


class Workspace:
    """Vertex rows of one width, and the launches that fill them."""

    def __init__(self, lattices: Lattices, width: int) -> None:
        self.lattices = lattices
        self.launch = lattices.batch.launcher.launch
        self.lanes, self.groups = lanes_of(width)
        device = lattices.weights.device
        self.buffers = [torch.empty(lattices.count * width, dtype=torch.float32, device=device) for _ in range(2)]
        self.partial = torch.empty(lattices.partials * width, dtype=torch.float32, device=device)
        self.result = self.buffers[lattices.sides % 2]  # where the last blur ends

    def filtered(self, values: Tensor, weights: Tensor, transpose: bool = False) -> Tensor:
        """Splat of point rows with the entries' weights, and blur along every axis, for Kᵀ in reverse order."""
        mesh, groups = self.lattices, self.groups
        rows, other = self.buffers
        for number, level in enumerate(mesh.levels):
            chunks = (level.count, groups, level.begins, level.ends, level.targets)
            blocks = over(level.count * groups)
            if number == 0:
                source = (mesh.row_points, weights, values)
                self.launch(f"splat_{self.lanes}", blocks, *chunks, *source, rows, self.partial)
            else:
                self.launch(f"sum_partial_{self.lanes}", blocks, *chunks, rows, self.partial)
        for axis in reversed(range(mesh.sides)) if transpose else range(mesh.sides):
            neighbours = mesh.neighbours[axis]
            self.launch(f"blur_{self.lanes}", over(mesh.count * groups), mesh.count, groups, neighbours, rows, other)
            rows, other = other, rows
        return rows


def build(batch: Batch, features: Features) -> Lattices:
    """The lattices of all images, in one launch of each kernel.

    Raises:
        InputError: lattice coordinates are too large for single precision.
    """
    packing = pack(features)
    launch, device = batch.launcher.launch, batch.launcher.device
    d, sides, total, words = features.dimension, features.dimension + 1, batch.total, packing.words
    entries = total * sides
    if entries > MAX_ENTRIES:
        raise InputError(f"there are {total} points, expected at most {MAX_ENTRIES // sides} in a batch")

    def numbers_of(*values: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    def empty(count: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(count, dtype=dtype, device=device)

    plan = numbers_of(*packing.word, *packing.shift, *packing.bias, dtype=torch.int64)
    scale = numbers_of(*(reference.elevation_scale(d, j) for j in range(1, d + 1)), dtype=torch.float32)
    sigmas = None if features.sigmas is None else numbers_of(*features.sigmas, dtype=torch.float32)
    sources = [0] * len(batch.points) if features.sources is None else [one.data_ptr() for one in features.sources]
    keys, slots = empty(entries * words, torch.int64), empty(entries)
    weights = empty(entries, torch.float32).view(sides, total)
    firsts = empty(entries)
    for most, steps in ((1, QUICK_STEPS), (sides, MAX_ENTRIES)):
        regions, size = batch.tables(most)
        if size > 2**32:
            raise InputError(f"there are {total} points, too many for one batch's hash table")
        images = batch.images(sources, regions)
        table = torch.full((size,), -1, dtype=torch.int32, device=device)
        overflow = torch.zeros(1, dtype=torch.int32, device=device)
        place = (batch.tiles, images, total)
        if most == 1:
            launch(f"embed_{d}", batch.tile_count, *place, sigmas, scale, plan, words, keys, weights)
        blocks = batch.tile_count * sides
        launch("insert_entries", blocks, *place, sides, keys, words, table, slots, steps, overflow)
        launch("mark_first_entries", batch.tile_count, *place, sides, table, slots, firsts)
        numbers = torch.cumsum(firsts, 0, dtype=torch.int32)
        too_full, count = torch.cat([overflow, numbers[-1:]]).tolist()
        if not too_full:
            break
    del firsts
    vertices, first_places, owners = empty(entries), empty(count), empty(count)
    launch("number_vertices", blocks, *place, sides, table, slots, numbers, vertices, first_places, owners)
    del slots
    neighbours = torch.full((sides, count, 2), -1, dtype=torch.int32, device=device)
    names = (images, keys, words, plan, table, numbers, first_places, owners)
    launch("find_all_neighbours", over(count * sides), count, sides, total, *names, neighbours)
    del keys, table, numbers, first_places, owners, names

    ordered, places = torch.sort(vertices, stable=True)
    row_points, row_weights, row_firsts = empty(entries), empty(entries, torch.float32), empty(count + 1)
    row_firsts[count] = entries
    rows = (row_points, row_weights, row_firsts)
    launch("make_splat_rows", over(entries), entries, total, ordered, places, weights, *rows)
    del ordered, places
    levels, partials = cut(row_firsts)
    shape = vertices.view(sides, total)
    return Lattices(batch, d, count, shape, weights, neighbours, row_points, row_weights, levels, partials)


def cut(row_firsts: Tensor) -> tuple[list[Level], int]:
    """Rows cut into chunks, chunks' sums into chunks again where a row has many, and the number of such sums."""
    begins, lengths = row_firsts[:-1].long(), row_firsts.diff().long()
    targets = torch.arange(len(begins), device=begins.device)
    levels: list[Level] = []
    partials = 0
    while len(begins):
        pieces = (lengths + (CHUNK - 1)) // CHUNK
        kept = torch.where(pieces > 1, pieces, 0)  # partial sums of these rows
        total, more = torch.stack([pieces.sum(), kept.sum()]).tolist()
        row = torch.repeat_interleave(torch.arange(len(begins), device=begins.device), pieces, output_size=total)
        within = torch.arange(total, device=begins.device) - (pieces.cumsum(0) - pieces)[row]
        first_sums = partials + kept.cumsum(0) - kept
        first = begins[row] + CHUNK * within
        last = torch.minimum(first + CHUNK, (begins + lengths)[row])
        target = torch.where(kept[row] > 0, -1 - (first_sums[row] + within), targets[row])
        levels.append(Level(total, first.int(), last.int(), target.int()))
        many = kept > 0
        if not more:
            break
        begins, lengths, targets = first_sums[many], pieces[many], targets[many]
        partials += more
    return levels, partials
