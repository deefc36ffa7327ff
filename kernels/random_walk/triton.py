"""The affinity random walk on the GPU: a batch of images of different sizes in a few launches.

Every image lies in flat, zero-padded buffers: row after row, `stride` = width + reach numbers each, `pad` zeros
before the first row and after the last. A neighbour is then a constant distance away, and what lies outside the image
has affinity 0, so that no load asks where the image ends. A table in device memory says where each image's parts
begin.

The walk runs in one of two ways, with the same arithmetic in the same order:
- whole: one program owns a group of maps and takes all steps in one launch; the maps stay in the first-level cache of
  its multiprocessor (47 KB a map at 94 x 125), only affinities stream in from the second level. For batches that
  fill the GPU, and for maps so small that a step takes no longer than a launch.
- one launch per step, over all images: for few large maps, which need all multiprocessors.
Nothing here waits for the GPU.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from amn_fast.kernels.common.paths import half_plane, path

# Columns of the image table: sizes, then the first index of the image's part in each buffer.
HEIGHT, WIDTH, MAPS, STRIDE, PAD, EDGE_AT, X_AT, PIXEL_AT, MAP_AT, PLANE_AT = range(10)
COLUMNS = tl.constexpr(10)
SMALL = 1024  # pixels of a map whose step takes no longer than a launch


@triton.jit
def image_at(images, image, COLUMN: tl.constexpr):
    return tl.load(images + image * COLUMNS + COLUMN)


@triton.jit
def start_kernel(images, blocks, edge, strength, x, weight, maps, result, first_coefficient, BLOCK: tl.constexpr):
    """t_0 = x (1 - edge) and result = c_0 t_0, into the padded buffers; (1 - edge)^beta, too. Grid: blocks, maps."""
    image = tl.load(blocks + 2 * tl.program_id(0))
    n = tl.load(blocks + 2 * tl.program_id(0) + 1) + tl.arange(0, BLOCK)
    m = tl.program_id(1)
    width = image_at(images, image, 1)
    stride = image_at(images, image, 3)
    pad = image_at(images, image, 4)
    length = image_at(images, image, 0) * stride
    row, column = n // stride, n % stride
    inside = (n < length) & (column < width)
    pixel = row * width + column
    if m < image_at(images, image, 2):
        edge_at = image_at(images, image, 5) + pixel
        open_ = 1.0 - tl.load(edge + edge_at, mask=inside, other=1.0)
        if m == 0:
            value = tl.load(strength + edge_at, mask=inside, other=0.0)
            tl.store(weight + image_at(images, image, 7) + pad + n, value, mask=inside)
        size = image_at(images, image, 0) * width
        value = open_ * tl.load(x + image_at(images, image, 6) + m * size + pixel, mask=inside, other=0.0)
        to = image_at(images, image, 8) + m * (length + 2 * pad) + pad + n
        tl.store(maps + to, value, mask=inside)
        tl.store(result + to, value * tl.load(first_coefficient), mask=inside)


@triton.jit
def affinity_kernel(images, blocks, paths, path_ends, weight, affinity, planes, BLOCK: tl.constexpr):
    """affinity[p, n] = minimum of (1 - edge)^beta over the path from pixel n to its p-th neighbour. Grid: blocks.

    paths: the pixels (dy, dx) of all paths, one path after the other; path_ends: where each ends.
    """
    image = tl.load(blocks + 2 * tl.program_id(0))
    n = tl.load(blocks + 2 * tl.program_id(0) + 1) + tl.arange(0, BLOCK)
    stride = image_at(images, image, 3)
    pad = image_at(images, image, 4)
    length = image_at(images, image, 0) * stride
    inside = n < length
    pixels = weight + image_at(images, image, 7) + pad
    plane = affinity + image_at(images, image, 9) + pad
    begin = 0
    for p in range(planes):
        end = tl.load(path_ends + p)
        lowest = tl.full((BLOCK,), 1.0, tl.float32)
        for q in range(begin, end):
            shift = tl.load(paths + 2 * q) * stride + tl.load(paths + 2 * q + 1)
            lowest = tl.minimum(lowest, tl.load((pixels + shift) + n, mask=inside, other=0.0))
        tl.store(plane + n, lowest, mask=inside)
        plane += length + pad
        begin = end


@triton.jit
def scale_kernel(images, blocks, offsets, affinity, scale, planes, BLOCK: tl.constexpr):
    """scale = 2 / column sum of the affinities, summed in double. Grid: blocks."""
    image = tl.load(blocks + 2 * tl.program_id(0))
    n = tl.load(blocks + 2 * tl.program_id(0) + 1) + tl.arange(0, BLOCK)
    stride = image_at(images, image, 3)
    pad = image_at(images, image, 4)
    length = image_at(images, image, 0) * stride
    inside = n < length
    plane = affinity + image_at(images, image, 9) + pad
    total = tl.full((BLOCK,), 1.0, tl.float64)
    for p in range(planes):
        shift = tl.load(offsets + 2 * p) * stride + tl.load(offsets + 2 * p + 1)
        total += tl.load(plane + n, mask=inside, other=0.0).to(tl.float64)
        total += tl.load((plane - shift) + n, mask=inside, other=0.0).to(tl.float64)
        plane += length + pad
    tl.store(scale + image_at(images, image, 7) + pad + n, (2.0 / total).to(tl.float32), mask=inside)


@triton.jit
def step_block(
    n, maps_inside, m, map_size, length, pad, stride, offsets, planes, affinity, scale, now, next_, change, result,
    coefficient, fresh,
):  # fmt: skip
    """One step for the pixels n of the maps m; rows.hpp says why the recurrence is written with differences."""
    inside = n < length
    both = maps_inside[:, None] & inside[None, :]
    at = m[:, None] * map_size + n[None, :]
    now += pad
    here = tl.load(now + at, mask=both, other=0.0)
    ahead = tl.zeros_like(here)
    behind = tl.zeros_like(here)
    plane = affinity + pad
    for p in range(planes):
        shift = tl.load(offsets + 2 * p) * stride + tl.load(offsets + 2 * p + 1)
        a = tl.load(plane + n, mask=inside, other=0.0)
        b = tl.load((plane - shift) + n, mask=inside, other=0.0)
        there = tl.load((now + shift) + at, mask=both, other=0.0)
        ahead = tl.fma(tl.broadcast_to(a[None, :], here.shape), there - here, ahead)
        there = tl.load((now - shift) + at, mask=both, other=0.0)
        behind = tl.fma(tl.broadcast_to(b[None, :], here.shape), there - here, behind)
        plane += length + pad
    delta = tl.load((scale + pad) + n, mask=inside, other=0.0)[None, :] * (ahead + behind)
    if fresh:
        delta *= 0.5
    else:
        delta += tl.load((change + pad) + at, mask=both, other=0.0)
    value = here + delta
    tl.store((change + pad) + at, delta, mask=both)
    tl.store((next_ + pad) + at, value, mask=both)
    if coefficient != 0.0:
        total = tl.load((result + pad) + at, mask=both, other=0.0)
        tl.store(
            (result + pad) + at, tl.fma(tl.full(value.shape, 1.0, tl.float32) * coefficient, value, total), mask=both
        )


@triton.jit(do_not_specialize=["first", "last"])
def walk_kernel(
    images, blocks, offsets, affinity, scale, maps, change, result, coefficients, buffer_size, planes, first, last,
    M: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Steps first..last of the recurrence for M maps of a image: t_step from t_{step-1}, result += c_step t_step.

    maps: two buffers of `buffer_size` numbers; t_k lies in buffer k % 2. WHOLE: the program walks over all the
    image's blocks (grid: images, groups of M maps); else it takes one block (grid: blocks, groups) of one step.
    PLAIN: steps of the walk instead of the Chebyshev recurrence.
    """
    if WHOLE:
        image = tl.program_id(0)
    else:
        image = tl.load(blocks + 2 * tl.program_id(0))
    m = tl.program_id(1) * M + tl.arange(0, M)
    maps_inside = m < image_at(images, image, 2)
    stride = image_at(images, image, 3)
    pad = image_at(images, image, 4)
    length = image_at(images, image, 0) * stride
    map_size = length + 2 * pad
    map_at = image_at(images, image, 8)
    affinity += image_at(images, image, 9)
    scale += image_at(images, image, 7)
    for step in range(first, last + 1):
        now = maps + ((step - 1) % 2) * buffer_size + map_at
        next_ = maps + (step % 2) * buffer_size + map_at
        coefficient = tl.load(coefficients + step)
        fresh = PLAIN or (step == 1)
        if WHOLE:
            for begin in range(0, length, BLOCK):
                step_block(
                    begin + tl.arange(0, BLOCK), maps_inside, m, map_size, length, pad, stride, offsets, planes,
                    affinity, scale, now, next_, change + map_at, result + map_at, coefficient, fresh,
                )  # fmt: skip
            tl.debug_barrier()  # the next step reads what other threads of this program wrote
        else:
            begin = tl.load(blocks + 2 * tl.program_id(0) + 1)
            step_block(
                begin + tl.arange(0, BLOCK), maps_inside, m, map_size, length, pad, stride, offsets, planes,
                affinity, scale, now, next_, change + map_at, result + map_at, coefficient, fresh,
            )  # fmt: skip


@triton.jit
def finish_kernel(images, result, maps, out, BLOCK: tl.constexpr):
    """Back to (K, h, w), within the range of t_0, which the exact answer never leaves. Grid: images, maps."""
    image = tl.program_id(0)
    m = tl.program_id(1)
    width = image_at(images, image, 1)
    stride = image_at(images, image, 3)
    pad = image_at(images, image, 4)
    size = image_at(images, image, 0) * width
    at = image_at(images, image, 8) + m * (image_at(images, image, 0) * stride + 2 * pad) + pad
    if m < image_at(images, image, 2):
        low = tl.full((BLOCK,), float("inf"), tl.float32)
        high = tl.full((BLOCK,), float("-inf"), tl.float32)
        for begin in range(0, size, BLOCK):
            n = begin + tl.arange(0, BLOCK)
            value = tl.load(maps + at + n // width * stride + n % width, mask=n < size, other=0.0)
            low = tl.where(n < size, tl.minimum(low, value), low)
            high = tl.where(n < size, tl.maximum(high, value), high)
        lowest, highest = tl.min(low, 0), tl.max(high, 0)
        for begin in range(0, size, BLOCK):
            n = begin + tl.arange(0, BLOCK)
            value = tl.load(result + at + n // width * stride + n % width, mask=n < size, other=0.0)
            value = tl.minimum(tl.maximum(value, lowest), highest)
            tl.store(out + image_at(images, image, 6) + m * size + n, value, mask=n < size)


def neighbours(radius: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kernels' `offsets` (planes, 2), short ones first, as on the CPU; `paths` (pixels, 2) and `path_ends`."""
    offsets = sorted(half_plane(radius), key=lambda o: (o[0] ** 2 + o[1] ** 2, o))
    paths = [path(offset) for offset in offsets]
    pixels = [pixel for pixels in paths for pixel in pixels]
    ends = np.cumsum([len(pixels) for pixels in paths])
    return tuple(
        np.array(part, np.int32).reshape(shape) for part, shape in ((offsets, (-1, 2)), (pixels, (-1, 2)), (ends, -1))
    )


def layout(sizes: Sequence[tuple[int, int, int]], radius: int) -> tuple[np.ndarray, np.ndarray]:
    """The image table (see HEIGHT...) for (K, h, w) sizes, with a last row that holds the buffers' sizes."""
    planes = len(half_plane(radius))
    reach = radius - 1
    table = np.zeros((len(sizes) + 1, COLUMNS.value), np.int64)
    ends = np.zeros(5, np.int64)
    for row, (maps, height, width) in zip(table, sizes, strict=False):
        stride = width + reach
        length, pad = height * stride, reach * stride + reach
        row[:] = (height, width, maps, stride, pad, *ends)
        ends += (
            height * width,
            maps * height * width,
            length + 2 * pad,
            maps * (length + 2 * pad),
            planes * (length + pad),
        )
    table[-1, EDGE_AT:] = ends
    return table[:-1], table[-1]


def block_table(images: np.ndarray, block: int) -> np.ndarray:
    """(image, first pixel) of every block of `block` padded pixels."""
    lengths = images[:, HEIGHT] * images[:, STRIDE]
    return np.array(
        [(p, begin) for p, length in enumerate(lengths) for begin in range(0, int(length), block)], np.int64
    )


def random_walk(
    x: Sequence[torch.Tensor],
    edge: Sequence[torch.Tensor],
    radius: int,
    beta: float,
    coefficients: np.ndarray,
    chebyshev: bool,
    whole: bool | None = None,
    numbers: int = 1024,
) -> list[torch.Tensor]:
    """x (1 - edge) times a polynomial of the transition matrix, for each image.

    Args:
        x: (K, h, w) maps of each image, on one device; checked by the caller.
        edge: (h, w) edges of each image.
        coefficients: (degree + 1,) in Chebyshev polynomials or, if not `chebyshev`, in powers of the matrix.
        whole: which of the two ways to walk; None chooses.
        numbers: how many numbers (maps times pixels) a program works on at once; a power of 2.

    Returns:
        (K, h, w) float32 each.
    """
    device = x[0].device
    offsets, paths, path_ends = neighbours(radius)
    planes = len(offsets)
    images, ends = layout([tuple(maps.shape) for maps in x], radius)
    most_maps = int(images[:, MAPS].max())
    if most_maps == 0:
        return [torch.empty(maps.shape, dtype=torch.float32, device=device) for maps in x]
    group = min(triton.next_power_of_2(most_maps), 4)
    groups = triton.cdiv(most_maps, group)
    block = numbers // group
    blocks = block_table(images, block)
    if whole is None:
        whole = _walks_whole(images, groups, device)

    tables = (images, blocks, offsets, paths, path_ends, coefficients.astype(np.float32))
    table, block_list, offsets, paths, path_ends, weights = (
        torch.from_numpy(part).to(device, non_blocking=True) for part in tables
    )
    zeros = {"dtype": torch.float32, "device": device}
    edges = torch.cat([e.reshape(-1).float() for e in edge])
    strength = (1.0 - edges.double()).pow(beta).float()
    maps = torch.zeros(2, int(ends[MAP_AT]), **zeros)
    change, result = torch.zeros(2, int(ends[MAP_AT]), **zeros)
    weight, scale = torch.zeros(2, int(ends[PIXEL_AT]), **zeros)
    affinity = torch.zeros(int(ends[PLANE_AT]), **zeros)
    out = torch.empty(int(ends[X_AT]), **zeros)
    sources = torch.cat([m.reshape(-1).float() for m in x])

    start_kernel[(len(blocks), most_maps)](
        table, block_list, edges, strength, sources, weight, maps, result, weights, BLOCK=block
    )
    start = maps[0].clone()
    affinity_kernel[(len(blocks),)](table, block_list, paths, path_ends, weight, affinity, planes, BLOCK=block)
    scale_kernel[(len(blocks),)](table, block_list, offsets, affinity, scale, planes, BLOCK=block)
    degree = len(coefficients) - 1
    launches = [(1, degree)] if whole else [(step, step) for step in range(1, degree + 1)]
    for first, last in launches:
        walk_kernel[(len(x) if whole else len(blocks), groups)](
            table, block_list, offsets, affinity, scale, maps, change, result, weights, maps.shape[1], planes,
            first, last, M=group, BLOCK=block, WHOLE=whole, PLAIN=not chebyshev, num_warps=8 if whole else 4,
        )  # fmt: skip
    finish_kernel[(len(x), most_maps)](table, result, start, out, BLOCK=1024)
    parts = out.split([maps.numel() for maps in x])
    return [part.view(maps.shape) for part, maps in zip(parts, x, strict=True)]


def _walks_whole(images: np.ndarray, groups: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    lengths = images[:, HEIGHT] * images[:, STRIDE]
    return len(images) * groups >= processors or int(lengths.max()) <= SMALL
