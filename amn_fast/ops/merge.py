"""Merging activation maps over scales."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amn_fast._native import native
from amn_fast.errors import InputError
from amn_fast.kernels.merge import reference
from amn_fast.ops._arrays import tensor_backend

Array = NDArray[np.floating]


@overload
def merge_cam(
    maps: Sequence[Tensor], size: tuple[int, int], valid: Sequence[int], *, backend: str = "auto"
) -> tuple[Tensor, Tensor]: ...
@overload
def merge_cam(
    maps: Sequence[Array], size: tuple[int, int], valid: Sequence[int], *, backend: str = "auto"
) -> tuple[Array, Array]: ...
def merge_cam(maps, size, valid, *, backend="auto"):  # type: ignore[no-untyped-def]
    """Class activation maps of several scales, merged at stride 4 and at full size.

    The maps are resized bilinearly and summed; each class is divided by its maximum + 1e-5.

    Args:
        maps: one (C, h_s, w_s) floating map per scale, tensors or NumPy arrays.
        size: (H, W) of the picture.
        valid: the K classes of the picture, 0-based; only these are computed.
        backend: "auto", "cpu" (C++), "triton" or "reference".

    Returns:
        strided (K, (H - 1) // 4 + 1, (W - 1) // 4 + 1) and full (K, H, W), float32 (float64 for double maps), in
        [0, 1] for maps >= 0; tensors or arrays as the maps are.

    Raises:
        InputError: a shape or a value is not as above, or a map holds NaN or infinity.
    """
    tensors, size, classes = _checked("merge_cam", maps, size, valid, 0)
    chosen = tensor_backend(backend, "merge_cam", tensors[0].device.type)
    if chosen == "reference":
        if not torch.compiler.is_compiling():
            _check_finite("merge_cam", tensors)
        strided, full = reference.merge_cam(tensors, size, classes)
    else:
        strided, full = _merge_cam(tensors, *size, classes, chosen)
    return (strided, full) if isinstance(maps[0], Tensor) else (strided.numpy(), full.numpy())


@overload
def merge_amn(
    maps: Sequence[Tensor], size: tuple[int, int], valid: Sequence[int], seed: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]: ...
@overload
def merge_amn(
    maps: Sequence[Array],
    size: tuple[int, int],
    valid: Sequence[int],
    seed: NDArray[np.uint8],
    *,
    backend: str = "auto",
) -> tuple[Array, Array]: ...
def merge_amn(maps, size, valid, seed, *, backend="auto"):  # type: ignore[no-untyped-def]
    """AMN's logits of several scales, merged to activations at stride 4 and at full size.

    The logits are resized bilinearly and averaged, then softmax over all C + 1 channels. The background and the
    valid classes are kept, in the order keys = [0] + (valid + 1). Where the seed, sampled by Pillow's nearest rule,
    is not 0 (255 is not), each kept channel is (p - min) / (max - min + 1e-5) with its extremes over the picture.

    Args:
        maps: one (C + 1, h_s, w_s) floating map per scale, tensors or NumPy arrays.
        size: (H, W) of the picture.
        valid: the K classes of the picture, 0-based, without the background.
        seed: (H, W) uint8, the refined seed.
        backend: "auto", "cpu" (C++), "triton" or "reference".

    Returns:
        strided (K + 1, (H - 1) // 4 + 1, (W - 1) // 4 + 1) and full (K + 1, H, W), float32 (float64 for double
        maps), in [0, 1]; tensors or arrays as the maps are.

    Raises:
        InputError: a shape or a value is not as above, or a map holds NaN or infinity.
    """
    tensors, size, classes = _checked("merge_amn", maps, size, valid, 1)
    seed = torch.as_tensor(seed)
    if seed.shape != size or seed.dtype != torch.uint8:
        raise InputError(f"merge_amn: seed is {tuple(seed.shape)} {seed.dtype}, expected {size} torch.uint8")
    if seed.device != tensors[0].device:
        raise InputError(f"merge_amn: seed is on {seed.device}, expected {tensors[0].device}, as the maps")
    chosen = tensor_backend(backend, "merge_amn", tensors[0].device.type)
    if chosen == "reference":
        if not torch.compiler.is_compiling():
            _check_finite("merge_amn", tensors)
        strided, full = reference.merge_amn(tensors, size, classes, seed)
    else:
        strided, full = _merge_amn(tensors, *size, classes, seed, chosen)
    return (strided, full) if isinstance(maps[0], Tensor) else (strided.numpy(), full.numpy())


@torch.library.custom_op("amn_fast::merge_cam", mutates_args=())
def _merge_cam(maps: list[Tensor], height: int, width: int, valid: list[int], backend: str) -> tuple[Tensor, Tensor]:
    _check_finite("merge_cam", maps)
    padded = ((height - 1) // 16 + 1) * 16, ((width - 1) // 16 + 1) * 16
    if backend == "triton":
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
    _check_finite("merge_amn", maps)
    kept = [0, *(k + 1 for k in valid)]
    if backend == "triton":
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


def _outputs(maps: list[Tensor], height: int, width: int, kept: int) -> tuple[Tensor, Tensor]:
    strided = maps[0].new_empty(kept, *reference.strided_size(height, width))
    return strided, maps[0].new_empty(kept, height, width)


def _native_function(name: str, maps: list[Tensor]) -> Any:
    return getattr(native, f"{name}{64 if maps[0].dtype == torch.float64 else 32}")


def _check_finite(name: str, maps: list[Tensor]) -> None:
    for scale, m in enumerate(maps):
        if not bool(torch.isfinite(m).all()):
            raise InputError(f"{name}: maps[{scale}] holds NaN or infinity, expected finite numbers")


def _checked(
    name: str, maps: Sequence[Tensor] | Sequence[Array], size: tuple[int, int], valid: Sequence[int], background: int
) -> tuple[list[Tensor], tuple[int, int], list[int]]:
    """The maps as tensors of one type, the size and the classes as plain integers."""
    tensors = [torch.as_tensor(m) for m in maps]
    if not tensors:
        raise InputError(f"{name}: maps is empty, expected one map per scale")
    channels = f"C{' + 1' * background}"
    for scale, m in enumerate(tensors):
        if m.ndim != 3 or 0 in m.shape or not m.is_floating_point():
            found = f"{tuple(m.shape)} {m.dtype}"
            raise InputError(f"{name}: maps[{scale}] is {found}, expected ({channels}, h, w) of a floating type")
        if m.shape[0] != tensors[0].shape[0] or m.device != tensors[0].device:
            found = f"{m.shape[0]} channels on {m.device}"
            raise InputError(
                f"{name}: maps[{scale}] has {found}, expected {tensors[0].shape[0]} on {tensors[0].device}, as maps[0]"
            )
    height, width = (int(side) for side in size)
    if height < 1 or width < 1:
        raise InputError(f"{name}: size is {(height, width)}, expected a height and a width of at least 1")
    classes = [int(k) for k in valid]
    n_classes = tensors[0].shape[0] - background
    if any(not 0 <= k < n_classes for k in classes) or len(set(classes)) != len(classes):
        raise InputError(f"{name}: valid is {classes}, expected different classes in 0..{n_classes - 1}")
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return [m.detach().to(dtype) for m in tensors], (height, width), classes
