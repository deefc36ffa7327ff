"""The losses as modules for users' own training loops."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor, nn

from amn_fast.ops.local_affinity import DILATIONS, pixel_adaptive_refinement
from amn_fast.ops.pair_loss import PairLossTerms, pair_means, pair_sums
from amn_fast.ops.pixel_loss import balanced_mean, pixel_sums

__all__ = ["PairLoss", "PixelLoss"]


def sum_over_group(sums: Tensor, counts: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """The sums and counts of all processes of the group.

    The gradient is that of this process's part times the number of processes. DistributedDataParallel averages the
    gradients of the processes, which then gives the gradient of the loss over the global batch.
    """
    total, number = sums.detach().clone(), counts.detach().clone()
    dist.all_reduce(total, group=group)
    dist.all_reduce(number, group=group)
    scaled = sums * dist.get_world_size(group)
    return scaled + (total - scaled).detach(), number


class PixelLoss(nn.Module):
    """`amn_fast.pixel_loss` as a module: (logits (B, C + 1, h, w), labels (B, H, W) uint8) -> scalar.

    Args:
        eps, ignore_index, backend: as for `amn_fast.pixel_loss`.
        group: processes whose batches form one global batch, e.g. `torch.distributed.group.WORLD`. Their sums and
            counts are added before the division, and every process returns the same loss, with a gradient scaled for
            DistributedDataParallel. None: this process alone.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
        >>> round(PixelLoss(eps=0)(logits, labels).item(), 4)  # half of log 2: there is no foreground
        0.3466
    """

    def __init__(
        self,
        eps: float = 0.4,
        ignore_index: int = 255,
        group: dist.ProcessGroup | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.eps, self.ignore_index, self.group, self.backend = eps, ignore_index, group, backend

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss; see `amn_fast.pixel_loss`."""
        sums, counts = pixel_sums(logits, labels, eps=self.eps, ignore_index=self.ignore_index, backend=self.backend)
        if self.group is not None:
            sums, counts = sum_over_group(sums, counts, self.group)
        return balanced_mean(sums, counts)


class PairLoss(nn.Module):
    """`amn_fast.pair_loss` as a module; IRN minimises `.total` of the result.

    (edge_logits (B, 1, h, w), displacement (B, 2, h, w), labels (B, h, w) uint8 at stride 4) -> five scalars.

    Args:
        radius, ignore_index, backend: as for `amn_fast.pair_loss`.
        group: as for `PixelLoss`.

    Example:
        >>> import torch
        >>> edge, displacement = torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 8, 8)
        >>> terms = PairLoss(radius=3)(edge, displacement, torch.zeros(1, 8, 8, dtype=torch.uint8))
        >>> round(terms.bg_pos.item(), 4), terms.neg.item()
        (0.6931, 0.0)
    """

    def __init__(
        self,
        radius: int = 10,
        ignore_index: int = 255,
        group: dist.ProcessGroup | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.radius, self.ignore_index, self.group, self.backend = radius, ignore_index, group, backend

    def forward(self, edge_logits: Tensor, displacement: Tensor, labels: Tensor) -> PairLossTerms:
        """The five terms; see `amn_fast.pair_loss`."""
        sums, counts = pair_sums(
            edge_logits,
            displacement,
            labels,
            radius=self.radius,
            ignore_index=self.ignore_index,
            backend=self.backend,
        )
        if self.group is not None:
            sums, counts = sum_over_group(sums, counts, self.group)
        return pair_means(sums, counts)


BalancedPixelLoss = PixelLoss  # the former name
over_group = sum_over_group  # the former name


class PAR(nn.Module):
    """Pixel-adaptive refinement as AFA, ToCo and others use it.

    (image (B, C, H, W), mask (B, K, h, w)) -> (B, K, H, W).

    Args:
        dilations, num_iter: as published: distances of the neighbours in pixels, number of steps.
        normalise, backend: as in `amn_fast.pixel_adaptive_refinement`.
    """

    kind = "par"

    def __init__(
        self, dilations: Sequence[int], num_iter: int, *, normalise: bool = False, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.dilations, self.num_iter, self.normalise, self.backend = tuple(dilations), num_iter, normalise, backend

    def forward(self, imgs: Tensor, masks: Tensor) -> Tensor:
        return pixel_adaptive_refinement(
            imgs,
            masks,
            dilations=self.dilations,
            iterations=self.num_iter,
            kind=self.kind,
            normalise=self.normalise,
            backend=self.backend,
        )


class PAMR(PAR):
    """Pixel-adaptive mask refinement of 1-stage-wseg, called as `PAR` is.

    Args:
        num_iter, dilations: as published, in this order.
        backend: as in `amn_fast.pixel_adaptive_refinement`.
    """

    kind = "pamr"

    def __init__(self, num_iter: int = 1, dilations: Sequence[int] = DILATIONS, *, backend: str = "auto") -> None:
        super().__init__(dilations, num_iter, backend=backend)
