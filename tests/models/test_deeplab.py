"""DeepLabV2 against a second statement of the published network: names, shapes, sizes, arithmetic, learning rates."""

import itertools

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from amn_fast.errors import InputError
from amn_fast.models import DeepLabV2, MultiScale, load_published, published_state_dict
from amn_fast.models.deeplab import PUBLISHED_COLOURS, learning_rate_groups, published_names, windows

torchvision = pytest.importorskip("torchvision")


def published_state(classes=21):
    """Names and shapes of the published weights, written down unit by unit."""
    shapes = {}

    def unit(name, outputs, inputs, kernel):
        shapes[f"{name}.conv.weight"] = (outputs, inputs, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (outputs,)
        shapes[f"{name}.bn.num_batches_tracked"] = ()

    unit("layer1.conv1", 64, 3, 7)
    inputs = 64
    for layer, blocks, width in ((2, 3, 64), (3, 4, 128), (4, 23, 256), (5, 3, 512)):
        for block in range(1, blocks + 1):
            name = f"layer{layer}.block{block}"
            unit(f"{name}.reduce", width, inputs, 1)
            unit(f"{name}.conv3x3", width, width, 3)
            unit(f"{name}.increase", width * 4, width, 1)
            if block == 1:
                unit(f"{name}.shortcut", width * 4, inputs, 1)
            inputs = width * 4
    for k in range(4):
        shapes[f"aspp.c{k}.weight"] = (classes, 2048, 3, 3)
        shapes[f"aspp.c{k}.bias"] = (classes,)
    return shapes


@pytest.fixture(scope="module")
def reference():
    """torchvision's ResNet-101 with the published changes made by hand, and norms that do something."""
    torch.manual_seed(0)
    net = torchvision.models.resnet101(weights=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.6)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    net.maxpool.ceil_mode = True
    for layer, stride, dilation in ((net.layer2, 2, 1), (net.layer3, 1, 2), (net.layer4, 1, 4)):
        layer[0].conv1.stride, layer[0].conv2.stride = (stride, stride), (1, 1)
        layer[0].downsample[0].stride = (stride, stride)
        for block in layer:
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
    return net.eval()


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "torchvision.safetensors"
    save_file(reference.state_dict(), path)
    return path


def test_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        net = DeepLabV2(20)
    assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == published_state()
    assert set(MultiScale(net).state_dict()) == {f"base.{name}" for name in published_state()}


def test_output_sizes():
    """321 -> 161 -> 81 -> 41; 375 -> 188 -> 95 -> 48; 500 -> 250 -> 126 -> 63; 320 -> 160 -> 81 -> 41."""
    for size, expected in [
        ((321, 321), (41, 41)),
        ((513, 513), (65, 65)),
        ((1, 1), (1, 1)),
        ((375, 500), (48, 63)),
        ((320, 322), (41, 41)),
    ]:
        with torch.device("meta"):
            net = DeepLabV2(20)
            assert net(torch.empty(2, 3, *size)).shape == (2, 21, *expected)


def test_arithmetic_is_that_of_the_changed_torchvision_network(reference, weights):
    torch.manual_seed(1)
    net = DeepLabV2(2, weights=weights).eval()
    image = np.random.default_rng(0).integers(0, 256, (65, 90, 3), np.uint8)
    # Padding stands for the mean colour of each network: here the reference is given ours, as pixels.
    colour = np.array([122.675, 116.669, 104.008]) / 255
    padded = np.tile(colour, (71, 96, 1))
    padded[3:-3, 3:-3] = image / 255
    x = torch.from_numpy((padded - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        features = F.conv2d(x, reference.conv1.weight, stride=2)
        features = reference.maxpool(reference.relu(reference.bn1(features)))
        for layer in (reference.layer1, reference.layer2, reference.layer3, reference.layer4):
            features = layer(features)
        expected = torch.zeros(1)
        for k, dilation in enumerate((6, 12, 18, 24)):
            convolution = net.get_submodule(f"aspp.c{k}")
            expected = expected + F.conv2d(
                features, convolution.weight, convolution.bias, padding=dilation, dilation=dilation
            )
        logits = net(PUBLISHED_COLOURS(image)[None])
    scale = expected.abs().max()
    torch.testing.assert_close(logits / scale, expected / scale, rtol=0, atol=1e-4)


def test_colours_are_bgr_grey_levels_minus_their_mean():
    image = np.array([[[10, 20, 30], [255, 0, 128]]], np.uint8)
    expected = image[..., ::-1].astype(np.float64) - (104.008, 116.669, 122.675)
    np.testing.assert_allclose(PUBLISHED_COLOURS(image).permute(1, 2, 0), expected, atol=1e-4)


def test_published_weights_come_back_with_and_without_their_prefix(tmp_path):
    torch.manual_seed(0)
    net = DeepLabV2(3)
    for prefix in ("", "base."):
        path = tmp_path / f"published{prefix}.safetensors"
        save_file({prefix + name: value for name, value in net.state_dict().items()}, path)
        again = DeepLabV2(3, weights=path)
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())


def test_a_classifier_of_other_classes_is_left_aside_and_missing_features_are_an_error(tmp_path):
    torch.manual_seed(0)
    state = DeepLabV2(3).state_dict()
    save_file(state, tmp_path / "three.safetensors")
    net = DeepLabV2(5, weights=tmp_path / "three.safetensors")
    assert torch.equal(
        net.state_dict()["layer5.block3.increase.conv.weight"], state["layer5.block3.increase.conv.weight"]
    )
    assert net.aspp.c0.weight.shape[0] == 6
    del state["layer4.block7.conv3x3.conv.weight"]
    save_file(state, tmp_path / "lacking.safetensors")
    with pytest.raises(InputError, match=r"layer4\.block7\.conv3x3\.conv\.weight"):
        DeepLabV2(5, weights=tmp_path / "lacking.safetensors")


def test_every_name_of_torchvision_is_translated(reference):
    translated = published_names(reference.state_dict())
    assert set(translated) - {"fc.weight", "fc.bias"} == {
        name for name in published_state() if not name.startswith("aspp.")
    }


def test_learning_rate_groups():
    with torch.device("meta"):
        net = DeepLabV2(20)
    features, weights, biases = learning_rate_groups(net, 2.5e-4, 5e-4)
    shapes = published_state()
    assert [tuple(p.shape) for p in features["params"]] == [
        shape for name, shape in shapes.items() if name.endswith("conv.weight")
    ]
    assert len(features["params"]) == 104
    assert [tuple(p.shape) for p in weights["params"]] == [(21, 2048, 3, 3)] * 4
    assert [tuple(p.shape) for p in biases["params"]] == [(21,)] * 4
    assert [group["lr"] for group in (features, weights, biases)] == pytest.approx([2.5e-4, 2.5e-3, 5e-3])
    assert [group["weight_decay"] for group in (features, weights, biases)] == [5e-4, 5e-4, 0]


def test_small_backbones():
    for backbone in ["efficientnet_lite0", "resnet18"]:
        net = MultiScale(DeepLabV2(3, backbone)).train()
        logits = net(torch.randn(2, 3, 65, 97))
        assert [tuple(part.shape) for part in logits] == [(2, 4, 5, 7), (2, 4, 2, 3), (2, 4, 3, 5), (2, 4, 5, 7)]
        groups = learning_rate_groups(net.base, 1.0, 1.0)
        trained = {id(p) for group in groups for p in group["params"]}
        norms = {id(p) for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
        assert norms
        assert trained == {id(p) for p in net.parameters()} - norms


def test_norms_stay_as_they_are_in_training():
    net = DeepLabV2(3, "resnet18").train()
    before = {name: value.clone() for name, value in net.state_dict().items() if "running" in name}
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    assert before
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert all(m.weight.grad is None for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert net.aspp.c0.weight.grad is not None


class Brightness(nn.Module):
    """Stands for a network: the image itself, at an eighth of its size."""

    def forward(self, x):
        return F.avg_pool2d(x, 8, ceil_mode=True)


def test_the_maximum_over_scales():
    """Written out with NumPy's maximum; smaller images have floor(side * scale) pixels a side."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 65, 97)
    net = MultiScale(Brightness(), (0.5, 0.75))
    full, half, most, largest = net(x)
    for logits, size in ((half, (32, 48)), (most, (48, 72))):
        small = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        assert torch.equal(logits, F.avg_pool2d(small, 8, ceil_mode=True))
    sides = [full, *(F.interpolate(m, size=full.shape[2:], mode="bilinear", align_corners=False) for m in (half, most))]
    np.testing.assert_array_equal(largest, np.maximum.reduce([side.numpy() for side in sides]))


def test_probabilities_of_an_image_and_its_flip():
    torch.manual_seed(0)
    net = MultiScale(DeepLabV2(3, "resnet18")).eval()
    x = torch.randn(3, 51, 70)
    plain, flipped = net.probabilities(x), net.probabilities(x, flip=True)
    assert plain.shape == flipped.shape == (4, 51, 70)
    torch.testing.assert_close(plain.sum(0), torch.ones(51, 70))
    assert not torch.allclose(plain, flipped)
    torch.testing.assert_close(net.probabilities(x.flip(-1), flip=True).flip(-1), flipped)


def test_a_single_pixel():
    net = MultiScale(DeepLabV2(3, "resnet18")).eval()
    assert net.probabilities(torch.zeros(3, 1, 1)).shape == (4, 1, 1)


@pytest.fixture(scope="module")
def published_file(tmp_path_factory):
    """A network's weights under the published names."""
    torch.manual_seed(3)
    net = DeepLabV2(20, "resnet101")
    state = published_state_dict(net)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        f"base.{name}": shape for name, shape in published_state().items()
    }
    path = tmp_path_factory.mktemp("published") / "deeplab.pth"
    torch.save({f"module.{name}": value for name, value in state.items() if "num_batches" not in name}, path)
    return net, path


def test_published_weights_are_loaded_into_a_network(published_file):
    before, path = published_file
    after = DeepLabV2(20, "resnet101")
    load_published(path, after)
    mine, theirs = after.state_dict(), before.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_published_weights_that_do_not_fit_are_refused(published_file, tmp_path):
    net, path = published_file
    with pytest.raises(InputError, match="are for 20 classes, expected 6, as the network has"):
        load_published(path, DeepLabV2(6, "resnet101"))
    with pytest.raises(InputError, match="belong to the backbone 'resnet101', and the network has another one"):
        load_published(path, DeepLabV2(20, "resnet18"))
    state = {name: value for name, value in net.state_dict().items() if not name.startswith("aspp.c1.bias")}
    save_file(state | {"aspp.c4.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"missing: 1 \(base\.aspp\.c1\.bias\); unknown: 1 \(aspp\.c4\.weight\)$"):
        load_published(tmp_path / "other.safetensors", net)


def test_windows_cover_the_image_and_overlap_by_a_third():
    for height, width, side in [(500, 375, 321), (321, 321, 321), (40, 1000, 96), (97, 96, 96)]:
        found = windows(height, width, side)
        count = np.zeros((height, width), int)
        for rows, columns in found:
            count[rows, columns] += 1
            assert (rows.stop - rows.start, columns.stop - columns.start) == (min(side, height), min(side, width))
            assert 0 <= rows.start < rows.stop <= height
            assert 0 <= columns.start < columns.stop <= width
        assert count.min() == 1
        for starts in (sorted({rows.start for rows, _ in found}), sorted({columns.start for _, columns in found})):
            assert all(second - first <= side * 2 // 3 for first, second in itertools.pairwise(starts))
        expected = [max(1, int(np.ceil((length - side) / (side * 2 // 3))) + 1) for length in (height, width)]
        assert len(found) == expected[0] * expected[1]


def test_windows_logits_are_averaged_where_they_overlap():
    for flip in [False, True]:
        torch.manual_seed(0)
        net = MultiScale(DeepLabV2(2, "resnet18")).eval()
        x = torch.randn(3, 70, 110)
        starts = {70: [0, 6], 110: [0, 23, 46]}  # windows of 64, at most 42 apart
        total, count = torch.zeros(3, 70, 110), torch.zeros(70, 110)
        for top in starts[70]:
            for left in starts[110]:
                part = x[:, top : top + 64, left : left + 64]
                with torch.no_grad():
                    logits = F.interpolate(net(part[None])[-1], size=(64, 64), mode="bilinear", align_corners=False)[0]
                    if flip:
                        turned = net(part.flip(-1)[None])[-1]
                        turned = F.interpolate(turned, size=(64, 64), mode="bilinear", align_corners=False)[0].flip(-1)
                        logits = (logits + turned) / 2
                total[:, top : top + 64, left : left + 64] += logits
                count[top : top + 64, left : left + 64] += 1
        torch.testing.assert_close(net.probabilities(x, flip, 64), torch.softmax(total / count, 0))
        assert torch.equal(net.probabilities(x, flip, 110)[:, :, :], net.probabilities(x, flip, 200))
        torch.testing.assert_close(net.probabilities(x, flip, 200), net.probabilities(x, flip))
