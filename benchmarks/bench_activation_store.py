"""Bytes of our activation files against the published dictionaries, and what their precision does to seeds and masks.

Activations are the recorded ones (tests/golden/amn: 187 x 250 pixels, 2 classes). A compact file is 34 times
smaller before any compression: float32 at full size and at stride 4 against half precision at stride 4.

    python benchmarks/bench_activation_store.py
"""

import tempfile
from pathlib import Path

import numpy as np

from amn_fast.data.published import write_published
from amn_fast.data.store import Activations, read_activations, write_activations
from amn_fast.ops.dense_crf import refine_seed
from amn_fast.ops.mask import make_mask

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "amn"
FORMS = {"full": False, "compact": True}


def recorded(name: str) -> tuple[dict[str, np.ndarray], Activations]:
    """What was recorded, and its activations without the background's channel."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = dict(file)
    first = len(golden["strided"]) - len(golden["valid"])
    keys = (golden["valid"] + 1).astype(np.uint8)
    return golden, Activations(keys, golden["strided"][first:], golden["high_res"][first:])


def report_bytes(folder: Path, name: str, found: Activations) -> None:
    """Print the bytes of the published file and of both of ours."""
    write_published(folder / "a.npy", found, background=name == "merge_amn")
    published = (folder / "a.npy").stat().st_size
    text = f"{name} {found.full.shape[1]} x {found.full.shape[2]}: published {published} bytes"
    for form, compact in FORMS.items():
        write_activations(folder / f"{form}.npz", found, compact=compact)
        ours = (folder / f"{form}.npz").stat().st_size
        text += f"; {form} {ours}, {published / ours:.1f} x smaller"
    print(text)


def main() -> None:
    """Print everything."""
    folder = Path(tempfile.mkdtemp())
    for name, fg, bg in (("merge_cam", 0.30, 0.05), ("merge_amn", 0.45, 0.15)):
        golden, exact = recorded(name)
        report_bytes(folder, name, exact)
        seed = refine_seed(golden["image"], exact.full, exact.keys, fg=fg, bg=bg)
        labels = np.concatenate([[0], exact.keys])
        for form in FORMS:
            stored = read_activations(folder / f"{form}.npz")
            again = refine_seed(golden["image"], stored.full, exact.keys, fg=fg, bg=bg)
            print(f"  {form}: {(again != seed).sum()} of {seed.size} pixels of the seed differ")
            if "edge" in golden:
                masks = [make_mask(a.strided, golden["edge"][0], labels, seed.shape) for a in (exact, stored)]
                print(f"  {form}: {(masks[0] != masks[1]).sum()} of {seed.size} pixels of the mask differ")


if __name__ == "__main__":
    main()
