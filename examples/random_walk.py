"""Propagate your activations with IRN's random walk: they spread inside an object and stop at its edges."""

import cv2
import numpy as np

import amn_fast
from amn_fast.data.demo import compose

_, mask = compose(0)
height, width = (-(-side // 4) for side in mask.shape)  # activations and edges have a quarter of the image's size
inside = cv2.resize((mask > 0).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)

# Stand-ins for a network: an activation on a small part of the object, an edge map along its outline.
y, x = np.argwhere(inside == 1).mean(0)
rows, columns = np.mgrid[:height, :width]
activation = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 50).astype(np.float32)
edge = np.clip(4 * inside * (1 - inside), 0, 1)

propagated = amn_fast.random_walk(activation[None], edge, radius=5, beta=10, exp_times=6)[0]

before, after = (float((maps[inside == 1] > 0.2 * maps.max()).mean()) for maps in (activation, propagated))
print(f"share of the object above a fifth of the maximum: {before:.2f} -> {after:.2f}")
kept = [float(maps[inside > 0].sum() / maps.sum()) for maps in (activation, propagated)]
print(f"mass inside the object: {kept[0]:.2f} -> {kept[1]:.2f}")
