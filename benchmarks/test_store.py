"""Activation files: ours against the dictionaries that IRN's and AMN's code saves. Bytes stand in the case's name.

Also what half precision, and leaving out the maps at full size, change in seeds and masks.
"""

from pathlib import Path

import numpy as np
import pytest
from racing import Method

from amn_fast.data.published import write_published
from amn_fast.data.store import Activations, read_activations, write_activations
from amn_fast.ops.mask import make_mask
from amn_fast.ops.refine_seed import refine_seed

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
        write_published(theirs, activations, background=name == "merge_amn")
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


@pytest.mark.parametrize(
    ("name", "fg", "bg", "seed_full", "seed_compact"),
    # the share of pixels that may differ: maps at full size that are upsampled from stride 4 only approximate seeds
    [("merge_cam", 0.30, 0.05, 0.001, 0.1), ("merge_amn", 0.45, 0.15, 0.001, 0.005)],
)
def test_pixels_of_seeds_and_masks_that_differ(tmp_path, name, fg, bg, seed_full, seed_compact):
    with np.load(GOLDEN / f"{name}.npz") as golden:
        image, edge = golden["image"], golden["edge"][0] if "edge" in golden else None
    exact = recorded(name)
    labels = np.concatenate([[0], exact.keys])
    seed = refine_seed(image, exact.full, exact.keys, fg=fg, bg=bg)
    for compact, allowed in ((False, seed_full), (True, seed_compact)):
        write_activations(tmp_path / "a.npz", exact, compact=compact)
        stored = read_activations(tmp_path / "a.npz")
        changed = [np.mean(refine_seed(image, stored.full, exact.keys, fg=fg, bg=bg) != seed)]
        assert changed[0] <= allowed
        if edge is not None:
            masks = [make_mask(found.strided, edge, labels, seed.shape) for found in (exact, stored)]
            changed.append(np.mean(masks[0] != masks[1]))
            assert changed[1] <= 0.001
        print(f"{name}, {'compact' if compact else 'full'}: {[f'{share:.3%}' for share in changed]} differ")
