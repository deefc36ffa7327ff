"""Published checkpoints: their networks' recorded answers through our networks, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from amn_fast.models import AmnNet, CamNet, IrnNet, load_published  # noqa: E402
from amn_fast.ops.pair_loss import PairLossTerms, pair_loss  # noqa: E402

Net = CamNet | AmnNet | IrnNet
Published = Callable[[str, Net], Net]
GOLDEN = Path(__file__).parents[1] / "golden" / "amn"


def formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The stand-in weights of the recorded answers: a fixed function of the published tensor's name and shape."""
    h = sum((i + 1) * byte for i, byte in enumerate(name.encode())) % 10007
    n = int(np.prod(shape)) if shape else 1
    base = np.sin(np.arange(n, dtype=np.float64) * 12.9898 + h * 0.618) * 43758.5453
    u = (base - np.floor(base)) * 2 - 1
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        value = 1 + 0.1 * u
    elif leaf in ("running_mean", "bias"):
        value = 0.05 * u
    elif len(shape) == 1:
        value = 0.6 + 0.2 * u
    else:
        value = u * np.sqrt(3.0 / np.prod(shape[1:]))
    return torch.from_numpy(value.reshape(shape).astype(np.float32))


def checkpoint(recorded: str) -> dict[str, torch.Tensor]:
    """The published state dict under all its names, with the formula weights.

    Which names are one tensor follows from the order in the file alone: the published modules list the same tensors
    again, in the same order. A tensor's value is that of its first name.
    """
    shapes = {
        name: tuple(shape)
        for name, shape in json.loads((GOLDEN / "state_dict_keys.json").read_text())[recorded].items()
    }
    first: dict[str, str] = {}
    for owner, again in AGAIN:
        owners = [name for name in shapes if name.startswith(owner)]
        copies = [name for name in shapes if name.startswith(again)]
        assert len(copies) in (0, len(owners))
        first.update(zip(copies, owners, strict=bool(copies)))
    state: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_mean") and shape == (2,):  # what the recorded displacements have subtracted
            state[name] = formula("fc_dp7.4.running_mean", shape)
        else:
            state[name] = state[first[name]] if name in first else formula(name, shape)
    return state


AGAIN = (
    ("resnet50.", "stage"),
    ("resnet50.", "backbone."),
    ("classifier.", "newly_added.0."),
    ("label_enc.", "newly_added.1."),
    ("fc_edge", "edge_layers."),
    ("fc_dp", "dp_layers."),
)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Puts the recorded state dict of that name into a network, by way of a file."""
    folder = tmp_path_factory.mktemp("published")

    def load(recorded: str, net: Net) -> Net:
        path = folder / f"{recorded}.pth"
        if not path.exists():
            torch.save(checkpoint(recorded), path)
        load_published(path, net)
        return net.eval()

    return load


def close(ours: torch.Tensor, recorded: np.ndarray) -> None:
    assert ours.shape == recorded.shape
    assert np.abs(ours.numpy() - recorded).max() <= 1e-4 * np.abs(recorded).max()


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


@torch.no_grad()
def test_cam(published: Published) -> None:
    net = published("cam_logits", CamNet(20))
    recorded = load("net_cam_logits")
    close(net(recorded["x"]), recorded["out"].numpy())
    recorded = load("net_cam_map")
    close(net.activations(recorded["x"]), recorded["out"].numpy())


@torch.no_grad()
def test_amn(published: Published) -> None:
    net = published("amn_logits", AmnNet(20))
    recorded = load("net_amn_logits")
    close(net(recorded["x"], recorded["label"]), recorded["out"].numpy())
    recorded = load("net_amn_map")
    close(net.activations(recorded["x"], recorded["label"][0]), recorded["out"].numpy())


@torch.no_grad()
def test_irn(published: Published) -> None:
    net = published("irn", IrnNet())
    recorded = load("net_irn")
    edge, displacement = net.edges(recorded["x"], pad=160)
    close(edge, recorded["edge"].numpy())
    close(displacement, recorded["displacement"].numpy())


@torch.no_grad()
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_five_terms_of_the_irn_loss(published: Published, backend: str) -> None:
    recorded = load("irn_losses")
    edges, displacements = published("irn", IrnNet()).train()(recorded["x"])
    terms = pair_loss(edges, displacements, recorded["labels"][None], radius=10, backend=backend)
    for name in PairLossTerms._fields:
        assert getattr(terms, name).item() == pytest.approx(recorded[name].item(), rel=1e-6), name


def test_the_recorded_maps_have_the_weights_of_the_recorded_logits() -> None:
    recorded = json.loads((GOLDEN / "state_dict_keys.json").read_text())
    assert recorded["cam_map"] == recorded["cam_logits"]
    assert recorded["amn_map"] == recorded["amn_logits"]
