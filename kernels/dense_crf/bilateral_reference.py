"""The bilateral filter and the dense energies by definition.

The filter is rloss's `bilateralfilter` (Tang et al., "On Regularized Losses for Weakly-supervised CNN Segmentation",
ECCV 2018), the energies are its DenseCRFLoss and AFA's DenseEnergyLoss (Ru et al., CVPR 2022).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amn_fast.kernels.dense_crf.reference import Lattice


def features(image: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """(5, H·W) float32 of an image (3, H, W): x / sigma_xy, y / sigma_xy, channels / sigma_rgb."""
    height, width = image.shape[1:]
    xy, rgb = (torch.tensor(sigma, dtype=torch.float32, device=image.device) for sigma in (sigma_xy, sigma_rgb))
    y, x = (torch.arange(size, dtype=torch.float32, device=image.device) / xy for size in (height, width))
    place = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    return torch.cat([place, image.float() / rgb]).reshape(5, -1)


def bilateral_filter(image: Tensor, values: Tensor, sigma_rgb: float, sigma_xy: float, transpose: bool) -> Tensor:
    """A · values, or Aᵀ · values, of each image of a batch; keeps the type of the values."""
    filtered = []
    for one, maps in zip(image, values, strict=True):
        lattice = Lattice.build(features(one, sigma_rgb, sigma_xy).numpy())
        filtered.append(torch.from_numpy(np.ascontiguousarray(lattice.filter(maps.flatten(1).numpy(), transpose))))
    return torch.stack(filtered).view(values.shape) if filtered else values.clone()


def energy(
    image: Tensor,
    probabilities: Tensor,
    region: Tensor,
    labels: Tensor | None,
    *,
    scale: float,
    recompute: bool | None,
    run: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Σ S · G · (A S) of each image, (B,); differentiable in the probabilities, with the gate held constant.

    `run(image, values)` is the filter, at the low resolution. S is the sampled probabilities times the sampled region.
    Without labels G is 1.
    """

    def sampled(maps: Tensor, **rule: str | bool) -> Tensor:
        if scale == 1:
            return maps
        return F.interpolate(maps, scale_factor=scale, recompute_scale_factor=recompute, **rule)  # type: ignore[arg-type]

    small = sampled(probabilities, mode="bilinear", align_corners=False)
    where = sampled(region[:, None])[:, 0]
    segments = small * where[:, None]
    filtered = run(sampled(image), segments)
    if labels is not None:
        gate = (where - small.detach().amax(1)).clamp(min=0)
        gate = torch.where(sampled(labels[:, None].to(gate.dtype))[:, 0] == 255, torch.ones_like(gate), gate)
        filtered = filtered * gate[:, None]
    return (segments * filtered).sum((1, 2, 3))
