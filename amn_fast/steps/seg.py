"""Segmentation network: optimizer and loss of the training, softmax and CRF labels of one image."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from amn_fast.config import SegEvaluation, SegTraining
from amn_fast.models import DeepLabV2, MultiScale
from amn_fast.models.deeplab import learning_rate_groups
from amn_fast.nn import over_group
from amn_fast.ops.dense_crf import dense_crf
from amn_fast.ops.pixel_loss import pixel_sums
from amn_fast.ops.unary import unary_from_softmax


def optimizer(base: DeepLabV2, settings: SegTraining) -> torch.optim.Optimizer:
    """SGD with DeepLab's three learning rates."""
    groups = learning_rate_groups(base, settings.lr, settings.weight_decay)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


def multi_scale_loss(logits: Sequence[Tensor], labels: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of the mean cross entropies at all scales.

    Args:
        logits: (B, C + 1, h, w) each, of any sizes.
        labels: (B, H, W) uint8, sampled to each size by Pillow's nearest rule; 255 does not count, and logits without
            a pixel that counts add 0.
        group: processes with a share of the batch each: the means are over the pixels of all shares, and the
            gradients, averaged over the processes, those of the whole batch.
    """
    found = [pixel_sums(one, labels, eps=0) for one in logits]
    sums, counts = (torch.stack(part).sum(1) for part in zip(*found, strict=True))
    if group is not None:
        sums, counts = over_group(sums, counts, group)
    return (sums / counts.clamp(min=1)).sum()


def probabilities(
    net: MultiScale, image: NDArray[np.uint8], settings: SegEvaluation, device: torch.device
) -> NDArray[np.float32]:
    """The network's softmax of one image at full size, (C + 1, H, W) float32."""
    x = net.base.normalize(image).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return net.probabilities(x, settings.flip, settings.window).cpu().numpy()


def crf_labels(image: NDArray[np.uint8], softmax: NDArray[np.float32], settings: SegEvaluation) -> NDArray[np.uint8]:
    """The labels (H, W) after the dense CRF on a softmax (C + 1, H, W), computed on one thread."""
    sigma_xy, sigma_rgb, compat = settings.bilateral
    marginals = dense_crf(
        image,
        unary_from_softmax(softmax),
        gaussian=settings.gaussian,
        bilateral=(sigma_xy, sigma_rgb, compat),
        iterations=settings.iterations,
        threads=1,
    )
    return marginals.argmax(0).astype(np.uint8)
