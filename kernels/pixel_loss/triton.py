"""The balanced per-pixel classification loss on a GPU. The definition is in reference.py.

One program takes BLOCK pixels of one image and loops over the channels, CHUNK at a time, with an online log-sum-exp:
one read of the logits forward, one read and one write backward, no target, one-hot or probability tensor, no wait for
the device. Labels are sampled inside.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from amn_fast.kernels.pixel_loss.reference import nearest_index

BLOCK, CHUNK = 64, 16


@triton.jit
def _read_label(
    labels, rows, columns, image, pixel, inside, width, label_sb, label_sy, label_sx, channels, IGNORE: tl.constexpr
):
    """The labels of a block of pixels, -1 where they count nowhere, and which of them have no channel."""
    y, x = pixel // width, pixel % width
    row = tl.load(rows + y, mask=inside, other=0)
    column = tl.load(columns + x, mask=inside, other=0)
    label = tl.load(labels + image * label_sb + row * label_sy + column * label_sx, mask=inside, other=0).to(tl.int32)
    counted = inside & (label != IGNORE)
    wrong = counted & (label >= channels)
    return tl.where(counted, label, -1), wrong


@triton.jit
def forward_kernel(
    logits,  # (B, channels, height, width), element strides sb, sc, sy, sx
    labels,  # (B, H, W) uint8, element strides label_sb, label_sy, label_sx
    rows,  # (height,) int32: the label row of each row
    columns,  # (width,) int32
    normaliser,  # (2, B, height, width): the maximum over channels, the logarithm of the sum of exp(x - maximum)
    partials,  # (B, blocks, 4): per program the two sums and the two counts
    logarithms,  # B * height * width: from a pixel's maximum to its logarithm
    channels,
    width,
    pixels,  # height * width
    sb,
    sc,
    sy,
    sx,
    label_sb,
    label_sy,
    label_sx,
    IGNORE: tl.constexpr,
    ON: tl.constexpr,  # 1 - eps; a constant keeps its double precision
    OFF: tl.constexpr,  # eps / C
    DTYPE: tl.constexpr,  # of the arithmetic
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    label, wrong = _read_label(
        labels, rows, columns, image, pixel, inside, width, label_sb, label_sy, label_sx, channels, IGNORE
    )
    here = logits + image * sb + (pixel // width).to(tl.int64) * sy + (pixel % width).to(tl.int64) * sx

    highest = tl.full((BLOCK,), float("-inf"), DTYPE)
    total_exp = tl.zeros((BLOCK,), DTYPE)
    total = tl.zeros((BLOCK,), DTYPE)  # the sum of x - highest
    own = tl.zeros((BLOCK,), DTYPE)  # the logit of the label
    for first in range(0, channels, CHUNK):
        channel = first + tl.arange(0, CHUNK)
        known = (channel < channels)[:, None] & inside[None, :]
        x = tl.load(here[None, :] + channel[:, None].to(tl.int64) * sc, mask=known, other=float("-inf")).to(DTYPE)
        x = tl.where(inside[None, :] | (channel > 0)[:, None], x, 0.0)  # a pixel outside has one channel of 0
        higher = tl.maximum(highest, tl.max(x, 0))
        shifted = x - higher[None, :]
        total_exp = tl.where(first > 0, total_exp * tl.exp(highest - higher), 0.0) + tl.sum(tl.exp(shifted), 0)
        moved = tl.where(first > 0, (highest - higher) * first, 0.0)
        total += moved + tl.sum(tl.where(known, shifted, 0.0), 0)
        own += tl.sum(tl.where(channel[:, None] == label[None, :], x, 0.0), 0)
        highest = higher

    log_sum = tl.log(total_exp)
    place = image * pixels + pixel
    tl.store(normaliser + place, highest, mask=inside)
    tl.store(normaliser + logarithms + place, log_sum, mask=inside)
    own -= highest
    loss = log_sum - ON * own - OFF * (total - own)
    loss = tl.where(wrong, float("nan"), loss)
    out = partials + (image * tl.num_programs(0) + block) * 4
    background, foreground = label == 0, label > 0
    tl.store(out, tl.sum(tl.where(background, loss, 0.0), 0))
    tl.store(out + 1, tl.sum(tl.where(foreground, loss, 0.0), 0))
    tl.store(out + 2, tl.sum(background.to(DTYPE), 0))
    tl.store(out + 3, tl.sum(foreground.to(DTYPE), 0))


@triton.jit
def backward_kernel(
    logits,
    labels,
    rows,
    columns,
    normaliser,
    weights,  # (2,): the gradients of the background and of the foreground sum
    gradient,  # as the logits, element strides gradient_sb, ..
    logarithms,  # B * height * width: from a pixel's maximum to its logarithm
    channels,
    width,
    pixels,
    sb,
    sc,
    sy,
    sx,
    label_sb,
    label_sy,
    label_sx,
    gradient_sb,
    gradient_sc,
    gradient_sy,
    gradient_sx,
    IGNORE: tl.constexpr,
    ON: tl.constexpr,
    OFF: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    label, wrong = _read_label(
        labels, rows, columns, image, pixel, inside, width, label_sb, label_sy, label_sx, channels, IGNORE
    )
    y, x = (pixel // width).to(tl.int64), (pixel % width).to(tl.int64)
    here = logits + image * sb + y * sy + x * sx
    there = gradient + image * gradient_sb + y * gradient_sy + x * gradient_sx
    place = image * pixels + pixel
    highest = tl.load(normaliser + place, mask=inside, other=0.0)
    log_sum = tl.load(normaliser + logarithms + place, mask=inside, other=0.0)
    weight = tl.where(label == 0, tl.load(weights), tl.load(weights + 1))
    weight = tl.where(wrong, float("nan"), weight)
    for first in range(0, channels, CHUNK):
        channel = first + tl.arange(0, CHUNK)
        known = (channel < channels)[:, None] & inside[None, :]
        value = tl.load(here[None, :] + channel[:, None].to(tl.int64) * sc, mask=known, other=0.0).to(DTYPE)
        p = tl.exp(value - highest[None, :] - log_sum[None, :])
        target = tl.where(channel[:, None] == label[None, :], ON, OFF).to(DTYPE)
        slope = tl.where((label >= 0)[None, :], weight[None, :] * (p - target), 0.0)
        out = there[None, :] + channel[:, None].to(tl.int64) * gradient_sc
        tl.store(out, slope.to(gradient.dtype.element_ty), mask=known)


@lru_cache(maxsize=64)
def _sampling(size: int, target: int, device: torch.device) -> Tensor:
    return torch.tensor(nearest_index(size, target), dtype=torch.int32).to(device, non_blocking=True)


def _arguments(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    height, width = logits.shape[2:]
    return (
        _sampling(labels.shape[1], height, logits.device),
        _sampling(labels.shape[2], width, logits.device),
    )


def _grid(logits: Tensor) -> tuple[int, int]:
    return triton.cdiv(logits.shape[2] * logits.shape[3], BLOCK), logits.shape[0]


def _constants(dtype: torch.dtype, channels: int, eps: float, ignore_index: int) -> dict[str, object]:
    return {
        "IGNORE": ignore_index,
        "ON": 1 - eps,
        "OFF": eps / (channels - 1),
        "DTYPE": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK": BLOCK,
        "CHUNK": CHUNK,
    }


def forward(logits: Tensor, labels: Tensor, eps: float, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sums (2,), the counts (2,) and the normaliser (2, B, h, w), all on the device.

    A sampled label without a channel makes its side's sum NaN, here and in the gradient.
    """
    images, channels, height, width = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    normaliser = logits.new_empty((2, images, height, width), dtype=dtype)
    blocks, _ = _grid(logits)
    partials = logits.new_zeros((images * blocks, 4), dtype=dtype)
    if images:
        forward_kernel[_grid(logits)](
            logits,
            labels,
            *_arguments(logits, labels),
            normaliser,
            partials,
            normaliser[0].numel(),
            channels,
            width,
            height * width,
            *logits.stride(),
            *labels.stride(),
            **_constants(dtype, channels, eps, ignore_index),
        )
    sums = partials.sum(0, dtype=torch.float64).to(dtype)
    return sums[:2].clone(), sums[2:].clone(), normaliser


def backward(
    weights: Tensor, logits: Tensor, labels: Tensor, normaliser: Tensor, eps: float, ignore_index: int
) -> Tensor:
    """The gradient of weights[0] · background sum + weights[1] · foreground sum, laid out as the logits."""
    images, channels, height, width = logits.shape
    gradient = torch.empty_like(logits)
    if images:
        backward_kernel[_grid(logits)](
            logits,
            labels,
            *_arguments(logits, labels),
            normaliser,
            weights.contiguous(),
            gradient,
            normaliser[0].numel(),
            channels,
            width,
            height * width,
            *logits.stride(),
            *labels.stride(),
            *gradient.stride(),
            **_constants(normaliser.dtype, channels, eps, ignore_index),
        )
    return gradient
