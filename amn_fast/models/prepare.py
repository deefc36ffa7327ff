"""Networks prepared for inference: batch norms folded into convolutions, channels last, a chosen precision."""

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amn_fast.errors import InputError
from amn_fast.models.backbone import FrozenNorms

Net = TypeVar("Net", bound=nn.Module)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Data type of the weights and features, by the value of the configuration's `precision`."""

_PROBE = 64
"""Side of the image that shows which convolution feeds which norm, in pixels."""


def prepare(net: Net, precision: str = "float32") -> Net:
    """Make a copy of a network that computes the same faster, for inference only.

    Every batch norm that alone reads the output of one convolution is folded into it; weights and features lie channels
    last. In float32, activations differ from those of `net` by rounding, below 1e-5. The result for an image depends
    on the number of threads inside PyTorch's operations, so callers fix it at one (`pipeline.engine` does).

    Args:
        net: `CamNet`, `AmnNet`, `IrnNet`, `DeepLabV2` or `MultiScale`, on any device.
        precision: "float32"; "bfloat16", which is faster on a GPU and on a CPU with AVX-512 BF16 or AMX; or "float16",
            on a GPU. Weights are converted once; activations come back in float32.

    Returns:
        a network of the same class in evaluation mode, without gradients.

    Raises:
        InputError: the precision is unknown or does not run on the network's device.

    Examples:
        >>> from amn_fast.models import CamNet
        >>> net = prepare(CamNet(3, "resnet18"), "bfloat16")
        >>> net.activations(torch.zeros(2, 3, 64, 96)).shape
        torch.Size([3, 4, 6])
    """
    device = next(net.parameters()).device
    if precision not in DTYPES:
        raise InputError(f"precision is {precision!r}, expected one of {', '.join(DTYPES)}")
    if precision == "float16" and device.type != "cuda":
        raise InputError(f"precision is 'float16' on device {device.type!r}, expected 'bfloat16' or 'float32' there")
    net = copy.deepcopy(net).eval().requires_grad_(False)
    dtype = DTYPES[precision]

    def convert(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.to(dtype=dtype, memory_format=torch.channels_last) for x in inputs)

    for part in [module for module in net.modules() if isinstance(module, FrozenNorms)]:
        for conv, norm in _foldable(part):
            _fold(part, conv, norm)
        part.register_forward_pre_hook(convert)
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        for conv in [module for module in net.modules() if type(module) is nn.Conv2d]:
            if conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 and conv.padding == (0, 0):
                _replace(net, conv, _Pointwise(conv))
    return net.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


class _Readers(TorchDispatchMode):
    """Counts how many operations read each tensor, by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def _foldable(net: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The pairs in which the norm is the only reader of the convolution's output, as a forward pass shows."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    found: list[tuple[int, nn.Conv2d, nn.BatchNorm2d]] = []
    calls: Counter[nn.Module] = Counter()

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] += 1
        source = id(inputs[0])
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module, output  # kept alive, so that no later tensor gets its id
            readers.count[id(output)] = 0  # an earlier one may have had it
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and source in made:
            found.append((source, made[source][0], module))  # type: ignore[arg-type]

    hooks = [m.register_forward_hook(after) for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    readers, probe = _Readers(), next(net.parameters()).new_zeros(1, 3, _PROBE, _PROBE)
    with torch.no_grad(), readers:
        outputs = {id(leaf) for leaf in tree_leaves(net(probe))}
    for hook in hooks:
        hook.remove()
    return [
        (conv, norm)
        for tensor, conv, norm in found
        if readers.count[tensor] == 1 and tensor not in outputs and calls[conv] == calls[norm] == 1
    ]


def _fold(net: nn.Module, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Put a norm into its convolution, in double precision; what is left of the norm is its activation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    weight, bias, mean, variance, gain, offset = (None if t is None else t.double() for t in tensors)
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, gain, offset)  # type: ignore[arg-type]
    conv.weight, conv.bias = (nn.Parameter(part.to(conv.weight.dtype), requires_grad=False) for part in fused)
    _replace(net, norm, nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity())


class _Pointwise(nn.Module):
    """A 1x1 convolution by oneDNN; on one thread, PyTorch takes a way of its own that is half as fast."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.mkldnn_convolution(x, self.weight, self.bias, (0, 0), (1, 1), (1, 1), 1)


def _replace(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in net.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
