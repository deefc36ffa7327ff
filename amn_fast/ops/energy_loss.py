"""The dense energy losses of single-stage methods: the bilateral filter as a regulariser of probabilities."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from amn_fast.errors import InputError
from amn_fast.kernels.dense_crf import bilateral_reference
from amn_fast.ops._arrays import choice, number
from amn_fast.ops.bilateral_filter import (
    apply_filter,
    bilateral_backend,
    check_image,
    check_no_tangent,
    check_sigmas,
    input_errors,
    native_kernels,
)

GRADIENTS = ("published", "exact")
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def dense_energy(
    image: Tensor,
    segmentations: Tensor,
    rois: Tensor,
    labels: Tensor | None = None,
    *,
    weight: float,
    sigma_rgb: float = 15,
    sigma_xy: float = 100,
    scale_factor: float = 0.5,
    recompute_scale_factor: bool | None = None,
    gradient: str = "published",
    backend: str = "auto",
) -> Tensor:
    """-weight / B · Σ S · G · (A S), with S = segmentations · ROI and the bilateral filter A, at a lower resolution.

    Equivalent to: rloss's DenseCRFLoss without labels, AFA's, ToCo's and SeCo's DenseEnergyLoss with them. The image,
    the ROI and the labels are sampled by the nearest rule, the segmentations bilinearly; sigma_xy shrinks as the image
    does.

    Args:
        image: (B, 3, H, W) floating or uint8 in 0..255.
        segmentations: (B, K, H, W) floating, probabilities; differentiable.
        rois: (B, H, W), 1 inside the region that counts, 0 outside.
        labels: (B, H, W) or (B, 1, H, W) integers 0..K - 1 or 255, or None. With labels each pixel's term is gated by
            G = max(0, ROI - highest probability), and 1 where the label is 255.
        weight: factor of the loss.
        sigma_rgb, sigma_xy: standard deviations of colours and of distances in full-size pixels, > 0.
        scale_factor: of the lower resolution, in (0, 1].
        recompute_scale_factor: as in `torch.nn.functional.interpolate`; they differ for sizes that `scale_factor`
            does not divide. ToCo passes True, AFA and rloss do not.
        gradient: "published", -2 · weight / B · G · (A S) · ROI, takes A for symmetric; "exact" uses its transpose:
            -weight / B · (G · (A S) + Aᵀ (G · S)) · ROI. Both take the gate for constant.
        backend: "auto", "cpu" (C++), "cuda" or "reference".

    Returns:
        (1,) float32 (the reference: float64 for double segmentations).

    Raises:
        InputError: a shape, a type, a device or a value is not as above, or a tensor holds NaN or infinity.

    Examples:
        >>> import torch
        >>> from amn_fast.ops.energy_loss import dense_energy
        >>> image, logits = 255 * torch.rand(1, 3, 20, 30), torch.rand(1, 2, 20, 30, requires_grad=True)
        >>> dense_energy(image, logits.softmax(1), torch.ones(1, 20, 30), weight=1e-7).backward()
    """
    operation = "dense_energy"
    sigma_rgb, sigma_xy = check_sigmas(operation, sigma_rgb, sigma_xy)
    scale = number(f"{operation}: scale_factor", scale_factor, "(0, 1]")
    choice(f"{operation}: gradient", gradient, GRADIENTS)
    labels = _check(operation, image, segmentations, rois, labels)
    if min(_low(side, scale) for side in image.shape[2:]) < 1:
        raise InputError(f"{operation}: image is {tuple(image.shape)}, expected at least one pixel at scale {scale}")
    check_no_tangent(operation, image, segmentations, rois)
    chosen = bilateral_backend(backend, operation, segmentations.device.type)
    recompute = bool(recompute_scale_factor)
    if chosen == "cpu":
        energies, _ = _energies(
            image.detach().float(),
            segmentations.float(),
            rois.detach().float(),
            None if labels is None else labels.to(torch.uint8),
            scale,
            recompute,
            sigma_rgb,
            sigma_xy * scale,
            gradient if segmentations.requires_grad and torch.is_grad_enabled() else "none",
        )
    else:
        double = chosen == "reference" and segmentations.dtype == torch.float64

        def run(small: Tensor, values: Tensor) -> Tensor:
            given = values if gradient == "exact" else values.detach()
            return apply_filter(small, given, sigma_rgb, sigma_xy * scale, chosen)

        energies = bilateral_reference.energy(
            image.detach().float(),
            segmentations if double else segmentations.float(),
            rois.detach().to(torch.float64 if double else torch.float32),
            labels,
            scale=scale,
            recompute=recompute or None,
            run=run,
        )
        if gradient == "published":  # twice the gradient with A S constant
            energies = 2 * energies - energies.detach()
    return (-weight / max(len(image), 1) * energies.sum()).reshape(1)


def energy_loss(
    image: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | Sequence[Sequence[int]] | None,
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    *,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """A dense energy loss of a normalised image and logits.

    Equivalent to: `get_energy_loss` of AFA and ToCo. It restores the image, makes a region from the crop boxes, and
    takes the softmax of the logits.

    Args:
        image: (B, 3, H, W) floating, (original - mean) / std.
        logits: (B, K, H, W) floating; differentiable.
        labels: (B, H, W) integers 0..K - 1 or 255.
        boxes: (B, 4) integers, the part of each crop that shows the image: first row, row after the last, first
            column, column after the last. None: all of it.
        loss: e.g. `nn.DenseEnergyLoss(weight=1e-7, sigma_rgb=15, sigma_xy=100, scale_factor=0.5)`.
        mean, std: three numbers each, of the normalisation, in units of 0..255.

    Returns:
        The loss, (1,).

    Raises:
        InputError: a shape, a type, a device or a value is not as above.

    Examples:
        >>> import torch, amn_fast
        >>> image, logits = torch.randn(1, 3, 20, 30), torch.randn(1, 2, 20, 30)
        >>> loss = amn_fast.nn.DenseEnergyLoss(weight=1e-7, sigma_rgb=15, sigma_xy=100, scale_factor=0.5)
        >>> amn_fast.energy_loss(image, logits, torch.zeros(1, 20, 30, dtype=torch.uint8), [[0, 20, 5, 30]], loss).shape
        torch.Size([1])
    """
    operation = "energy_loss"
    check_image(operation, image)
    if len(mean) != 3 or len(std) != 3:
        raise InputError(f"{operation}: mean and std have {len(mean)} and {len(std)} numbers, expected 3 each")
    shift, factor = (image.new_tensor(list(three)).view(1, 3, 1, 1) for three in (mean, std))
    region = torch.ones_like(image[:, 0])
    if boxes is not None:
        corners = torch.as_tensor(boxes)
        if corners.shape != (len(image), 4) or corners.is_floating_point():
            found = f"{tuple(corners.shape)} {corners.dtype}"
            raise InputError(f"{operation}: boxes is {found}, expected ({len(image)}, 4) integers")
        top, bottom, left, right = corners.to(image.device).T[:, :, None]
        y, x = (torch.arange(side, device=image.device)[None] for side in image.shape[2:])
        rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
        region = (rows[:, :, None] & columns[:, None, :]).to(image.dtype)
    return loss(image * factor + shift, logits.softmax(1), region, labels)


@torch.library.custom_op("amn_fast::dense_energies", mutates_args=())
def _energies(
    image: Tensor,
    probabilities: Tensor,
    regions: Tensor,
    labels: Tensor | None,
    scale: float,
    recompute: bool,
    sigma_rgb: float,
    sigma_xy: float,
    gradient: str,
) -> tuple[Tensor, Tensor]:
    """The energy of each image (B,), and its derivative with respect to the low-resolution probabilities."""
    energies, field = _empty(probabilities, scale)
    image, probabilities, regions = image.contiguous(), probabilities.contiguous(), regions.contiguous()
    labels = None if labels is None else labels.contiguous()
    if not field.numel():
        return energies.zero_(), field
    sizes, steps = _grid(image.shape[2:], scale, recompute)
    with input_errors("dense_energy"):
        sums = native_kernels().bilateral_energies(
            images=image.data_ptr(),
            probabilities=probabilities.data_ptr(),
            regions=regions.data_ptr(),
            labels=0 if labels is None else labels.data_ptr(),
            count=len(image),
            channels=probabilities.shape[1],
            sizes=sizes,
            steps=steps,
            sigma_rgb=sigma_rgb,
            sigma_xy=sigma_xy,
            gradient=gradient,
            field=field.data_ptr(),
            threads=torch.get_num_threads(),
        )
    return energies.copy_(torch.tensor(sums)), field


@_energies.register_fake
def _(
    image: Tensor,
    probabilities: Tensor,
    regions: Tensor,
    labels: Tensor | None,
    scale: float,
    recompute: bool,
    sigma_rgb: float,
    sigma_xy: float,
    gradient: str,
) -> tuple[Tensor, Tensor]:
    return _empty(probabilities, scale)


@torch.library.custom_op("amn_fast::dense_energies_backward", mutates_args=())
def _energies_backward(
    gradients: Tensor, field: Tensor, height: int, width: int, scale: float, recompute: bool
) -> Tensor:
    out = field.new_empty(*field.shape[:2], height, width)
    sizes, steps = _grid((height, width), scale, recompute)
    for one, low, factor in zip(out, field, gradients.tolist(), strict=True):
        native_kernels().bilateral_spread(
            field=low.data_ptr(),
            planes=len(low),
            sizes=sizes,
            steps=steps,
            factor=factor,
            out=one.data_ptr(),
            threads=torch.get_num_threads(),
        )
    return out


@_energies_backward.register_fake
def _(gradients: Tensor, field: Tensor, height: int, width: int, scale: float, recompute: bool) -> Tensor:
    return field.new_empty(*field.shape[:2], height, width)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    image, _, _, _, ctx.scale, ctx.recompute, *_ = inputs
    ctx.size = image.shape[2:]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, gradients: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (field,) = ctx.saved_tensors
    return None, _energies_backward(gradients, field, *ctx.size, ctx.scale, ctx.recompute), *(None,) * 7


_energies.register_autograd(_backward, setup_context=_setup_context)


def _low(side: int, scale: float) -> int:
    return math.floor(side * scale)


def _empty(probabilities: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = probabilities.shape
    field = probabilities.new_empty(batch, channels, _low(height, scale), _low(width, scale))
    return probabilities.new_empty(batch), field


def _grid(size: Sequence[int], scale: float, recompute: bool) -> tuple[list[int], list[float]]:
    """Full and low sizes, and the sources per target that `interpolate` uses."""
    low = [_low(side, scale) for side in size]
    steps = [side / small if recompute else 1 / scale for side, small in zip(size, low, strict=True)]
    return [*size, *low], steps


def _check(operation: str, image: Tensor, segmentations: Tensor, rois: Tensor, labels: Tensor | None) -> Tensor | None:
    """The labels as (B, H, W)."""
    check_image(operation, image)
    batch, _, height, width = image.shape
    if segmentations.ndim != 4 or segmentations.shape[1] < 1 or not segmentations.is_floating_point():
        found = f"{tuple(segmentations.shape)} {segmentations.dtype}"
        raise InputError(f"{operation}: segmentations is {found}, expected (B, K, H, W) of a floating type with K >= 1")
    if (len(segmentations), *segmentations.shape[2:]) != (batch, height, width):
        raise InputError(
            f"{operation}: segmentations is {tuple(segmentations.shape)}, expected ({batch}, K, {height}, {width}), "
            "as the image"
        )
    if rois.shape != (batch, height, width):
        raise InputError(f"{operation}: ROIs is {tuple(rois.shape)}, expected {(batch, height, width)}, as the image")
    if labels is not None and labels.ndim == 4 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels is not None and (labels.shape != rois.shape or labels.is_floating_point()):
        found = f"{tuple(labels.shape)} {labels.dtype}"
        raise InputError(f"{operation}: labels is {found}, expected {(batch, height, width)} integers, as the image")
    others = {"image": image, "ROIs": rois} | ({} if labels is None else {"labels": labels})
    for name, tensor in others.items():
        if tensor.device != segmentations.device:
            expected = f"{segmentations.device}, as the segmentations"
            raise InputError(f"{operation}: {name} is on {tensor.device}, expected {expected}")
    if labels is not None and labels.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_labels(operation, labels, segmentations.shape[1])
    return labels


def _check_labels(operation: str, labels: Tensor, channels: int) -> None:
    if not labels.numel():
        return
    lowest, highest = (int(end) for end in labels.masked_fill(labels == 255, 0).aminmax())
    if lowest < 0 or highest >= channels:
        found, expected = lowest if lowest < 0 else highest, f"0..{channels - 1} (the segmentations' channels) or 255"
        raise InputError(f"{operation}: labels hold {found}, expected {expected}")
