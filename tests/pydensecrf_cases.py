"""What tests of the stand-in for pydensecrf share: the recorder, a size, and a CRF as users set it up."""

import runpy
from pathlib import Path

from amn_fast.compat.pydensecrf import densecrf as dcrf

RECORDER = runpy.run_path(str(Path(__file__).with_name("compat") / "record_pydensecrf.py"))
H, W = 18, 23


def crf_of(unary, image, sxy=50, srgb=5, compat=10, cls=dcrf.DenseCRF2D):
    d = cls(W, H, len(unary))
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image, compat=compat)
    return d
