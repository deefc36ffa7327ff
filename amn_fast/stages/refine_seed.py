"""refine-seed: a dense CRF turns activations into seeds: sure foreground, sure background, 255 between.

This is the stage on the CAM, for training AMN; `refine_amn_seed` is the one on AMN's activations, for training IRN.
"""

import os

from amn_fast.config import Seed
from amn_fast.data.masks import write_mask
from amn_fast.data.store import read_activations
from amn_fast.ops.dense_crf import refine_seed
from amn_fast.stages import make_cam
from amn_fast.stages._stage import Stage, Workspace


def refine(work: Workspace, kind: str, settings: Seed) -> None:
    """Refine the activations in folder `kind` to seeds in `kind`_seed, one picture a thread."""
    work.require(kind)

    def one(id: str) -> None:
        path = work.item(f"{kind}_seed", id)
        if path.exists():
            return
        found = read_activations(work.item(kind, id), enlarge=False)
        image = work.dataset.image(id)
        seed = refine_seed(
            image, found.full, found.keys, fg=settings.fg, bg=settings.bg, bilateral=settings.bilateral, threads=1
        )
        write_mask(path, seed)

    work.for_each(f"seeds of {kind.upper()}", work.dataset.ids, one, threads=os.cpu_count() or 1)


stage = Stage(
    name="refine-seed",
    uses=("cam_seed",),
    needs=(make_cam.stage,),
    makes=("cam_seed",),
    work=lambda work: refine(work, "cam", work.config.cam_seed),
)
run = stage.run
