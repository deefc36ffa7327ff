"""IRN's affinity and displacement losses by definition (Ahn et al., CVPR 2019, equations 3 to 7)."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from amn_fast.kernels.common.paths import Offset, half_plane, path

TINY = 1e-5


def arithmetic(edge_logits: Tensor, displacement: Tensor) -> torch.dtype:
    """The type to compute in: double for a double input, else single."""
    return torch.float64 if torch.float64 in (edge_logits.dtype, displacement.dtype) else torch.float32


def _offset_sums(
    edge: Tensor, displacement: Tensor, labels: Tensor, ignore_index: int, offset: Offset, reach: int
) -> tuple[Tensor, Tensor]:
    """The five sums and the three counts of the pairs one offset apart."""
    dy, dx = offset
    height, width = labels.shape[1] - reach, labels.shape[2] - 2 * reach

    def shifted(maps: Tensor, y: int, x: int) -> Tensor:
        return maps[..., y : y + height, reach + x : reach + x + width]

    highest = shifted(edge, *path(offset)[0])
    for y, x in path(offset)[1:]:
        step = shifted(edge, y, x)
        highest = torch.where((step > highest) | step.isnan(), step, highest)
    source, target = shifted(labels, 0, 0), shifted(labels, dy, dx)
    valid = (source != ignore_index) & (target != ignore_index)
    same = valid & (source == target)
    kinds = torch.stack([same & (source == 0), same & (source != 0), valid & (source != target)])
    background, foreground, negative = kinds

    # A pair that counts nowhere is left out before the arithmetic: 0 · NaN is NaN, in the gradient too.
    highest = torch.where(valid, highest, 0)
    affinity = torch.sigmoid(-highest)  # 1 - sigmoid(highest), without the cancellation
    free = torch.sigmoid(highest)  # 1 - affinity
    together, apart = -torch.log(affinity + TINY), -torch.log(free + TINY)
    difference = shifted(displacement, 0, 0) - shifted(displacement, dy, dx)
    away = difference - difference.new_tensor([dy, dx])[:, None, None]
    sums = [
        torch.where(background, together, 0).sum(),
        torch.where(foreground, together, 0).sum(),
        torch.where(negative, apart, 0).sum(),
        torch.where(foreground[:, None], away, 0).abs().sum(),
        torch.where(background[:, None], difference, 0).abs().sum(),
    ]
    return torch.stack(sums), kinds.flatten(1).sum(1)


def pair_sums(
    edge_logits: Tensor, displacement: Tensor, labels: Tensor, radius: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The five losses summed over their pairs, and the numbers of pairs.

    A pair is a source pixel i in rows [0, h - r), columns [r, w - r), r = radius - 1, and a pixel j one offset of the
    half-plane away. Its affinity is 1 - the highest sigmoid(edge logit) on the path from i to j. A pair that counts
    nowhere contributes nothing to sums and gradients, whatever its values; a NaN in a counted pair gives NaN. One
    offset at a time, and again in the backward pass: nothing per pair is kept.

    Args:
        edge_logits: (B, 1, h, w).
        displacement: (B, 2, h, w), the y component first.
        labels: (B, h, w) uint8; pairs with an end of label `ignore_index` count nowhere.

    Returns:
        sums (5,): bg_pos, fg_pos, neg, dp_fg, dp_bg; counts (3,): background, foreground and negative pairs, int64.
    """
    dtype = arithmetic(edge_logits, displacement)
    edge, moved = edge_logits[:, 0].to(dtype), displacement.to(dtype)
    sums, counts = edge.new_zeros(5), torch.zeros(3, dtype=torch.int64, device=edge.device)
    for offset in half_plane(radius):
        arguments = (edge, moved, labels, ignore_index, offset, radius - 1)
        more, pairs = checkpoint(_offset_sums, *arguments, use_reentrant=False)
        sums, counts = sums + more, counts + pairs
    return sums, counts
