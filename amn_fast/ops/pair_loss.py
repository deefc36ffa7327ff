"""IRN's affinity and displacement losses over pairs of pixels (Ahn et al., CVPR 2019, equations 3 to 7)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from amn_fast._native import native
from amn_fast.errors import InputError
from amn_fast.kernels.pair_loss import reference
from amn_fast.ops._arrays import (
    check_tensor,
    forward_mode_backend,
    integer,
    kernel_backend,
    same_device,
    tensor_backend,
)


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

    The affinity of a pair is 1 - the highest sigmoid(edge logit) on the straight path between its pixels. Its target is
    1 for pairs of one label (bg_pos: both background, fg_pos: one class) and 0 for pairs of different labels (neg).
    The target of the difference of a pair's displacements is the pair's own offset on one class (dp_fg) and 0 on the
    background (dp_bg). A kind without pairs contributes 0. A pair with an ignored end contributes nothing, whatever
    its values; a NaN in a counted pair gives NaN. On the CPU it uses `torch.get_num_threads()` threads.

    Args:
        edge_logits: (B, 1, h, w) floating tensor, before the sigmoid.
        displacement: (B, 2, h, w) floating tensor, the y component first, in pixels of this grid.
        labels: (B, h, w) uint8 at this grid (stride 4): 0 is the background, 1.. are the classes; pairs with an end of
            `ignore_index` are left out.
        radius: at least 2; pairs are closer than this. The maps need h >= radius and w >= 2·radius - 1.
        ignore_index: 0..255.
        backend: "auto", "cpu" (C++), "triton" or "reference".

    Returns:
        Five scalars, float32 (float64 for double inputs); IRN minimises `.total`. They have gradients for the logits
        and the displacement; forward-mode derivatives are computed by the reference.

    Raises:
        InputError: a shape, type or value is not as above.
        BackendError: the requested backend cannot run here.

    Examples:
        >>> import torch, amn_fast
        >>> edge, displacement = torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 8, 8)
        >>> terms = amn_fast.pair_loss(edge, displacement, torch.ones(1, 8, 8, dtype=torch.uint8), radius=3)
        >>> round(terms.fg_pos.item(), 4), terms.neg.item()
        (0.6931, 0.0)
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

    For means over several batches or processes: add both, then call `pair_means`.
    """
    radius, ignore_index = _check(edge_logits, displacement, labels, radius, ignore_index)
    chosen = tensor_backend(backend, "pair_loss", edge_logits.device.type)
    if forward_mode_backend(chosen, backend, "pair_loss", edge_logits, displacement) == "reference":
        return reference.pair_sums(edge_logits, displacement, labels, radius, ignore_index)
    sums, counts, _ = _pair_sums(edge_logits, displacement, labels, radius, ignore_index, chosen)
    return sums, counts


@torch.library.custom_op("amn_fast::pair_sums", mutates_args=())
def _pair_sums(
    edge_logits: Tensor, displacement: Tensor, labels: Tensor, radius: int, ignore_index: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums, the counts, and seven integers per pixel, (B, 7, h, w), see kernels/pair_loss/cpu.hpp."""
    _check(edge_logits, displacement, labels, radius, ignore_index)
    edge, moved = _dense(edge_logits, displacement)
    labels = labels.contiguous()
    if kernel_backend(backend, "pair_loss", edge_logits.device.type) == "triton":
        from amn_fast.kernels.pair_loss import triton

        return triton.forward(edge, moved, labels, radius, ignore_index)
    tallies = labels.new_empty((len(labels), 7, *labels.shape[1:]), dtype=torch.int32)
    sums, counts = _problem(edge, moved, labels, radius, ignore_index).forward(tallies.data_ptr())
    return torch.tensor(sums, dtype=edge.dtype), torch.tensor(counts), tallies


@_pair_sums.register_fake
def _(
    edge_logits: Tensor, displacement: Tensor, labels: Tensor, radius: int, ignore_index: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    sums = edge_logits.new_empty(5, dtype=reference.arithmetic(edge_logits, displacement))
    counts = edge_logits.new_empty(3, dtype=torch.int64)
    return sums, counts, labels.new_empty((labels.shape[0], 7, *labels.shape[1:]), dtype=torch.int32)


@torch.library.custom_op("amn_fast::pair_sums_backward", mutates_args=())
def _pair_sums_backward(
    grad_sums: Tensor, edge_logits: Tensor, displacement: Tensor, tallies: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """The gradients of the edge logits and of the displacement: a loop over pixels, not over pairs."""
    _check_maps(edge_logits, displacement)
    expected = (len(edge_logits), 7, *edge_logits.shape[2:])
    if tallies.shape != expected or tallies.dtype != torch.int32 or grad_sums.shape != (5,):
        found = f"{tuple(tallies.shape)} {tallies.dtype} and {tuple(grad_sums.shape)}"
        raise InputError(f"pair_loss: tallies and grad_sums are {found}, expected {expected} torch.int32 and (5,)")
    same_device("pair_loss", edge_logits=edge_logits, tallies=tallies, grad_sums=grad_sums)
    edge, moved = _dense(edge_logits, displacement)
    tallies = tallies.contiguous()
    if kernel_backend(backend, "pair_loss", edge_logits.device.type) == "triton":
        from amn_fast.kernels.pair_loss import triton

        edge_gradient, moved_gradient = triton.backward(grad_sums, edge, tallies)
    else:
        edge_gradient, moved_gradient = torch.empty_like(edge), torch.empty_like(moved)
        problem = _problem(edge, moved, tallies, 0, 0)
        problem.backward(tallies.data_ptr(), grad_sums.tolist(), edge_gradient.data_ptr(), moved_gradient.data_ptr())
    return edge_gradient.to(edge_logits.dtype), moved_gradient.to(displacement.dtype)


@_pair_sums_backward.register_fake
def _(
    grad_sums: Tensor, edge_logits: Tensor, displacement: Tensor, tallies: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(edge_logits, memory_format=contiguous),
        torch.empty_like(displacement, memory_format=contiguous),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    edge_logits, displacement, _, _, _, ctx.backend = inputs
    _, counts, tallies = output
    ctx.mark_non_differentiable(counts, tallies)
    ctx.save_for_backward(edge_logits, displacement, tallies)


def _backward(ctx: Any, grad_sums: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_pair_sums_backward(grad_sums, *ctx.saved_tensors, ctx.backend), None, None, None, None


_pair_sums.register_autograd(_backward, setup_context=_setup_context)


def _dense(edge_logits: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the type of the arithmetic, contiguous."""
    dtype = reference.arithmetic(edge_logits, displacement)
    return edge_logits.to(dtype).contiguous(), displacement.to(dtype).contiguous()


def _problem(edge: Tensor, displacement: Tensor, labels: Tensor, radius: int, ignore_index: int) -> Any:
    """The C++ kernel's view of the tensors, which must outlive it."""
    assert native is not None  # `kernel_backend` has checked it
    kind = native.PairLoss64 if edge.dtype == torch.float64 else native.PairLoss32
    return kind(
        edge=edge.data_ptr(),
        displacement=displacement.data_ptr(),
        labels=labels.data_ptr(),
        shape=(edge.shape[0], *edge.shape[2:]),
        radius=radius,
        ignore_index=ignore_index,
        threads=torch.get_num_threads(),
    )


def _check_maps(edge_logits: Any, displacement: Any) -> tuple[int, int, int]:
    """Their batch size, height and width."""
    check_tensor("pair_loss: edge_logits", edge_logits)
    check_tensor("pair_loss: displacement", displacement)
    if edge_logits.ndim != 4 or edge_logits.shape[1] != 1 or not edge_logits.is_floating_point():
        found = f"{tuple(edge_logits.shape)} {edge_logits.dtype}"
        raise InputError(f"pair_loss: edge_logits is {found}, expected (B, 1, h, w) of a floating type")
    batch, _, height, width = edge_logits.shape
    if displacement.shape != (batch, 2, height, width) or not displacement.is_floating_point():
        found = f"{tuple(displacement.shape)} {displacement.dtype}"
        raise InputError(f"pair_loss: displacement is {found}, expected ({batch}, 2, {height}, {width}), floating")
    same_device("pair_loss", edge_logits=edge_logits, displacement=displacement)
    return batch, height, width


def _check(edge_logits: Any, displacement: Any, labels: Any, radius: Any, ignore_index: Any) -> tuple[int, int]:
    """`radius` and `ignore_index` as plain integers."""
    batch, height, width = _check_maps(edge_logits, displacement)
    check_tensor("pair_loss: labels", labels)
    if labels.shape != (batch, height, width) or labels.dtype != torch.uint8:
        found = f"{tuple(labels.shape)} {labels.dtype}"
        raise InputError(f"pair_loss: labels is {found}, expected ({batch}, {height}, {width}) torch.uint8")
    same_device("pair_loss", edge_logits=edge_logits, labels=labels)
    radius = integer("pair_loss: radius", radius, 2)
    if height < radius or width < 2 * radius - 1:
        expected = f"at least {radius} x {2 * radius - 1} for radius {radius}"
        raise InputError(f"pair_loss: the maps are {height} x {width} (height x width), expected {expected}")
    return radius, integer("pair_loss: ignore_index", ignore_index, 0, 255)
