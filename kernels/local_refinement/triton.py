"""Pixel-adaptive refinement on a GPU. The definition is in reference.py.

The affinity of the whole batch is made once and read by each step; a program takes BLOCK pixels of one image, and in a
step all or CHUNK of the channels, so that weights are read once for them. The transposed step gathers too: it fills a
result with margins, into which neighbours outside the image give, and the margins are then added to the edges. No
atomics: the same bits in every run.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from amn_fast.kernels.local_refinement import reference

BLOCK, CHUNK = 128, 8


@triton.jit
def _neighbour(shifts, p, y, x, height, width):
    """Where neighbour p of the pixels lies, in an image."""
    row = tl.minimum(tl.maximum(y + tl.load(shifts + 2 * p), 0), height - 1)
    column = tl.minimum(tl.maximum(x + tl.load(shifts + 2 * p + 1), 0), width - 1)
    return row.to(tl.int64) * width + column


@triton.jit
def _sigma(plane, centre, shifts, y, x, inside, height, width, neighbours, centres, DTYPE: tl.constexpr):
    """The standard deviation of the neighbours (and of `centres` times the centre) of one channel."""
    total = tl.zeros(centre.shape, DTYPE)
    for p in range(neighbours):
        total += tl.load(plane + _neighbour(shifts, p, y, x, height, width), mask=inside, other=0.0) - centre
    mean = total / (neighbours + centres)
    squares = centres * mean * mean
    for p in range(neighbours):
        there = tl.load(plane + _neighbour(shifts, p, y, x, height, width), mask=inside, other=0.0)
        centred = there - centre - mean
        squares += centred * centred
    return tl.sqrt(squares / (neighbours + centres - 1))


@triton.jit
def affinity_kernel(
    image,  # (B, channels, height, width)
    shifts,  # (neighbours, 2) int32
    position,  # (neighbours,): added to the weights
    out,  # (B, neighbours, height, width)
    channels,
    height,
    width,
    neighbours,
    centres,
    SCALE: tl.constexpr,
    PAR: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixels = height.to(tl.int64) * width
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    y, x = (pixel // width).to(tl.int32), (pixel % width).to(tl.int32)
    planes = image + tl.program_id(1).to(tl.int64) * channels * pixels
    weights = out + tl.program_id(1).to(tl.int64) * neighbours * pixels + pixel
    highest = tl.full((BLOCK,), float("-inf"), DTYPE)
    for c in range(channels):
        plane = planes + c * pixels
        centre = tl.load(plane + pixel, mask=inside, other=0.0)
        sigma = _sigma(plane, centre, shifts, y, x, inside, height, width, neighbours, centres, DTYPE)
        if PAR:
            factor = 1 / ((sigma + 1e-8) * 0.3)
        else:
            factor = 1 / (1e-8 + 0.1 * sigma)
        for p in range(neighbours):
            there = tl.load(plane + _neighbour(shifts, p, y, x, height, width), mask=inside, other=0.0)
            distance = tl.abs(there - centre) * factor
            if PAR:
                distance = distance * distance
            logit = -distance / channels
            if c > 0:
                logit += tl.load(weights + p * pixels, mask=inside, other=0.0)
            tl.store(weights + p * pixels, logit, mask=inside)
            if c == channels - 1:
                highest = tl.maximum(highest, logit)
    total = tl.zeros((BLOCK,), DTYPE)
    for p in range(neighbours):
        raised = tl.exp(tl.load(weights + p * pixels, mask=inside, other=0.0) - highest)
        total += raised
        tl.store(weights + p * pixels, raised, mask=inside)
    for p in range(neighbours):
        raised = tl.load(weights + p * pixels, mask=inside, other=0.0)
        tl.store(weights + p * pixels, raised / total * SCALE + tl.load(position + p), mask=inside)


@triton.jit
def step_kernel(
    mask,  # (B, channels, height, width)
    affinity,  # (B, neighbours, height, width)
    shifts,  # (neighbours, 2) int32
    out,  # as the mask; transposed: with `margin_y` rows and `margin_x` columns more on each side
    channels,
    height,
    width,
    neighbours,
    margin_y,
    margin_x,
    TRANSPOSE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    pixels = height.to(tl.int64) * width
    out_width = width + 2 * margin_x
    out_pixels = (height + 2 * margin_y).to(tl.int64) * out_width
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < out_pixels
    y, x = (pixel // out_width).to(tl.int32) - margin_y, (pixel % out_width).to(tl.int32) - margin_x
    channel = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    known = channel < channels
    image = tl.program_id(2).to(tl.int64)
    planes = mask + (image * channels + channel[:, None]) * pixels
    weights = affinity + image * neighbours * pixels
    total = tl.zeros((CHUNK, BLOCK), DTYPE)
    for p in range(neighbours):
        if TRANSPOSE:
            row, column = y - tl.load(shifts + 2 * p), x - tl.load(shifts + 2 * p + 1)
            there = row.to(tl.int64) * width + column
            from_there = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = tl.load(weights + p * pixels + there, mask=from_there, other=0.0)
        else:
            there = _neighbour(shifts, p, y, x, height, width)
            from_there = inside
            weight = tl.load(weights + p * pixels + pixel, mask=inside, other=0.0)
        value = tl.load(planes + there[None, :], mask=known[:, None] & from_there[None, :], other=0.0)
        total += weight[None, :] * value
    place = out + (image * channels + channel[:, None]) * out_pixels + pixel[None, :]
    tl.store(place, total, mask=known[:, None] & inside[None, :])


def _shifts(dilations: Sequence[int], height: int, width: int, device: torch.device) -> Tensor:
    """(neighbours, 2) int32. A dilation beyond the image reaches the edge's pixel, as one of size - 1 does."""
    shifts = torch.tensor(reference.offsets(dilations), dtype=torch.int64)
    limit = torch.tensor([height - 1, width - 1])
    return torch.minimum(torch.maximum(shifts, -limit), limit).int().to(device)


def _type(values: Tensor) -> tl.dtype:
    return tl.float64 if values.dtype == torch.float64 else tl.float32


def local_affinity(image: Tensor, dilations: Sequence[int], kind: str, normalise: bool) -> Tensor:
    """(B, 8 · dilations, H, W) from the image (B, C, H, W), float32 or float64."""
    images, channels, height, width = image.shape
    neighbours = 8 * len(dilations)
    scale = 1 / reference.total_weight(kind) if normalise else 1.0
    position = torch.tensor(reference.position_weights(dilations), dtype=torch.float64) * scale * (kind == "par")
    out = image.new_empty(images, neighbours, height, width)
    affinity_kernel[(triton.cdiv(height * width, BLOCK), images)](
        image.contiguous(),
        _shifts(dilations, height, width, image.device),
        position.to(image),
        out,
        channels,
        height,
        width,
        neighbours,
        len(dilations) if kind == "pamr" else 0,
        SCALE=scale,
        PAR=kind == "par",
        DTYPE=_type(image),
        BLOCK=BLOCK,
    )
    return out


def propagate(mask: Tensor, affinity: Tensor, dilations: Sequence[int], iterations: int, transpose: bool) -> Tensor:
    """mask (B, K, H, W) after `iterations` steps; of the affinity's type."""
    images, channels, height, width = mask.shape
    shifts = _shifts(dilations, height, width, mask.device)
    margin_y, margin_x = (min(max(dilations), side - 1) if transpose else 0 for side in (height, width))
    chunk = min(CHUNK, triton.next_power_of_2(channels))
    values, affinity = mask.contiguous(), affinity.contiguous()
    for _ in range(iterations):
        out = values.new_empty(images, channels, height + 2 * margin_y, width + 2 * margin_x)
        step_kernel[(triton.cdiv(out.shape[2] * out.shape[3], BLOCK), triton.cdiv(channels, chunk), images)](
            values,
            affinity,
            shifts,
            out,
            channels,
            height,
            width,
            affinity.shape[1],
            margin_y,
            margin_x,
            TRANSPOSE=transpose,
            DTYPE=_type(mask),
            BLOCK=BLOCK,
            CHUNK=chunk,
        )
        values = _fold(_fold(out, 2, margin_y), 3, margin_x).contiguous()
    return values if iterations else values.clone()


def _fold(values: Tensor, axis: int, margin: int) -> Tensor:
    """Adds both margins of an axis to the edges."""
    if not margin:
        return values
    size = values.shape[axis] - 2 * margin
    inner = values.narrow(axis, margin, size).clone()
    inner.select(axis, 0).add_(values.narrow(axis, 0, margin).sum(axis))
    inner.select(axis, size - 1).add_(values.narrow(axis, margin + size, margin).sum(axis))
    return inner
