"""IRN's affinity and displacement losses over pairs of pixels."""

from typing import NamedTuple

import torch
from torch import Tensor

from amn_fast.errors import InputError
from amn_fast.kernels.pair_loss import reference
from amn_fast.ops._backend import choose


class PairLossTerms(NamedTuple):
    """The five means of `pair_loss`, scalars."""

    bg_pos: Tensor
    fg_pos: Tensor
    neg: Tensor
    dp_fg: Tensor
    dp_bg: Tensor

    @property
    def edges(self) -> Tensor:
        """½(½ bg_pos + ½ fg_pos + neg): the edge branch's part of `total`."""
        return (self.bg_pos + self.fg_pos) / 4 + self.neg / 2

    @property
    def total(self) -> Tensor:
        """½(½ bg_pos + ½ fg_pos + neg) + ½(dp_fg + dp_bg): what IRN minimises."""
        return self.edges + (self.dp_fg + self.dp_bg) / 2


def pair_loss(
    edge_logits: Tensor,
    displacement: Tensor,
    labels: Tensor,
    *,
    radius: int = 10,
    ignore_index: int = 255,
    backend: str = "auto",
) -> PairLossTerms:
    """IRN's losses over all pairs of pixels closer than `radius`, each the mean over the whole batch.

    A pair's affinity is 1 - the highest sigmoid(edge logit) on the straight path between its pixels. Pairs of one
    label shall have affinity 1 (bg_pos: both background, fg_pos: one class), pairs of different labels 0 (neg). The
    displacements of a pair shall differ by the pair's own offset on one class (dp_fg) and by nothing on the
    background (dp_bg). (Ahn et al., CVPR 2019, equations 3 to 7.) A kind without pairs contributes 0.

    Args:
        edge_logits: (B, 1, h, w), before the sigmoid.
        displacement: (B, 2, h, w), the y component first, in pixels of this grid.
        labels: (B, h, w) uint8, already at this grid (stride 4): 0 is background, 1.. the classes; pairs with an end
            of `ignore_index` count nowhere.
        radius: h >= radius and w >= 2·radius - 1 are needed.
        backend: "auto" or "reference".

    Returns:
        Five scalars, float32 (float64 for double inputs); `.total` is what IRN minimises.

    Raises:
        InputError: a shape, a type or a value is not as above.
    """
    sums, counts = pair_sums(
        edge_logits, displacement, labels, radius=radius, ignore_index=ignore_index, backend=backend
    )
    return pair_means(sums, counts)


def pair_means(sums: Tensor, counts: Tensor) -> PairLossTerms:
    """The five sums over their numbers of pairs (twice that for the two components of a displacement)."""
    background, foreground, negative = counts.to(sums.dtype).unbind()
    pairs = torch.stack([background, foreground, negative, 2 * foreground, 2 * background])
    return PairLossTerms(*(sums / (pairs + reference.TINY)).unbind())


def pair_sums(
    edge_logits: Tensor,
    displacement: Tensor,
    labels: Tensor,
    *,
    radius: int = 10,
    ignore_index: int = 255,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`pair_loss` before the division: sums (5,) and counts of background, foreground and negative pairs (3,), int64.

    For means over more than one batch or process: add both, then `pair_means`.
    """
    _check(edge_logits, displacement, labels, radius)
    choose(backend, "pair_loss", {"reference": ""})
    return reference.pair_sums(edge_logits, displacement, labels, radius, ignore_index)


def _check(edge_logits: Tensor, displacement: Tensor, labels: Tensor, radius: int) -> None:
    if edge_logits.ndim != 4 or edge_logits.shape[1] != 1 or not edge_logits.is_floating_point():
        found = f"{tuple(edge_logits.shape)} {edge_logits.dtype}"
        raise InputError(f"pair_loss: edge_logits is {found}, expected (B, 1, h, w) of a floating type")
    batch, _, height, width = edge_logits.shape
    if displacement.shape != (batch, 2, height, width) or not displacement.is_floating_point():
        found = f"{tuple(displacement.shape)} {displacement.dtype}"
        raise InputError(f"pair_loss: displacement is {found}, expected ({batch}, 2, {height}, {width}), floating")
    if labels.shape != (batch, height, width) or labels.dtype != torch.uint8:
        found = f"{tuple(labels.shape)} {labels.dtype}"
        raise InputError(f"pair_loss: labels is {found}, expected ({batch}, {height}, {width}) torch.uint8")
    if not (edge_logits.device == displacement.device == labels.device):
        found = f"{edge_logits.device}, {displacement.device} and {labels.device}"
        raise InputError(f"pair_loss: the arguments are on {found}, expected one device")
    if not isinstance(radius, int) or radius < 2:
        raise InputError(f"pair_loss: radius is {radius!r}, expected a whole number of at least 2")
    if height < radius or width < 2 * radius - 1:
        expected = f"at least {radius} x {2 * radius - 1} for radius {radius}"
        raise InputError(f"pair_loss: the maps are {height} x {width} (height x width), expected {expected}")
