"""IRN's affinity and displacement losses on a GPU. The definition is in reference.py, the idea in cpu.cpp.

The loop over the offsets fills seven integers per pixel; losses and gradients are then sums over pixels, which PyTorch
does. Sums of integers do not depend on the order, so atomic additions give bit-identical results on every run.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from amn_fast.kernels.common.paths import half_plane, path
from amn_fast.kernels.pair_loss.reference import TINY

BLOCK = 128
PLANES = 7  # background, foreground, negative; foreground y and x, background y and x
COUNTS = 5  # pairs of the three kinds; the foreground signs times the offsets, y and x


@triton.jit
def _kind(one, other, present, IGNORE: tl.constexpr):
    """0: both background, 1: one class, 2: different, 3: counts nowhere."""
    valid = present & (one != IGNORE) & (other != IGNORE)
    return tl.where(valid, tl.where(one != other, 2, tl.where(one == 0, 0, 1)), 3)


@triton.jit
def deciding_kernel(
    edge,  # (B, height, width)
    labels,  # (B, height, width) uint8
    offsets,  # (n_offsets, 4) int32: dy, dx, first path pixel, number of path pixels
    paths,  # (n, ) int32: shifts in pixels of the map
    tallies,  # (B, 7, height, width) int32, zeros
    height,
    width,
    n_offsets,
    REACH: tl.constexpr,  # radius - 1
    IGNORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Counts, at the pixel with the highest edge of each pair's path, the pairs of the three kinds. A program takes
    BLOCK source pixels of an image and all offsets."""
    image = tl.program_id(1).to(tl.int64)
    pixels = height * width
    source = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, x = source // width, source % width
    inside = (y < height - REACH) & (x >= REACH) & (x < width - REACH)
    edge += image * pixels
    labels += image * pixels
    tallies += image * 7 * pixels
    one = tl.load(labels + source, mask=inside, other=0)
    for o in range(n_offsets):
        dy, dx = tl.load(offsets + 4 * o), tl.load(offsets + 4 * o + 1)
        first, count = tl.load(offsets + 4 * o + 2), tl.load(offsets + 4 * o + 3)
        other = tl.load(labels + source + dy * width + dx, mask=inside, other=0)
        kind = _kind(one, other, inside, IGNORE)
        where = source + tl.load(paths + first)
        highest = tl.load(edge + where, mask=inside, other=0.0)
        for q in range(1, count):
            place = source + tl.load(paths + first + q)
            step = tl.load(edge + place, mask=inside, other=0.0)
            higher = (step > highest) | (step != step)  # a NaN decides, so that it shows
            highest = tl.where(higher, step, highest)
            where = tl.where(higher, place, where)
        tl.atomic_add(tallies + kind * pixels + where, 1, mask=kind < 3, sem="relaxed")


@triton.jit
def displacement_kernel(
    displacement,  # (B, 2, height, width)
    labels,
    offsets,
    tallies,
    counts,  # (B, blocks, 5) int32
    infinite,  # (B, blocks, 2): the sums of foreground and background errors that are infinite or NaN
    height,
    width,
    n_offsets,
    REACH: tl.constexpr,
    IGNORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums, at both ends of each pair, the signs of the displacement's errors; counts the pairs. A program takes BLOCK
    pixels and looks at the pairs that start there and at those that end there, so no two programs write one place."""
    image = tl.program_id(1).to(tl.int64)
    pixels = height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    y, x = pixel // width, pixel % width
    starts = (y < height - REACH) & (x >= REACH) & (x < width - REACH)
    labels += image * pixels
    along_y = displacement + image * 2 * pixels
    along_x = along_y + pixels
    here = tl.load(labels + pixel, mask=inside, other=0)
    here_y = tl.load(along_y + pixel, mask=inside, other=0.0)
    here_x = tl.load(along_x + pixel, mask=inside, other=0.0)
    fore_y = tl.zeros((BLOCK,), tl.int32)
    fore_x = tl.zeros((BLOCK,), tl.int32)
    back_y = tl.zeros((BLOCK,), tl.int32)
    back_x = tl.zeros((BLOCK,), tl.int32)
    background = tl.zeros((BLOCK,), tl.int32)
    foreground = tl.zeros((BLOCK,), tl.int32)
    negative = tl.zeros((BLOCK,), tl.int32)
    signs_y = tl.zeros((BLOCK,), tl.int32)
    signs_x = tl.zeros((BLOCK,), tl.int32)
    fore_infinite = tl.zeros((BLOCK,), infinite.dtype.element_ty)
    back_infinite = tl.zeros((BLOCK,), infinite.dtype.element_ty)
    for o in range(n_offsets):
        dy, dx = tl.load(offsets + 4 * o), tl.load(offsets + 4 * o + 1)
        for end in tl.static_range(2):  # 0: this pixel is the source, 1: it is the other end
            side = 1 - 2 * end
            if end == 0:
                present = starts
            else:
                source_y, source_x = y - dy, x - dx
                present = inside & (source_y >= 0) & (source_y < height - REACH)
                present = present & (source_x >= REACH) & (source_x < width - REACH)
            partner = pixel + side * (dy * width + dx)
            there = tl.load(labels + partner, mask=present, other=0)
            kind = _kind(here, there, present, IGNORE)
            there_y = tl.load(along_y + partner, mask=present, other=0.0)
            there_x = tl.load(along_x + partner, mask=present, other=0.0)
            difference_y, difference_x = side * (here_y - there_y), side * (here_x - there_x)
            away_y, away_x = difference_y - dy, difference_x - dx
            away_sign_y = (away_y > 0).to(tl.int32) - (away_y < 0).to(tl.int32)
            away_sign_x = (away_x > 0).to(tl.int32) - (away_x < 0).to(tl.int32)
            sign_y = (difference_y > 0).to(tl.int32) - (difference_y < 0).to(tl.int32)
            sign_x = (difference_x > 0).to(tl.int32) - (difference_x < 0).to(tl.int32)
            fore_y += tl.where(kind == 1, side * away_sign_y, 0)
            fore_x += tl.where(kind == 1, side * away_sign_x, 0)
            back_y += tl.where(kind == 0, side * sign_y, 0)
            back_x += tl.where(kind == 0, side * sign_x, 0)
            if end == 0:
                background += (kind == 0).to(tl.int32)
                foreground += (kind == 1).to(tl.int32)
                negative += (kind == 2).to(tl.int32)
                signs_y += tl.where(kind == 1, away_sign_y * dy, 0)
                signs_x += tl.where(kind == 1, away_sign_x * dx, 0)
                error = tl.abs(difference_y) + tl.abs(difference_x)
                error = tl.where(error - error == 0, 0, error)
                fore_infinite += tl.where(kind == 1, error, 0)
                back_infinite += tl.where(kind == 0, error, 0)
    out = tallies + image * 7 * pixels + pixel
    tl.store(out + 3 * pixels, fore_y, mask=inside)
    tl.store(out + 4 * pixels, fore_x, mask=inside)
    tl.store(out + 5 * pixels, back_y, mask=inside)
    tl.store(out + 6 * pixels, back_x, mask=inside)
    counts += (image * tl.num_programs(0) + tl.program_id(0)) * 5
    tl.store(counts, tl.sum(background, 0))
    tl.store(counts + 1, tl.sum(foreground, 0))
    tl.store(counts + 2, tl.sum(negative, 0))
    tl.store(counts + 3, tl.sum(signs_y, 0))
    tl.store(counts + 4, tl.sum(signs_x, 0))
    infinite += (image * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(infinite, tl.sum(fore_infinite, 0))
    tl.store(infinite + 1, tl.sum(back_infinite, 0))


@lru_cache(maxsize=16)
def _walk(radius: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The half-plane and its paths for maps of this width."""
    offsets: list[list[int]] = []
    paths: list[int] = []
    for dy, dx in half_plane(radius):
        way = path((dy, dx))
        offsets.append([dy, dx, len(paths), len(way)])
        paths += [y * width + x for y, x in way]
    tables = (torch.tensor(table, dtype=torch.int32) for table in (offsets, paths))
    return tuple(table.to(device, non_blocking=True) for table in tables)  # type: ignore[return-value]


def times(tallies: Tensor, values: Tensor) -> Tensor:
    """Their product; 0 without pairs, also where the value is NaN."""
    return torch.where(tallies == 0, 0, tallies * values)


def forward(
    edge: Tensor, displacement: Tensor, labels: Tensor, radius: int, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums (5,), the counts (3,) int64 and the tallies (B, 7, h, w) int32.

    The arguments are contiguous, edge (B, 1, h, w) and displacement (B, 2, h, w) of one type, float32 or float64.
    """
    images, height, width = labels.shape
    tallies = labels.new_zeros((images, PLANES, height, width), dtype=torch.int32)
    blocks = triton.cdiv(height * width, BLOCK)
    counts = labels.new_zeros((images, blocks, COUNTS), dtype=torch.int32)
    infinite = edge.new_zeros((images, blocks, 2))
    offsets, paths = _walk(radius, width, labels.device)
    constants = {"REACH": radius - 1, "IGNORE": ignore_index, "BLOCK": BLOCK}
    if images:
        grid = (blocks, images)
        deciding_kernel[grid](edge, labels, offsets, paths, tallies, height, width, len(offsets), **constants)
        displacement_kernel[grid](
            displacement, labels, offsets, tallies, counts, infinite, height, width, len(offsets), **constants
        )
    numbers = counts.sum((0, 1))  # int64
    affinity, free = torch.sigmoid(-edge[:, 0]), torch.sigmoid(edge[:, 0])
    losses = torch.stack([-torch.log(affinity + TINY)] * 2 + [-torch.log(free + TINY)], 1).double()
    decided = times(tallies[:, :3], losses).sum((0, 2, 3))
    moved = displacement[:, None].double()
    moved = torch.where(moved.isfinite(), moved, 0)
    signed = (tallies[:, 3:].unflatten(1, (2, 2)) * moved).sum((0, 2, 3, 4)) + infinite.double().sum((0, 1))
    signed = signed - torch.stack([numbers[3] + numbers[4], torch.zeros_like(numbers[3])])
    return torch.cat([decided, signed]).to(edge.dtype), numbers[:3].clone(), tallies


def backward(weights: Tensor, edge: Tensor, tallies: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of Σ weights[k] · sums[k] for the edge (B, 1, h, w) and the displacement (B, 2, h, w)."""
    affinity, free = torch.sigmoid(-edge), torch.sigmoid(edge)
    together, apart = affinity * free / (affinity + TINY), affinity * free / (free + TINY)
    edge_gradient = times(tallies[:, 0:1], weights[0] * together) + times(tallies[:, 1:2], weights[1] * together)
    edge_gradient = edge_gradient - times(tallies[:, 2:3], weights[2] * apart)
    return edge_gradient, weights[3] * tallies[:, 3:5] + weights[4] * tallies[:, 5:7]
