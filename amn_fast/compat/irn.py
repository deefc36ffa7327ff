"""IRN's functions under their published names and signatures."""

from typing import TYPE_CHECKING

from amn_fast.ops.random_walk import random_walk

if TYPE_CHECKING:
    import torch


def propagate_to_edge(
    x: "torch.Tensor", edge: "torch.Tensor", radius: int = 5, beta: float = 10, exp_times: int = 8
) -> "torch.Tensor":
    """The affinity random walk, as published in IRN's `misc/indexing.py`.

    Args:
        x: (..., h, w) activations, usually (K, h, w).
        edge: (1, h, w) or (h, w) edge map in [0, 1].

    Returns:
        (K, 1, h, w), K the product of x's leading dimensions, on x's device. Unlike the published function it needs no
        GPU, takes any layout and dtype, and its memory grows with the pixels, not their square.

    Raises:
        InputError: a shape or value is not as above.
    """
    h, w = x.shape[-2:]
    maps = x.reshape(-1, h, w)
    return random_walk(maps, edge, radius=radius, beta=beta, exp_times=exp_times).reshape(-1, 1, h, w)
