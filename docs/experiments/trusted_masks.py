"""What trusted masks do for the images that have none: mask mIoU with 0, 10, 25 and 50 of them, in the fast mode.

    python docs/experiments/trusted_masks.py msrc --root data/msrc_v2 --work runs/trusted_msrc
    python docs/experiments/trusted_masks.py voc6 --root data/voc12_animals_240 --ids train --work runs/trusted_voc6

The data set is that of a shipped configuration, all other settings are those of `fast`. The trusted masks are the
ground truth of the most doubtful images (doubt.csv of the first run), or of random ones. Each run starts from a copy of
the first, which has none: class activations and seeds are shared. Scored are the images without a trusted mask. They
differ from run to run, so the first run is scored on the same images too. Features of the frozen backbone are computed
once and kept in memory (about 3 MB for an image of 320 x 240).

`data/voc12_animals_240` is the set with a long side of 240 pixels, from `docs/experiments/derive_sets.py smaller`.
"""

import argparse
import csv
import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from amn_fast.config import Config, read_config
from amn_fast.data import open_dataset
from amn_fast.data.base import Dataset
from amn_fast.data.image import read_mask
from amn_fast.data.masks import write_mask
from amn_fast.metrics import Confusion
from amn_fast.models import HeadsNet
from amn_fast.pipeline import run_stage
from amn_fast.pipeline.dependencies import stages_of

COUNTS = (10, 25, 50)


def miou(folder: Path, dataset: Dataset, ids: Iterable[str]) -> float:
    """The mIoU of a run's masks on the images `ids`."""
    confusion = Confusion(len(dataset.classes))
    for id in ids:
        confusion.add(read_mask(folder / "masks" / f"{id}.png"), dataset.ground_truth(id))
    return round(confusion.scores().miou, 4)


def by_doubt(folder: Path, ids: tuple[str, ...]) -> list[str]:
    """`ids`, the most doubtful first; images without a class last."""
    with open(folder / "doubt.csv", newline="", encoding="utf-8") as file:
        doubt = {row["image"]: float(row["doubt"]) for row in csv.DictReader(file)}
    return sorted(ids, key=lambda id: (-doubt.get(id, -1.0), id))


def remember_features() -> None:
    """Compute the backbone's features of each input once: all runs have the same backbone."""
    compute, known = HeadsNet.levels, {}

    def levels(net: HeadsNet, x: Tensor) -> list[Tensor]:
        weight = next(net.backbone.parameters())
        key = (weight.dtype, tuple(x.shape), hashlib.sha256(x.numpy().tobytes()).digest())
        if key not in known:
            known[key] = compute(net, x)
        return list(known[key])

    HeadsNet.levels = levels  # type: ignore[method-assign]


def with_trusted(config: Config, dataset: Dataset, chosen: list[str], place: str) -> Path:
    """Run again with the ground truth of `chosen` as trusted masks; return the run folder."""
    folder, trusted = config.run.parent / place, config.run.parent / f"{place}_trusted"
    for id in chosen:
        write_mask(trusted / f"{id}.png", dataset.ground_truth(id))
    if not folder.exists():
        shutil.copytree(config.run, folder)
    changed = config.model_copy(update={"run": folder, "trusted": trusted})
    names = [stage.name for stage in stages_of(changed)]
    for name in names[names.index("train-amn") : names.index("make-mask") + 1]:
        run_stage(changed, name, overwrite=True)
    return folder


def main() -> None:
    """Run everything, print a line for each run, and write WORK/trusted_masks.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="the shipped configuration of the data set")
    parser.add_argument("--root", type=Path, required=True, help="the data set")
    parser.add_argument("--work", type=Path, required=True, help="for all runs; resumes in it")
    parser.add_argument("--ids", help="another list of images")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--draws", type=int, default=2, help="random choices for each number")
    parser.add_argument("--set", action="append", default=[], help="further settings, section.key=value")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = read_config(arguments.config, [f"data.root={arguments.root}"]).data
    if arguments.ids:
        data = data.model_copy(update={"options": data.options | {"ids": arguments.ids}})
    settings = [f"run={json.dumps(str(arguments.work / 'without'))}", *arguments.set]
    config = read_config("fast", settings).model_copy(update={"data": data})
    remember_features()
    start = time.monotonic()
    names = [stage.name for stage in stages_of(config)]
    for name in names[: names.index("check-run") + 1]:
        run_stage(config, name)
    dataset = open_dataset(data.kind, data.root, **data.options)
    orders = {"doubt": by_doubt(config.run, dataset.ids)}
    for draw in range(arguments.draws):
        orders[f"random_{draw}"] = np.random.default_rng(draw).permutation(dataset.ids).tolist()
    rows: list[dict[str, Any]] = [{"choice": "none", "count": 0, "without": miou(config.run, dataset, dataset.ids)}]
    print(rows[0], f"{time.monotonic() - start:.0f} s", flush=True)
    for count in arguments.counts:
        for choice, order in orders.items():
            start = time.monotonic()
            folder = with_trusted(config, dataset, order[:count], f"{choice}_{count}")
            before, after = (miou(one, dataset, order[count:]) for one in (config.run, folder))
            rows.append({"choice": choice, "count": count, "without": before, "with": after})
            print(rows[-1], f"{time.monotonic() - start:.0f} s", flush=True)
            record = {"images": len(dataset.ids), "settings": arguments.set, "rows": rows}
            (arguments.work / "trusted_masks.json").write_text(json.dumps({arguments.config: record}, indent=1))


if __name__ == "__main__":
    main()
