"""CRF-RNN: mean-field iterations as a layer with learnt weights, for any batch size, with exact gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amn_fast.errors import InputError
from amn_fast.kernels.dense_crf.bilateral_reference import features
from amn_fast.ops._arrays import integer, number
from amn_fast.ops.bilateral_filter import bilateral_backend, check_image, check_no_tangent
from amn_fast.ops.lattice import Lattice


def crf_layer(
    image: Tensor,
    logits: Tensor,
    spatial: Tensor,
    bilateral: Tensor,
    compatibility: Tensor,
    *,
    iterations: int = 5,
    alpha: float = 160,
    beta: float = 3,
    gamma: float = 3,
    backend: str = "auto",
) -> Tensor:
    """Logits after mean-field iterations: logits <- U + M (W_s · K_s q / K_s 1 + W_b · K_b q / K_b 1).

    q is the softmax of the logits, K_s the spatial and K_b the bilateral kernel.

    Equivalent to: crfasrnn_pytorch's CrfRnn (Zheng et al., "Conditional Random Fields as Recurrent Neural Networks",
    ICCV 2015), whose gradients take the filters for symmetric; here they are exact.

    Args:
        image: (B, 3, H, W) floating or uint8 in 0..255.
        logits: (B, K, H, W) floating, U; differentiable.
        spatial, bilateral, compatibility: (K, K), W_s, W_b and M; differentiable.
        iterations: >= 0.
        alpha, beta: standard deviations of distances and colours of the bilateral kernel, > 0.
        gamma: standard deviation of distances of the spatial kernel, > 0.
        backend: "auto", "cpu" (C++), "cuda" or "reference".

    Returns:
        (B, K, H, W), float32 (the reference: float64 for double logits).

    Raises:
        InputError: a shape, a type, a device or a value is not as above.
    """
    operation = "crf_layer"
    iterations = integer(f"{operation}: iterations", iterations, 0)
    alpha, beta, gamma = (
        number(f"{operation}: {name}", value, "(0, inf)")
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma))
    )
    check_image(operation, image)
    batch, _, height, width = image.shape
    labels = logits.shape[1] if logits.ndim == 4 else 0
    if labels < 1 or logits.shape != (batch, labels, height, width) or not logits.is_floating_point():
        found = f"{tuple(logits.shape)} {logits.dtype}"
        raise InputError(f"{operation}: logits is {found}, expected ({batch}, K, {height}, {width}) of a floating type")
    for name, matrix in (("spatial", spatial), ("bilateral", bilateral), ("compatibility", compatibility)):
        if matrix.shape != (labels, labels):
            raise InputError(
                f"{operation}: {name} is {tuple(matrix.shape)}, expected {(labels, labels)}, one per label"
            )
    for name, tensor in (("logits", logits), ("the weights", spatial)):
        if tensor.device != image.device:
            raise InputError(f"{operation}: {name} on {tensor.device}, expected {image.device}, as the image")
    check_no_tangent(operation, image, logits, spatial, bilateral, compatibility)
    chosen = bilateral_backend(backend, operation, logits.device.type)
    double = chosen == "reference" and logits.dtype == torch.float64
    unary = logits if double else logits.float()
    threads = torch.get_num_threads()
    near = Lattice.of_grid(height, width, gamma, gamma, backend=chosen, threads=threads, like=image)
    kernels = []
    pixels = image.detach().float()
    alike = [Lattice(_matrix(features(one, beta, alpha)), backend=chosen, threads=threads) for one in pixels]
    for lattices, weights in (([near] * batch, spatial), (alike, bilateral)):
        mass = _filter(torch.ones_like(unary[:, :1]), lattices, False)
        kernels.append((lattices, mass, weights.to(unary.dtype)))
    mixing = compatibility.to(unary.dtype)
    current = unary
    for _ in range(iterations):
        q = current.softmax(1)
        message = sum(_mix(weights, _Filter.apply(q, lattices, False) / mass) for lattices, mass, weights in kernels)
        current = unary + _mix(mixing, message)
    return current


def _mix(matrix: Tensor, maps: Any) -> Tensor:
    return torch.einsum("ij,bjhw->bihw", matrix, maps)


def _matrix(values: Tensor) -> Any:
    return values if values.device.type == "cuda" else values.numpy()


def _filter(values: Tensor, lattices: Sequence[Lattice], transpose: bool) -> Tensor:
    filtered = []
    for maps, lattice in zip(values.detach().flatten(2), lattices, strict=True):
        if lattice.backend == "reference":  # keeps double precision
            result = lattice.handle.filter(maps.numpy(), transpose)
        else:
            result = lattice.filter(_matrix(maps), transpose, threads=torch.get_num_threads())
        filtered.append(torch.as_tensor(result))
    return torch.stack(filtered).view(values.shape) if filtered else values.clone()


class _Filter(torch.autograd.Function):
    """K · values of each image; its gradient is filtered by the transposed kernel."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lattices: list[Lattice], transpose: bool) -> Tensor:
        ctx.lattices, ctx.transpose = lattices, transpose
        return _filter(values, lattices, transpose)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Filter.apply(gradient, ctx.lattices, not ctx.transpose), None, None
