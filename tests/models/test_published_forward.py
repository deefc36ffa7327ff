"""The networks with the published structure give the published networks' recorded answers."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from amn_fast.models import AmnNet, CamNet, IrnNet  # noqa: E402
from amn_fast.ops.pair_loss import PairLossTerms, pair_loss  # noqa: E402

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


def published_name(name: str) -> str:
    name = name.replace("backbone.net.", "resnet50.")
    for ours, theirs in (("edge_layers", "fc_edge"), ("dp_layers", "fc_dp")):
        if name.startswith(ours):
            _, number, rest = name.split(".", 2)
            if theirs == "fc_edge" or number in "012345":
                return f"{theirs}{int(number) + 1}.{rest}"
            return (
                f"fc_dp7.{rest}"
                if number == "6"
                else f"fc_dp7.{3 if rest.startswith('0') else 4}.{rest.split('.', 1)[1]}"
            )
    return name


def with_formula_weights(net: torch.nn.Module) -> torch.nn.Module:
    state = {}
    for name, value in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        published = published_name(name)
        state[name] = formula(published, tuple(value.shape))
    net.load_state_dict(state, strict=False)
    return net.eval()


def close(ours: torch.Tensor, recorded: np.ndarray) -> None:
    assert ours.shape == recorded.shape
    assert np.abs(ours.numpy() - recorded).max() <= 1e-4 * np.abs(recorded).max()


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


@torch.no_grad()
def test_cam() -> None:
    net = with_formula_weights(CamNet(20))
    recorded = load("net_cam_logits")
    close(net(recorded["x"]), recorded["out"].numpy())
    recorded = load("net_cam_map")
    close(net.activations(recorded["x"]), recorded["out"].numpy())


@torch.no_grad()
def test_amn() -> None:
    net = with_formula_weights(AmnNet(20))
    recorded = load("net_amn_logits")
    close(net(recorded["x"], recorded["label"]), recorded["out"].numpy())
    recorded = load("net_amn_map")
    close(net.activations(recorded["x"], recorded["label"][0]), recorded["out"].numpy())


@torch.no_grad()
def test_irn() -> None:
    net = with_formula_weights(IrnNet())
    recorded = load("net_irn")
    edge, displacement = net.edges(recorded["x"], pad=160)
    close(edge, recorded["edge"].numpy())
    close(displacement, recorded["displacement"].numpy())


@torch.no_grad()
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_five_terms_of_the_irn_loss(backend: str) -> None:
    recorded = load("irn_losses")
    edges, displacements = with_formula_weights(IrnNet()).train()(recorded["x"])
    terms = pair_loss(edges, displacements, recorded["labels"][None], radius=10, backend=backend)
    for name in PairLossTerms._fields:
        assert getattr(terms, name).item() == pytest.approx(recorded[name].item(), rel=1e-6), name
