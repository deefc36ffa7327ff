"""A batch of images on several threads: pass lists. The result does not depend on the number of threads."""

import os
import time

import numpy as np
from skimage import data

import amn_fast

rng = np.random.default_rng(0)
photo = data.astronaut()  # (512, 512, 3) uint8
images = [photo[top : top + 256, top : top + 320] for top in range(0, 160, 20)]
unaries = [amn_fast.unary_from_softmax(rng.dirichlet([1, 1, 1], (256, 320)).T.swapaxes(1, 2)) for _ in images]

results = {}
for threads in (1, os.cpu_count() or 1):
    start = time.perf_counter()
    results[threads] = amn_fast.dense_crf(images, unaries, threads=threads)
    print(f"{len(images)} images, {threads} threads: {time.perf_counter() - start:.2f} s")

first, last = results.values() if len(results) > 1 else (*results.values(), *results.values())
print(f"bit-identical: {all(np.array_equal(one, other) for one, other in zip(first, last, strict=True))}")
