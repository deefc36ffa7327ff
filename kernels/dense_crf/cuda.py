"""The dense CRF on a GPU: what `lattice.cu` and `filter.cu` are launched with, for batches of pictures.

Every launch goes through a `Launcher`, so that the same driver runs the kernels on a GPU and, in the tests, the same
kernels as loops on the CPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from amn_fast.errors import InputError

Tensor = torch.Tensor

SOURCE = '#include "dense_crf/lattice.cu"\n#include "dense_crf/filter.cu"\n'
THREADS = 256  # in a block, as in device.hpp
CHUNK = 32  # entries that one thread sums: a whole row of most vertices, and few enough that no thread lags behind
PADDING = 4  # the published code embeds points in fours and fills the last group with zero features
MAX_DIMENSION = 6
MAX_ENTRIES = 2**31 - 1
MOST_WORDS = 2
MAX_COORDINATE = 2097152.0  # 2^21, as in embed.hpp
QUICK_STEPS = 128  # of probing: a table of the usual size that needs more is replaced by one of the largest size
SHARED_BYTES = 48 * 1024
FORBIDS, INVALID = 1, 2  # flags of examine_energies


class Launcher(Protocol):
    """Runs kernels on tensors of `device`, in order: tensors and None become pointers, ints 64-bit numbers."""

    device: torch.device

    def launch(self, kernel: str, blocks: int, *arguments: Any, shared: int = 0) -> None: ...


def over(items: int) -> int:
    """Blocks for one thread an item."""
    return -(-items // THREADS)


class Batch:
    """Pictures whose points lie one after the other, each padded to a whole number of fours."""

    def __init__(self, launcher: Launcher, points: Sequence[int], widths: Sequence[int]) -> None:
        self.launcher = launcher
        self.points, self.widths = list(points), list(widths)
        self.padded = [-(-n // PADDING) * PADDING for n in points]
        self.firsts = [0, *np.cumsum(self.padded).tolist()][:-1]
        self.total = sum(self.padded)
        counts = [over(n) for n in self.padded]
        self.tile_count = sum(counts)
        picture = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(self.tile_count) - np.repeat(np.cumsum(counts) - counts, counts)
        tiles = np.stack([picture, np.asarray(self.firsts)[picture] + THREADS * within], axis=1).astype(np.int32)
        self.tiles = torch.from_numpy(tiles).to(launcher.device)
        self.plain = self.pictures([0] * len(points), [(0, 0)] * len(points))

    def pictures(self, sources: Sequence[int], tables: Sequence[tuple[int, int]]) -> Tensor:
        """The table of pictures: see `Field` in device.hpp."""
        rows = zip(self.firsts, self.points, self.padded, self.widths, sources, *zip(*tables, strict=True), strict=True)
        return torch.tensor(list(rows), dtype=torch.int64, device=self.launcher.device)

    def tables(self, most: int) -> tuple[list[tuple[int, int]], int]:
        """A region of the hash table for each picture, (first, mask), at most half filled by `most` keys a point."""
        sizes = [1 << max(64, 2 * most * n - 1).bit_length() for n in self.padded]
        firsts = [0, *np.cumsum(sizes).tolist()]
        return [(first, size - 1) for first, size in zip(firsts, sizes, strict=False)], firsts[-1]


class Features(NamedTuple):
    """What points are embedded by: pictures, or the grid alone, with deviations; or matrices of finished features."""

    dimension: int
    lowest: list[float]  # over the whole batch, zero included
    highest: list[float]
    sources: list[Tensor] | None  # (H, W, 3) uint8, or (d, n) float32; None: the grid alone
    deviations: list[float] | None  # None: matrices


def grid_features(sizes: Sequence[tuple[int, int]], sx: float, sy: float) -> Features:
    highest = [_quotient(max(w for _, w in sizes) - 1, sx), _quotient(max(h for h, _ in sizes) - 1, sy)]
    return Features(2, [0.0, 0.0], highest, None, [sx, sy])


def image_features(images: Sequence[Tensor], sx: float, sy: float, colours: Sequence[float]) -> Features:
    grid = grid_features([(image.shape[0], image.shape[1]) for image in images], sx, sy)
    highest = [*grid.highest, *(_quotient(255, colour) for colour in colours)]
    return Features(5, [0.0] * 5, highest, list(images), [sx, sy, *colours])


def matrix_features(matrix: Tensor) -> Features:
    lowest, highest = matrix.amin(1).clamp(max=0).tolist(), matrix.amax(1).clamp(min=0).tolist()
    return Features(len(matrix), lowest, highest, [matrix], None)


def _quotient(value: float, deviation: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value) / np.float32(deviation))


def scales(d: int) -> list[float]:
    """The elevation's factors in single precision."""
    deviation = float(np.float32(math.sqrt(2.0 / 3.0) * (d + 1)))
    return [float(np.float32(1.0 / math.sqrt((j + 2.0) * (j + 1.0)) * deviation)) for j in range(d)]


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
    d, scale = features.dimension, scales(features.dimension)
    word, shift, bias = [0] * d, [0] * d, [0] * d
    at, used = 0, d.bit_length()  # the remainder comes first
    low = high = 0.0
    for j in range(d, -1, -1):  # elevated coordinate j: the later scaled features' sum less j times its own
        least, most = low, high
        if j > 0:
            a, b = features.lowest[j - 1] * scale[j - 1], features.highest[j - 1] * scale[j - 1]
            least, most = least - j * b, most - j * a
            low, high = low + a, high + b
        if not (abs(least) < MAX_COORDINATE and abs(most) < MAX_COORDINATE):
            raise InputError(
                "the features' range is too wide for their deviations: lattice coordinates reach "
                f"{max(abs(least), abs(most)):f}, expected less than 2097152 (single precision); "
                "use larger deviations (sxy, srgb, ...)"
            )
        if j == d:
            continue  # the last coordinate is not in the key: they sum to 0
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
    """The lattices of a batch's pictures.

    Attributes:
        count: vertices of all pictures.
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
    """The lattices of all pictures, in one launch of each kernel.

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
    scale = numbers_of(*scales(d), dtype=torch.float32)
    deviations = None if features.deviations is None else numbers_of(*features.deviations, dtype=torch.float32)
    sources = [0] * len(batch.points) if features.sources is None else [one.data_ptr() for one in features.sources]
    keys, slots = empty(entries * words, torch.int64), empty(entries)
    weights = empty(entries, torch.float32).view(sides, total)
    firsts = empty(entries)
    for most, steps in ((1, QUICK_STEPS), (sides, MAX_ENTRIES)):
        regions, size = batch.tables(most)
        if size > 2**32:
            raise InputError(f"there are {total} points, too many for one batch's hash table")
        pictures = batch.pictures(sources, regions)
        table = torch.full((size,), -1, dtype=torch.int32, device=device)
        overflow = torch.zeros(1, dtype=torch.int32, device=device)
        place = (batch.tiles, pictures, total)
        if most == 1:
            launch(f"embed_{d}", batch.tile_count, *place, deviations, scale, plan, words, keys, weights)
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
    names = (pictures, keys, words, plan, table, numbers, first_places, owners)
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


class Term(NamedTuple):
    """A pairwise term: `compat` is a number (Potts), or energies (L,) or (L, L), the last symmetric."""

    lattices: Lattices
    compat: np.ndarray[Any, np.dtype[Any]]
    normalization: str


def addresses(batch: Batch, planes: Sequence[Sequence[Tensor]]) -> Tensor:
    """Pointers to each picture's problems' planes."""
    rows = [one.data_ptr() for problems in planes for one in problems]
    return torch.tensor(rows, dtype=torch.int64, device=batch.launcher.device)


def examine(batch: Batch, planes: Sequence[Sequence[Tensor]], labels: int) -> list[int]:
    """FORBIDS and INVALID for each picture's unaries (labels, points)."""
    flags = torch.zeros(len(batch.points), dtype=torch.int32, device=batch.launcher.device)
    place = (batch.tiles, batch.plain, len(planes[0]), labels)
    batch.launcher.launch("examine_energies", batch.tile_count, *place, addresses(batch, planes), flags)
    found: list[int] = flags.tolist()
    return found


@dataclass
class Channels:
    """How the labels of a picture's problems become channels.

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
    """Mean field over a batch: every unary has the same number of labels, every picture as many unaries."""

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
        """Marginals (labels, points) float32, or with `best` labels (points,) int32, of each picture's unaries."""
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
    """What a picture needs at most at one time, on a photograph: lattices while they are built, and inference.

    Vertices are guessed from above (1.75 a point, of the grid alone 0.75; photographs have 0.2 to 1.6, and 0.13 at a
    deviation of 3 pixels); keys are taken as one word.
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
