"""Names of the reference checkpoints, both ways, and what is refused."""

import copy
import json
from collections import OrderedDict
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from amn_fast.errors import InputError  # noqa: E402
from amn_fast.models import AmnNet, CamNet, IrnNet, load_published, published_state_dict  # noqa: E402

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "amn" / "state_dict_keys.json").read_text())
NETS = {"cam_logits": lambda: CamNet(20), "amn_logits": lambda: AmnNet(20), "irn": IrnNet}


@pytest.fixture(scope="module")
def net():
    """The smallest of the three; tests leave it as it is."""
    torch.manual_seed(0)
    return CamNet(20)


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "cam.pth"
    torch.save(published_state_dict(net), path)
    return path


def saved(path, state):
    torch.save(state, path)
    return path


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_all_published_names_and_shapes_and_no_other():
    for kind in NETS:
        state = published_state_dict(NETS[kind]())
        assert {name: list(value.shape) for name, value in state.items()} == RECORDED[kind]


def test_what_we_save_is_loaded_as_it_was(tmp_path):
    for make in [lambda: CamNet(20), lambda: CamNet(80), lambda: AmnNet(80), IrnNet]:
        torch.manual_seed(1)
        before, after = make(), make()
        if isinstance(before, IrnNet):
            before.mean_displacement.copy_(torch.tensor([0.5, -2.0]))
        assert not same(before, after)
        load_published(saved(tmp_path / "net.pth", published_state_dict(before)), after)
        assert same(before, after)


def test_shared_tensors_are_stored_once(net, file):
    bytes_of_net = sum(value.numel() * value.element_size() for value in net.state_dict().values())
    assert file.stat().st_size < 1.05 * bytes_of_net + 500_000


def test_any_one_of_a_tensors_names_is_enough_and_module_may_stand_before_it(net, tmp_path):
    for start in ["resnet50.", "stage", "backbone."]:
        others = tuple({"resnet50.", "stage", "backbone."} - {start})
        state = {f"module.{k}": v for k, v in published_state_dict(net).items() if not k.startswith(others)}
        other = CamNet(20)
        load_published(saved(tmp_path / "net.pth", OrderedDict(state)), other)
        assert same(net, other)


def test_buffers_may_be_missing_and_imagenets_classifier_there(tmp_path):
    before, after = IrnNet(), IrnNet()
    after.mean_displacement.fill_(3)
    state = {k: v for k, v in published_state_dict(before).items() if not k.endswith("num_batches_tracked")}
    state = {k: v for k, v in state.items() if not (k.endswith("running_mean") and v.shape == (2,))}
    state["resnet50.fc.weight"], state["resnet50.fc.bias"] = torch.zeros(1000, 8), torch.zeros(1000)
    load_published(saved(tmp_path / "net.pth", state), after)
    assert same(before, after)
    assert after.mean_displacement.tolist() == [0, 0]


def edited(net, **changes):
    """The published state dict with some tensors replaced, or left out where the value is None."""
    state = {**published_state_dict(net), **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in state.items() if value is not None}


BIAS, COPY, OTHER = "resnet50__layer4__2__bn3__bias", "stage4__0__2__bn3__bias", "backbone__3__0__2__bn3__bias"


def test_what_does_not_fit_is_named_and_the_network_left_alone(net, tmp_path):
    for changes, complaint in [
        ({BIAS: None, COPY: None, OTHER: None}, r"missing: 1 \(resnet50\.layer4\.2\.bn3\.bias\)$"),
        ({"resnet50__extra": torch.zeros(2)}, r"unknown: 1 \(resnet50\.extra\)$"),
        ({COPY: torch.zeros(3)}, r"stage4\.0\.2\.bn3\.bias has shape \(3,\) instead of \(2048,\)\)$"),
        ({COPY: torch.zeros(2048, dtype=torch.int64)}, r"stage4\.0\.2\.bn3\.bias is torch\.int64 instead of torch\.fl"),
        ({BIAS: torch.full((2048,), torch.nan)}, r"resnet50\.layer4\.2\.bn3\.bias holds NaN or infinity"),
        (
            {OTHER: torch.ones(2048)},
            r"disagree: 1 \(resnet50\.layer4\.2\.bn3\.bias and backbone\.3\.0\.2\.bn3\.bias\)$",
        ),
    ]:
        other = CamNet(20)
        before = copy.deepcopy(other)
        with pytest.raises(InputError, match=rf"net\.pth do not fit CamNet: .*{complaint}"):
            load_published(saved(tmp_path / "net.pth", edited(net, **changes)), other)
        assert same(before, other)


def test_another_number_of_classes(file):
    with pytest.raises(InputError, match=r"cam\.pth are for 20 classes, expected 80, as the network has$"):
        load_published(file, CamNet(80))


def test_another_networks_file(file):
    for other in [lambda: AmnNet(20), IrnNet]:
        with pytest.raises(InputError, match=r"do not fit (AmnNet|IrnNet): missing: .*; unknown: "):
            load_published(file, other())


def test_another_backbone(file, tmp_path):
    net = CamNet(20, "efficientnet_lite0")
    for call in (lambda: load_published(file, net), lambda: published_state_dict(net)):
        with pytest.raises(InputError, match="belong to the backbone 'resnet50'"):
            call()


def test_a_truncated_file_is_refused(net, file, tmp_path):
    for kept in [0, 100, 0.5, 0.999]:
        content = file.read_bytes()
        short = tmp_path / "short.pth"
        short.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
        with pytest.raises(InputError, match=r"weights file .*short\.pth cannot be read as plain tensors"):
            load_published(short, net)
