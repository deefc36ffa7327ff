"""Replace pydensecrf: change two imports, or call the operation directly."""

import numpy as np
from skimage import data

import amn_fast
from amn_fast.compat.pydensecrf import densecrf as dcrf  # was: import pydensecrf.densecrf as dcrf
from amn_fast.compat.pydensecrf.utils import unary_from_labels  # was: from pydensecrf.utils import unary_from_labels

image = data.chelsea()  # (300, 451, 3) uint8
height, width = image.shape[:2]
scribbles = np.zeros((height, width), np.int64)  # 0: unknown, 1: background, 2: cat
scribbles[:30, :] = 1
scribbles[80:220, 120:300] = 2

# pydensecrf's calls, unchanged
d = dcrf.DenseCRF2D(width, height, 2)
d.setUnaryEnergy(unary_from_labels(scribbles, 2, gt_prob=0.7, zero_unsure=True))
d.addPairwiseGaussian(sxy=3, compat=3)
d.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
before = np.argmax(d.inference(5), axis=0).reshape(height, width)

# the same in one call
unary = amn_fast.unary_from_labels(scribbles, 2, gt_prob=0.7, zero_unsure=True)
marginals = amn_fast.dense_crf(image, unary, gaussian=(3, 3), bilateral=(80, 13, 10), iterations=5)
after = marginals.argmax(0)

print(f"cat: {after.mean():.2f} of the image; identical argmax: {bool((before == after).all())}")
