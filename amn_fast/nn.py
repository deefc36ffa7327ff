"""The losses as modules for users' own training loops."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amn_fast.ops.crf_layer import crf_layer
from amn_fast.ops.energy_loss import dense_energy
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

    Examples:
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

    Examples:
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


class DenseCRFLoss(nn.Module):
    """rloss's DenseCRFLoss: (images (B, 3, H, W) in 0..255, probabilities (B, K, H, W), ROIs (B, H, W)) -> (1,).

    Args:
        weight, sigma_rgb, sigma_xy, scale_factor: as published.
        recompute_scale_factor, gradient, backend: as in `amn_fast.ops.energy_loss.dense_energy`.
    """

    recompute_scale_factor = False

    def __init__(
        self,
        weight: float,
        sigma_rgb: float,
        sigma_xy: float,
        scale_factor: float,
        *,
        recompute_scale_factor: bool | None = None,
        gradient: str = "published",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.weight, self.sigma_rgb, self.sigma_xy, self.scale_factor = weight, sigma_rgb, sigma_xy, scale_factor
        self.gradient, self.backend = gradient, backend
        if recompute_scale_factor is not None:
            self.recompute_scale_factor = recompute_scale_factor

    def forward(self, images: Tensor, segmentations: Tensor, ROIs: Tensor) -> Tensor:
        return self._energy(images, segmentations, ROIs, None)

    def _energy(self, images: Tensor, segmentations: Tensor, rois: Tensor, labels: Tensor | None) -> Tensor:
        return dense_energy(
            images,
            segmentations,
            rois,
            labels,
            weight=self.weight,
            sigma_rgb=self.sigma_rgb,
            sigma_xy=self.sigma_xy,
            scale_factor=self.scale_factor,
            recompute_scale_factor=self.recompute_scale_factor,
            gradient=self.gradient,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"sigma_rgb={self.sigma_rgb}, sigma_xy={self.sigma_xy}, weight={self.weight}, "
            f"scale_factor={self.scale_factor}"
        )


class DenseEnergyLoss(DenseCRFLoss):
    """The DenseEnergyLoss of AFA, ToCo and SeCo: as `DenseCRFLoss`, with a fourth input, labels (B, [1,] H, W).

    Samples as ToCo does. AFA samples otherwise at sizes that the scale factor does not divide: pass
    recompute_scale_factor=False for it.
    """

    recompute_scale_factor = True

    def forward(  # type: ignore[override]
        self,
        images: Tensor,
        segmentations: Tensor,
        ROIs: Tensor,
        seg_label: Tensor,
    ) -> Tensor:
        return self._energy(images, segmentations, ROIs, seg_label)


class MeanField(nn.Module):
    """The CRF-RNN layer: (image (B, 3, H, W) in 0..255, logits (B, K, H, W)) -> (B, K, H, W).

    Its parameters bear the names of crfasrnn_pytorch's CrfRnn: `load_state_dict` takes them.

    Args:
        num_labels: K.
        num_iterations: mean-field iterations.
        alpha, beta, gamma: standard deviations as in `amn_fast.ops.crf_layer.crf_layer`.
        spatial_ker_weight, bilateral_ker_weight: initial diagonals of the kernels' weights.
        backend: as there.
    """

    def __init__(
        self,
        num_labels: int,
        num_iterations: int = 5,
        *,
        alpha: float = 160,
        beta: float = 3,
        gamma: float = 3,
        spatial_ker_weight: float = 3,
        bilateral_ker_weight: float = 5,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.num_iterations, self.alpha, self.beta, self.gamma = num_iterations, alpha, beta, gamma
        self.backend = backend
        self.spatial_ker_weights = nn.Parameter(spatial_ker_weight * torch.eye(num_labels))
        self.bilateral_ker_weights = nn.Parameter(bilateral_ker_weight * torch.eye(num_labels))
        self.compatibility_matrix = nn.Parameter(torch.eye(num_labels))

    def forward(self, image: Tensor, logits: Tensor) -> Tensor:
        return crf_layer(
            image,
            logits,
            self.spatial_ker_weights,
            self.bilateral_ker_weights,
            self.compatibility_matrix,
            iterations=self.num_iterations,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            backend=self.backend,
        )
