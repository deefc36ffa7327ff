"""Own images and their labels to masks, in one configuration. Tiny, so that it runs in seconds; not a useful model."""

import tempfile
from pathlib import Path

from amn_fast import pipeline
from amn_fast.config import Config
from amn_fast.data.demo import make_demo

folder = Path(tempfile.mkdtemp())
make_demo(folder / "data", n=8)  # images/ and labels.csv; put your own here

config = Config.model_validate(
    {
        "name": "tiny",
        "data": {"kind": "folder", "root": folder / "data", "options": {"images": "images", "labels": "labels.csv"}},
        "run": folder / "run",
        "backbone": "efficientnet_lite0",
        "mode": "fixed",
        "train_cam": {"epochs": 1, "batch": 4, "crop": 96, "long_side": [96, 128]},
        "cam": {"scales": [1.0]},
        "train_amn": {"epochs": 1, "batch": 4, "crop": 96},
        "amn": {"scales": [1.0]},
        "train_irn": {"epochs": 1, "batch": 4, "crop": 96, "displacement": False},
        "mask": {"exp_times": 3},
    }
)
pipeline.run(config)
print(f"{len(list((config.run / 'masks').glob('*.png')))} masks in {config.run / 'masks'}")
