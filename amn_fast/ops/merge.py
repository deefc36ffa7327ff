"""Merging activation maps over scales, as IRN's and AMN's inference does."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amn_fast._native import native
from amn_fast.errors import InputError
from amn_fast.kernels.merge import reference
from amn_fast.ops._arrays import (
    as_tensor,
    forward_mode_backend,
    image_size,
    integer,
    is_tensor,
    kernel_backend,
    same_device,
    tensor_backend,
)

Array = NDArray[np.floating]
Size = tuple[int, int]


@overload
def merge_cam(
    maps: Sequence[Tensor], size: Size, valid: Sequence[int], *, backend: str = "auto"
) -> tuple[Tensor, Tensor]: ...
@overload
def merge_cam(
    maps: Sequence[Array], size: Size, valid: Sequence[int], *, backend: str = "auto"
) -> tuple[Array, Array]: ...
def merge_cam(maps, size, valid, *, backend="auto"):  # type: ignore[no-untyped-def]
    """Class activation maps of several scales, merged at stride 4 and at full size.

    The maps are resized bilinearly and summed; each class is divided by its maximum + 1e-5. On the CPU it uses
    `torch.get_num_threads()` threads; on a GPU it waits once for the device, to check the values.

    Args:
        maps: one (C, h_s, w_s) map of a floating dtype per scale, tensors on one device or NumPy arrays, finite.
        size: (H, W) of the image.
        valid: the K classes of the image, 0..C - 1, without duplicates; only these are computed.
        backend: "auto", "cpu" (C++), "triton" or "reference".

    Returns:
        strided (K, (H - 1) // 4 + 1, (W - 1) // 4 + 1) and full (K, H, W), float32 (float64 for double maps), in
        [0, 1] for maps >= 0; tensors or arrays like the maps. Tensors have gradients, computed by the reference.

    Raises:
        InputError: a shape, type or value is not as above.
        BackendError: the requested backend cannot run here.

    Examples:
        >>> import numpy as np, amn_fast
        >>> maps = [np.random.rand(20, 4, 6), np.random.rand(20, 8, 12)]
        >>> strided, full = amn_fast.merge_cam(maps, (64, 96), valid=[3, 7])
        >>> strided.shape, full.shape
        ((2, 16, 24), (2, 64, 96))
    """
    tensors, size, classes = _checked("merge_cam", maps, size, valid, 0)
    chosen = tensor_backend(backend, "merge_cam", tensors[0].device.type)
    if forward_mode_backend(chosen, backend, "merge_cam", *tensors) == "reference":
        _check_finite("merge_cam", tensors)
        results = reference.merge_cam(tensors, size, classes)
    else:
        results = _merge_cam(tensors, *size, classes, chosen)
    return results if is_tensor(maps[0]) else tuple(part.numpy() for part in results)


@overload
def merge_amn(
    maps: Sequence[Tensor], size: Size, valid: Sequence[int], seed: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]: ...
@overload
def merge_amn(
    maps: Sequence[Array], size: Size, valid: Sequence[int], seed: NDArray[np.uint8], *, backend: str = "auto"
) -> tuple[Array, Array]: ...
def merge_amn(maps, size, valid, seed, *, backend="auto"):  # type: ignore[no-untyped-def]
    """AMN's logits of several scales, merged to activations at stride 4 and at full size.

    The logits are resized bilinearly and averaged, then softmax over all C + 1 channels. The background and the valid
    classes are kept, in the order [0] + (valid + 1). Where the seed, sampled by Pillow's nearest rule, is not 0 (255 is
    not), each kept channel is (p - min) / (max - min + 1e-5) with its extremes over the image. Threads and waits are
    those of `merge_cam`.

    Args:
        maps: one (C + 1, h_s, w_s) map of a floating dtype per scale, tensors on one device or NumPy arrays, finite.
        size: (H, W) of the image.
        valid: the K classes of the image, 0..C - 1 (without the background), without duplicates.
        seed: (H, W) uint8, the refined seed, on the device of the maps.
        backend: "auto", "cpu" (C++), "triton" or "reference".

    Returns:
        strided (K + 1, (H - 1) // 4 + 1, (W - 1) // 4 + 1) and full (K + 1, H, W), float32 (float64 for double maps),
        in [0, 1]; tensors or arrays like the maps. Tensors have gradients, computed by the reference.

    Raises:
        InputError: a shape, type or value is not as above.
        BackendError: the requested backend cannot run here.

    Examples:
        >>> import numpy as np, amn_fast
        >>> maps = [np.random.randn(21, 4, 6), np.random.randn(21, 8, 12)]
        >>> strided, full = amn_fast.merge_amn(maps, (64, 96), valid=[3], seed=np.zeros((64, 96), np.uint8))
        >>> strided.shape, full.shape
        ((2, 16, 24), (2, 64, 96))
    """
    tensors, size, classes = _checked("merge_amn", maps, size, valid, 1)
    seed = as_tensor("merge_amn: seed", seed)
    _check_seed(tensors, seed, size)
    chosen = tensor_backend(backend, "merge_amn", tensors[0].device.type)
    if forward_mode_backend(chosen, backend, "merge_amn", *tensors) == "reference":
        _check_finite("merge_amn", tensors)
        results = reference.merge_amn(tensors, size, classes, seed)
    else:
        results = _merge_amn(tensors, *size, classes, seed, chosen)
    return results if is_tensor(maps[0]) else tuple(part.numpy() for part in results)


@torch.library.custom_op("amn_fast::merge_cam", mutates_args=())
def _merge_cam(maps: list[Tensor], height: int, width: int, valid: list[int], backend: str) -> tuple[Tensor, Tensor]:
    maps, (height, width), valid = _checked("merge_cam", maps, (height, width), valid, 0)
    _check_finite("merge_cam", maps)
    padded = ((height - 1) // 16 + 1) * 16, ((width - 1) // 16 + 1) * 16
    if kernel_backend(backend, "merge_cam", maps[0].device.type) == "triton":
        from amn_fast.kernels.merge import triton

        grid = reference.strided_size(height, width)
        return triton.cam(maps, valid, grid, grid), triton.cam(maps, valid, (height, width), padded)
    strided, full = _outputs(maps, height, width, len(valid))
    dense = [m.contiguous() for m in maps]
    run = _native_function("merge_cam", maps)
    for out, extent in ((strided, strided.shape[1:]), (full, padded)):
        run(
            maps=[(m.data_ptr(), *m.shape[1:]) for m in dense],
            kept=valid,
            out=out.data_ptr(),
            size=out.shape[1:],
            extent=extent,
            threads=torch.get_num_threads(),
        )
    return strided, full


@_merge_cam.register_fake
def _(maps: list[Tensor], height: int, width: int, valid: list[int], backend: str) -> tuple[Tensor, Tensor]:
    return _outputs(maps, height, width, len(valid))


@torch.library.custom_op("amn_fast::merge_amn", mutates_args=())
def _merge_amn(
    maps: list[Tensor], height: int, width: int, valid: list[int], seed: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    maps, (height, width), valid = _checked("merge_amn", maps, (height, width), valid, 1)
    _check_seed(maps, seed, (height, width))
    _check_finite("merge_amn", maps)
    kept = [0, *(k + 1 for k in valid)]
    if kernel_backend(backend, "merge_amn", maps[0].device.type) == "triton":
        from amn_fast.kernels.merge import triton

        grid = reference.strided_size(height, width)
        return triton.amn(maps, kept, seed, grid), triton.amn(maps, kept, seed, (height, width))
    strided, full = _outputs(maps, height, width, len(kept))
    dense, seed = [m.contiguous() for m in maps], seed.contiguous()
    run = _native_function("merge_amn", maps)
    for out in (strided, full):
        run(
            maps=[(m.data_ptr(), *m.shape[1:]) for m in dense],
            channels=maps[0].shape[0],
            kept=kept,
            seed=seed.data_ptr(),
            seed_size=seed.shape,
            out=out.data_ptr(),
            size=out.shape[1:],
            threads=torch.get_num_threads(),
        )
    return strided, full


@_merge_amn.register_fake
def _(
    maps: list[Tensor], height: int, width: int, valid: list[int], seed: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return _outputs(maps, height, width, len(valid) + 1)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    maps, ctx.height, ctx.width, ctx.valid, *seed, _ = inputs
    ctx.n_maps = len(maps)
    ctx.save_for_backward(*maps, *seed)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    """By the reference: merging belongs to inference, where gradients are rare."""
    maps, seed = ctx.saved_tensors[: ctx.n_maps], ctx.saved_tensors[ctx.n_maps :]
    with torch.enable_grad():
        leaves = [m.detach().requires_grad_() for m in maps]
        merge = reference.merge_amn if seed else reference.merge_cam
        results = merge(leaves, (ctx.height, ctx.width), ctx.valid, *seed)
        found = list(torch.autograd.grad(results, leaves, gradients))
    return found, *(None for _ in range(4 + len(seed)))


_merge_cam.register_autograd(_backward, setup_context=_setup_context)
_merge_amn.register_autograd(_backward, setup_context=_setup_context)


def _outputs(maps: list[Tensor], height: int, width: int, kept: int) -> tuple[Tensor, Tensor]:
    strided = maps[0].new_empty(kept, *reference.strided_size(height, width))
    return strided, maps[0].new_empty(kept, height, width)


def _native_function(name: str, maps: list[Tensor]) -> Any:
    return getattr(native, f"{name}{64 if maps[0].dtype == torch.float64 else 32}")


def _check_finite(name: str, maps: list[Tensor]) -> None:
    if torch.compiler.is_compiling():
        return
    finite = torch.stack([torch.isfinite(m).all() for m in maps]).tolist()  # one wait for the device
    if not all(finite):
        raise InputError(f"{name}: maps[{finite.index(False)}] holds NaN or infinity, expected finite numbers")


def _checked(name: str, maps: Any, size: Any, valid: Any, background: int) -> tuple[list[Tensor], Size, list[int]]:
    """The maps as tensors of one dtype, the size and the classes as plain integers."""
    if not isinstance(maps, list | tuple) or not maps:
        found = "empty" if isinstance(maps, list | tuple) else f"a {type(maps).__name__}"
        raise InputError(f"{name}: maps is {found}, expected a list of one map per scale")
    tensors = [as_tensor(f"{name}: maps[{scale}]", m) for scale, m in enumerate(maps)]
    channels = f"C{' + 1' * background}"
    for scale, m in enumerate(tensors):
        if m.ndim != 3 or 0 in m.shape or not m.is_floating_point():
            found = f"{tuple(m.shape)} {m.dtype}"
            raise InputError(f"{name}: maps[{scale}] is {found}, expected ({channels}, h, w) of a floating type")
        if m.shape[0] != tensors[0].shape[0]:
            found = f"{m.shape[0]} channels"
            raise InputError(f"{name}: maps[{scale}] has {found}, expected {tensors[0].shape[0]}, as maps[0] has")
    same_device(name, **{f"maps[{scale}]": m for scale, m in enumerate(tensors)})
    n_classes = tensors[0].shape[0] - background
    classes = valid.tolist() if is_tensor(valid) or isinstance(valid, np.ndarray) else valid
    if not isinstance(classes, list | tuple):
        raise InputError(f"{name}: valid is {type(valid).__name__}, expected a list of classes")
    classes = [integer(f"{name}: valid[{i}]", k, 0, n_classes - 1) for i, k in enumerate(classes)]
    if len(set(classes)) != len(classes):
        raise InputError(f"{name}: valid is {classes}, expected no duplicates")
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return [m.to(dtype) for m in tensors], image_size(f"{name}: size", size), classes


def _check_seed(maps: list[Tensor], seed: Tensor, size: Size) -> None:
    if seed.shape != size or seed.dtype != torch.uint8:
        raise InputError(f"merge_amn: seed is {tuple(seed.shape)} {seed.dtype}, expected {size} torch.uint8")
    same_device("merge_amn", maps=maps[0], seed=seed)
