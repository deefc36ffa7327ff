"""Prepared networks: the same activations on every network and backbone, nothing folded that another layer reads."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
import torch
from torch import nn

from amn_fast.data.augment import flipped_pair
from amn_fast.errors import InputError
from amn_fast.models import AmnNet, CamNet, DeepLabV2, IrnNet, MultiScale, prepare
from amn_fast.models.prepare import _foldable
from amn_fast.ops.merge import merge_cam

SIZE = (80, 101)
BACKBONES = (
    "resnet50",
    "efficientnet_lite0",
    "resnet18",
    "mobilenetv3_small_100",
    "resnetv2_50",
)  # the last with norms before convolutions
LABEL = torch.tensor([1.0, 0.0, 1.0])

ANSWERS = {
    "cam": (CamNet, lambda net, pair: merge_cam([net.activations(pair)], SIZE, [0, 1, 2])[1]),
    "amn": (AmnNet, lambda net, pair: net.activations(pair, LABEL).softmax(0)),
    "irn": (lambda n, backbone: IrnNet(backbone), lambda net, pair: net.edges(pair, 0)[0]),
    "deeplab": (DeepLabV2, lambda net, pair: MultiScale(net).eval().probabilities(pair[0], flip=True)),
}


def pair_of(size=SIZE):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    return lambda normalize: flipped_pair(image, 1.0, normalize)


def network(name, backbone):
    """Random weights and norms that have seen data: fresh ones are nearly the identity and would hide a wrong fold."""
    torch.manual_seed(1)
    net = ANSWERS[name][0](3, backbone).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for part, low, high in (("weight", 0.6, 1.2), ("bias", -0.1, 0.1), ("running_var", 0.5, 2)):
                    getattr(module, part).uniform_(low, high)
                module.running_mean.normal_(0, 0.1)
    return net, pair_of()(net.normalize if name == "deeplab" else net.backbone.normalize)


CASES = [(name, backbone) for name in ("cam", "amn", "irn") for backbone in BACKBONES[:4]]
CASES += [("cam", "resnetv2_50")]
CASES += [("deeplab", "resnet101"), ("deeplab", "efficientnet_lite0")]


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_a_prepared_network_gives_the_same_activations(name, backbone):
    net, pair = network(name, backbone)
    answer, prepared = ANSWERS[name][1], prepare(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        expected, found = answer(net, pair), answer(prepared, pair)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert expected.std() > 1e-3  # a constant would agree with everything
        half = answer(prepare(net, "bfloat16"), pair)
    assert half.dtype == torch.float32
    assert 0 < (half - expected).abs().max() < 0.1
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())  # a copy was folded
    norms = [m for m in prepared.modules() if isinstance(m, nn.BatchNorm2d)]
    assert bool(norms) == (backbone == "resnetv2_50")


class Odd(nn.Module):
    """One pair to fold; a convolution with two readers, one that is an output, and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(4)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(3) for _ in range(4)])

    def forward(self, x):
        plain = self.norms[0](self.convs[0](x))
        shared = self.convs[1](x)
        shown = self.convs[2](x)
        twice = self.convs[3](self.norms[3](self.convs[3](x)))
        return [plain + shared + self.norms[1](shared) + self.norms[2](shown) + twice, shown]


def test_only_what_no_other_layer_reads_is_folded():
    net = Odd().eval()
    assert _foldable(net) == [(net.convs[0], net.norms[0])]


def test_precisions_that_do_not_run_here():
    net = CamNet(3, "resnet18")
    with pytest.raises(InputError, match="precision is 'float16' on device 'cpu', expected 'bfloat16'"):
        prepare(net, "float16")
    with pytest.raises(InputError, match="precision is 'half', expected one of float32, bfloat16, float16"):
        prepare(net, "half")
