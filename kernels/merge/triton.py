"""Merging activation maps over scales on a GPU. The definition is in reference.py.

A program takes BLOCK pixels of the result and all channels: it reads four cells of each scale's low-resolution map,
blends, sums and runs the softmax in registers, and writes the kept channels only. Nothing of full size exists beside
the result.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from amn_fast.kernels.merge.reference import TINY
from amn_fast.kernels.pixel_loss.reference import sample_labels

BLOCK = 16


@triton.jit
def _blend(maps, table, steps, scale, channel, known, y, x, DTYPE: tl.constexpr):
    """The bilinear values (CHANNELS, BLOCK) of one scale, align_corners=False."""
    start = tl.load(table + 3 * scale)
    height, width = tl.load(table + 3 * scale + 1), tl.load(table + 3 * scale + 2)
    at_y = tl.maximum((y.to(tl.float64) + 0.5) * tl.load(steps + 2 * scale) - 0.5, 0.0)
    at_x = tl.maximum((x.to(tl.float64) + 0.5) * tl.load(steps + 2 * scale + 1) - 0.5, 0.0)
    top, left = tl.minimum(at_y.to(tl.int64), height - 1), tl.minimum(at_x.to(tl.int64), width - 1)
    below, right = tl.minimum(top + 1, height - 1), tl.minimum(left + 1, width - 1)
    for_below, for_right = (at_y - top).to(DTYPE)[None, :], (at_x - left).to(DTYPE)[None, :]
    plane = maps + start + channel[:, None] * (height * width)
    a = tl.load(plane + (top * width + left)[None, :], mask=known, other=0.0)
    b = tl.load(plane + (top * width + right)[None, :], mask=known, other=0.0)
    c = tl.load(plane + (below * width + left)[None, :], mask=known, other=0.0)
    d = tl.load(plane + (below * width + right)[None, :], mask=known, other=0.0)
    upper, lower = a + (b - a) * for_right, c + (d - c) * for_right
    return upper + (lower - upper) * for_below


@triton.jit
def merge_kernel(
    maps,  # all scales' maps (channels, h_s, w_s), one after the other
    table,  # (scales, 3) int64: where the scale starts in `maps`, h_s, w_s
    steps,  # (scales, 2) float64: h_s / extent, w_s / extent
    slots,  # (channels,) int32: the kept channel's place in the result, -1 for others
    out,  # (kept, height, width)
    channels,
    scales,
    width,
    pixels,  # height * width
    SOFTMAX: tl.constexpr,  # True: softmax over channels of the mean; False: the sum
    CHANNELS: tl.constexpr,  # a power of two, at least `channels`
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    y, x = pixel // width, pixel % width
    channel = tl.arange(0, CHANNELS)
    known = (channel < channels)[:, None] & inside[None, :]
    total = tl.zeros((CHANNELS, BLOCK), DTYPE)
    for scale in range(scales):
        total += _blend(maps, table, steps, scale, channel, known, y, x, DTYPE)
    if SOFTMAX:
        mean = tl.where((channel < channels)[:, None], total / scales, float("-inf"))
        total = tl.exp(mean - tl.max(mean, 0)[None, :])
        total = total / tl.sum(total, 0)[None, :]
    slot = tl.load(slots + channel, mask=channel < channels, other=-1)
    tl.store(out + slot[:, None] * pixels + pixel[None, :], total, mask=(slot >= 0)[:, None] & inside[None, :])


def _merge(
    maps: Sequence[Tensor], kept: Sequence[int], size: tuple[int, int], extent: tuple[int, int], *, softmax: bool
) -> Tensor:
    """The kept channels, (len(kept), *size), of maps resized to `extent`."""
    first = maps[0]
    channels, out = first.shape[0], first.new_empty(len(kept), *size)
    if not len(kept):
        return out
    table, steps, start = [], [], 0
    for m in maps:
        table.append([start, m.shape[1], m.shape[2]])
        steps.append([m.shape[1] / extent[0], m.shape[2] / extent[1]])
        start += m.numel()
    slots = torch.full((channels,), -1, dtype=torch.int32)
    slots[list(kept)] = torch.arange(len(kept), dtype=torch.int32)
    device = first.device
    merge_kernel[(triton.cdiv(size[0] * size[1], BLOCK),)](
        torch.cat([m.reshape(-1) for m in maps]),
        torch.tensor(table).to(device),
        torch.tensor(steps, dtype=torch.float64).to(device),
        slots.to(device),
        out,
        channels,
        len(maps),
        size[1],
        size[0] * size[1],
        SOFTMAX=softmax,
        CHANNELS=triton.next_power_of_2(channels),
        DTYPE=tl.float64 if first.dtype == torch.float64 else tl.float32,
        BLOCK=BLOCK,
    )
    return out


def cam(maps: Sequence[Tensor], valid: Sequence[int], size: tuple[int, int], extent: tuple[int, int]) -> Tensor:
    """`maps` are of one floating type, float32 or float64; the answer is (len(valid), *size)."""
    kept = [m[list(valid)] for m in maps]
    merged = _merge(kept, range(len(valid)), size, extent, softmax=False)
    return merged / (merged.amax((1, 2), keepdim=True) + TINY)


def amn(maps: Sequence[Tensor], kept: Sequence[int], seed: Tensor, size: tuple[int, int]) -> Tensor:
    """As `cam`; the softmax, moved to [0, 1] where the seed (H, W) is not background."""
    p = _merge(maps, kept, size, size, softmax=True)
    low, high = p.amin((1, 2), keepdim=True), p.amax((1, 2), keepdim=True)
    foreground = sample_labels(seed[None], *size)[0] != 0
    return torch.where(foreground, (p - low) / (high - low + TINY), p)
