"""Settings of masks from other methods' files."""

from dataclasses import dataclass
from typing import Any

from amn_fast.crf_folder import PRESETS, Settings
from amn_fast.ops._arrays import choice, flag, integer, number

METHODS = ("clip-es", "seco", "excel", "irn", "probabilities", "sam-votes")
REFINERS = ("crf", "par", "walk", "none")
IGNORE = 255


@dataclass(frozen=True)
class RefineSettings(Settings):
    """Everything but the files that a mask depends on. The CRF's parameters are those of `crf_folder.Settings`.

    Attributes:
        method: whose files, one of METHODS.
        refiner: "crf"; "par", pixel-adaptive refinement; "walk", the random walk with IRN's edges; or "none".
        background: the background's score where the method has none: irn's threshold, and that of the walk.
        confidence: pixels whose largest probability is below become 255; 0 keeps all.
        bgr_minus_mean: give the CRF the image as deeplab-pytorch and CLIP-ES do, BGR minus the mean, cast to uint8,
            where negative numbers wrap around.
        par_iterations: steps of PAR.
        beta, exp_times: of the random walk.
    """

    method: str = "probabilities"
    refiner: str = "crf"
    background: float = 0.25
    confidence: float = 0.0
    bgr_minus_mean: bool = False
    par_iterations: int = 10
    beta: float = 10
    exp_times: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("method", self.method, METHODS)
        choice("refiner", self.refiner, REFINERS)
        number("background", self.background, "[0, 1]")
        number("confidence", self.confidence, "[0, 1]")
        flag("bgr_minus_mean", self.bgr_minus_mean)
        integer("par_iterations", self.par_iterations, 0)

    @classmethod
    def of_method(cls, method: str, **changes: Any) -> "RefineSettings":
        """The published settings of a method, with changes.

        CLIP-ES, SeCo and ExCEL use deeplab's kernels, IRN its own; CLIP-ES turns pixels with a confidence below 0.95
        to 255. Votes need no refiner.
        """
        choice("method", method, METHODS)
        gaussian, bilateral = PRESETS["irn" if method in ("irn", "probabilities", "sam-votes") else "deeplab"]
        published: dict[str, Any] = {"method": method, "gaussian": gaussian, "bilateral": bilateral}
        if method == "clip-es":
            published["confidence"] = 0.95
        if method == "sam-votes":
            published["refiner"] = "none"
        return cls(**published | changes)
