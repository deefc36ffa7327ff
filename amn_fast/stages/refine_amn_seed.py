"""refine-seed on AMN's activations, with thresholds of its own: the seeds that IRN learns from."""

from amn_fast.stages import make_amn_cam
from amn_fast.stages._stage import Stage
from amn_fast.stages.refine_seed import refine

stage = Stage(
    name="refine-amn-seed",
    uses=("amn_seed",),
    needs=(make_amn_cam.stage,),
    makes=("amn_seed",),
    work=lambda work: refine(work, "amn", work.config.amn_seed),
)
run = stage.run
