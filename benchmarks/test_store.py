"""Activation files: ours against the dictionaries that IRN's and AMN's code saves. Bytes stand in the case's name."""

from pathlib import Path

import numpy as np
import pytest
from racing import Method

from amn_fast.data.published import write_published
from amn_fast.data.store import Activations, read_activations, write_activations

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "amn"


def recorded(name: str) -> Activations:
    """A recorded image's activations, without the background's channel."""
    with np.load(GOLDEN / f"{name}.npz") as golden:
        first = len(golden["strided"]) - len(golden["valid"])
        return Activations(
            (golden["valid"] + 1).astype(np.uint8), golden["strided"][first:], golden["high_res"][first:]
        )


@pytest.mark.parametrize("name", ["merge_cam", "merge_amn"])
@pytest.mark.parametrize("compact", [False, True], ids=["full", "compact"])
def test_write_and_read(race, tmp_path, name, compact):
    activations = recorded(name)
    theirs, ours = tmp_path / "theirs.npy", tmp_path / "ours.npz"

    def published():
        write_published(theirs, activations, background=False)
        return np.load(theirs, allow_pickle=True)  # our own file: this is what IRN's code does

    def store():
        write_activations(ours, activations, compact=compact)
        return read_activations(ours)

    found = store()
    published()
    race.parity(activations.strided, found.strided, 1e-3)  # half precision
    if not compact:
        race.parity(activations.full, found.full, 1e-3)
    smaller = theirs.stat().st_size / ours.stat().st_size
    case = f"{name}, {'compact' if compact else 'full'}, {smaller:.1f}x smaller"
    race.run("activation store", case, Method("ours", store), Method("NumPy pickle", published))
