"""Marginals of random problems beside pydensecrf's, and which of the two is nearer to double precision.

Usage: python tests/compat/compare_pydensecrf.py SEED PROBLEMS. Needs pydensecrf2. Prints, for each normalization, the
problems, those beyond 1e-4, the largest difference, and in how many of these amn_fast is nearer.
"""

import sys
from collections import defaultdict

import numpy as np
import pydensecrf.densecrf as original

from amn_fast.compat.pydensecrf import densecrf as ours
from amn_fast.kernels.dense_crf import reference

NAMES = ("none", "before", "after", "symmetric")


def problem(rng):
    """The settings of a random problem; features are normalized symmetrically, as is the default."""
    (height, width), labels = (int(x) for x in rng.integers(1, 30, 2)), int(rng.choice([2, 3, 4, 5, 8, 21]))
    flat = np.full((height, width, 3), rng.integers(0, 256), np.uint8)
    slope = (np.indices((height, width)).sum(0)[..., None] * np.array([3, 5, 1]) % 256).astype(np.uint8)
    binary = np.repeat(rng.integers(0, 2, (height, width, 1)) * 255, 3, 2).astype(np.uint8)
    image = [rng.integers(0, 256, (height, width, 3)).astype(np.uint8), flat, slope, binary][rng.integers(0, 4)]
    unary = (rng.random((labels, height * width)) * float(rng.choice([0.1, 1, 10, 50]))).astype(np.float32)
    if rng.random() < 0.2:
        unary[rng.integers(0, labels), rng.integers(0, height * width)] = np.inf
    vector, matrix = (rng.normal(size=labels) * 2).astype("f4"), rng.normal(size=(labels, labels)).astype("f4")
    compat = [float(rng.choice([3, 10, 0.5, 0, -2, 4])), int(rng.integers(1, 11)), vector, matrix][rng.integers(0, 4)]
    normalization = int(rng.integers(0, 4))
    sx, sy = float(rng.choice([0.3, 1, 3, 10, 80])), float(rng.choice([0.3, 1, 3, 40]))
    grey = float(rng.choice([0.5, 3, 13, 60, 500]))
    colours = (grey, grey * 1.5, grey / 2)
    features = (rng.random((int(rng.integers(1, 9)), height * width)) * float(rng.choice([1, 20]))).astype(np.float32)
    gaussian, bilateral, others = rng.random(3) < (0.7, 0.7, 0.4)
    kernels = []
    if gaussian:
        kernels.append(("addPairwiseGaussian", ((sx, sy), compat), normalization))
    if bilateral:
        kernels.append(("addPairwiseBilateral", ((sx, sy), colours, image, compat), normalization))
    if others:
        kernels.append(("addPairwiseEnergy", (features, compat), 3))
    by_definition = []
    if gaussian:
        by_definition.append((reference.gaussian_features(height, width, sx, sy), normalization))
    if bilateral:
        by_definition.append((reference.bilateral_features(image, sx, sy, colours), normalization))
    if others:
        by_definition.append((features, 3))
    terms = [(one, compat, NAMES[kind]) for one, kind in by_definition]
    name = NAMES[normalization] if gaussian or bilateral else "symmetric"
    return (width, height, labels), unary, kernels, terms, int(rng.integers(0, 12)), name


def marginals(module, size, unary, kernels, iterations):
    crf = module.DenseCRF2D(*size)
    crf.setUnaryEnergy(unary)
    for method, arguments, normalization in kernels:
        getattr(crf, method)(*arguments, normalization=module.NormalizationType(normalization))
    return np.array(crf.inference(iterations))


def main(seed, problems):
    rng = np.random.default_rng(seed)
    found = defaultdict(lambda: [0, 0, 0.0, 0])
    for _ in range(problems):
        size, unary, kernels, terms, iterations, name = problem(rng)
        mine, theirs = (marginals(module, size, unary, kernels, iterations) for module in (ours, original))
        difference = float(np.abs(mine - theirs).max())
        row = found[name]
        row[0] += 1
        row[2] = max(row[2], difference)
        if difference > 1e-4:
            built = [reference.Kernel(reference.Lattice.build(one), compat, kind) for one, compat, kind in terms]
            exact = reference.mean_field(unary, built, iterations)
            row[1] += 1
            row[3] += bool(np.abs(mine - exact).max() < np.abs(theirs - exact).max())
    for name, (count, beyond, largest, nearer) in sorted(found.items()):
        print(f"{name}: {count} problems, {beyond} beyond 1e-4, largest {largest:.1e}, amn_fast nearer in {nearer}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
