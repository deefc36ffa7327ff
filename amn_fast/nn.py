"""The losses as modules, for your own training loops; and the running mean of displacements."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amn_fast.ops.local_affinity import DILATIONS, pixel_adaptive_refinement
from amn_fast.ops.pair_loss import PairLossTerms, pair_means, pair_sums
from amn_fast.ops.pixel_loss import balanced_mean, pixel_sums


def over_group(sums: Tensor, counts: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """The sums and counts of all processes of the group.

    The gradient is this process's share times the number of processes, since DistributedDataParallel averages the
    gradients of the processes: after its average, the gradient is that of the loss over the global batch.
    """
    total, number = sums.detach().clone(), counts.detach().clone()
    dist.all_reduce(total, group=group)
    dist.all_reduce(number, group=group)
    mine = sums * dist.get_world_size(group)
    return mine + (total - mine).detach(), number


class BalancedPixelLoss(nn.Module):
    """`amn_fast.ops.pixel_loss.pixel_loss` as a module: (logits (B, C + 1, h, w), labels (B, H, W) uint8) -> scalar.

    Args:
        eps, ignore_index, backend: as there.
        group: processes whose batches form one global batch, e.g. `torch.distributed.group.WORLD`: the sums and
            counts of all of them are added before the division, and every process returns the same loss. Its
            gradient is scaled for DistributedDataParallel, which averages over processes. None: this process alone.
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
        sums, counts = pixel_sums(logits, labels, eps=self.eps, ignore_index=self.ignore_index, backend=self.backend)
        if self.group is not None:
            sums, counts = over_group(sums, counts, self.group)
        return balanced_mean(sums, counts)


class PairLoss(nn.Module):
    """`amn_fast.ops.pair_loss.pair_loss` as a module; `.total` of its answer is what IRN minimises.

    (edge_logits (B, 1, h, w), displacement (B, 2, h, w), labels (B, h, w) uint8 at stride 4) -> five scalars.

    Args:
        radius, ignore_index, backend: as there.
        group: as in `BalancedPixelLoss`.
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
        sums, counts = pair_sums(
            edge_logits,
            displacement,
            labels,
            radius=self.radius,
            ignore_index=self.ignore_index,
            backend=self.backend,
        )
        if self.group is not None:
            sums, counts = over_group(sums, counts, self.group)
        return pair_means(sums, counts)


class DisplacementMean:
    """The mean displacement over all pixels of all training images, which IRN subtracts at inference.

    Sums in double precision, so that the order of the images hardly matters. Padding can be left out.
    """

    def __init__(self) -> None:
        self._sum = torch.zeros(2, dtype=torch.float64)
        self._count = torch.zeros((), dtype=torch.float64)

    def update(self, displacement: Tensor, inside: Tensor | None = None) -> None:
        """Adds the displacements (B, 2, h, w), of the pixels where `inside` (B, h, w) holds, or of all."""
        values = displacement.detach().double()
        self._sum, self._count = self._sum.to(values.device), self._count.to(values.device)
        kept = torch.ones_like(values[:, 0]) if inside is None else inside.double()
        self._sum += torch.where(kept[:, None] != 0, values, 0).sum((0, 2, 3))
        self._count += kept.sum()

    def mean(self, group: dist.ProcessGroup | None = None) -> Tensor:
        """(2,) float32: the mean so far, over the processes of `group` too; zeros before the first update."""
        total, count = self._sum.clone(), self._count.clone()
        if group is not None:
            dist.all_reduce(total, group=group)
            dist.all_reduce(count, group=group)
        return (total / count.clamp(min=1)).float()


class PAR(nn.Module):
    """Pixel-adaptive refinement as AFA, ToCo and others use it: (image (B, C, H, W), mask (B, K, h, w)) -> (B, K, H, W).

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
