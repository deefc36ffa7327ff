"""The dense CRF against pydensecrf2: whole calls, parts, label maps in pairs, batches, pruning.

The call is IRN's and AMN's: energies from a label map, (sxy 3, compat 3), (sxy 50, srgb 5, compat 10), 10 iterations;
both sides start at the label map. Parity with our reference in NumPy is asserted on a crop, since at full size it takes
minutes, and with pydensecrf on the whole problem.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from crf_peer import densecrf, marginals, refined_seed, utils
from problems import COCO, VOC, label_map, name_of, photo
from racing import Method, Race, devices

from amn_fast.kernels.dense_crf import reference
from amn_fast.ops.dense_crf import DenseCRF, dense_crf, refine_seed, unary_from_labels
from amn_fast.ops.lattice import Lattice

TINY, CROP = (24, 32), (40, 56)
TOLERANCE = 1e-4
LARGE = (3000, 4000)


def energies(labels: np.ndarray, count: int) -> np.ndarray:
    return unary_from_labels(labels, count, 0.7, zero_unsure=False)


def parity_on_a_crop(race: Race, count: int) -> None:
    """Ours against our own reference on a small image."""
    image, labels = photo(*CROP), label_map(min(count, 5), *CROP)
    unary = energies(labels, min(count, 5))
    race.parity(dense_crf(image, unary, backend="reference"), dense_crf(image, unary), TOLERANCE)


CASES = [
    *((VOC, count, threads) for threads in (1, 2) for count in (2, 3, 21, 81)),
    pytest.param(COCO, 81, 1, marks=pytest.mark.full),
    pytest.param((1080, 1920), 3, 1, marks=pytest.mark.full),
    pytest.param(LARGE, 3, 1, marks=pytest.mark.full),
]


@pytest.mark.parametrize(("size", "count", "threads"), CASES)
def test_whole_call(race, profile, size, count, threads):
    size = TINY if profile == "quick" else size
    image, labels = photo(*size), label_map(count, *size)

    def ours():
        return dense_crf(image, energies(labels, count), threads=threads)

    parity_on_a_crop(race, count)
    race.parity(marginals(image, [labels], count)[0], ours(), TOLERANCE)
    theirs = Method("pydensecrf2", lambda: marginals(image, [labels], count))
    rounds = 3 if size == LARGE else None
    race.run("dense_crf", f"{name_of(size)}, {count} labels", Method("ours", ours, threads), theirs, rounds=rounds)


SCRIPT = """
    import sys
    sys.path.insert(0, {folder!r})
    from problems import label_map, photo
    image, labels = photo(*{size}), label_map({count}, *{size})
    {body}
"""
BODIES = {
    "ours": (
        "from amn_fast import dense_crf, unary_from_labels; "
        "dense_crf(image, unary_from_labels(labels, {count}, .7, zero_unsure=False), threads=1)"
    ),
    "pydensecrf2": "from crf_peer import marginals; marginals(image, [labels], {count})",
}


def test_first_call(race, profile):
    """A script with one call, from the start of Python to its end: both import NumPy and OpenCV."""
    size, count = TINY if profile == "quick" else VOC, 3
    folder = str(Path(__file__).parent)

    def method(name: str) -> Method:
        script = textwrap.dedent(SCRIPT).format(
            folder=folder, size=size, count=count, body=BODIES[name].format(count=count)
        )
        return Method(name, lambda: subprocess.run([sys.executable, "-c", script], check=True), in_process=False)

    parity_on_a_crop(race, count)
    race.run("dense_crf, one script", f"{name_of(size)}, {count} labels", method("ours"), method("pydensecrf2"))


@pytest.mark.parametrize("count", [3, pytest.param(21, marks=pytest.mark.full)])
def test_two_label_maps(race, profile, count):
    size = TINY if profile == "quick" else VOC
    image, maps = photo(*size), [label_map(count, *size, seed) for seed in (0, 1)]

    def ours():
        return DenseCRF(image, threads=1).marginals([energies(labels, count) for labels in maps])

    parity_on_a_crop(race, count)
    race.parity(marginals(image, maps, count), ours(), TOLERANCE)
    theirs = Method("pydensecrf2", lambda: marginals(image, maps, count))
    race.run("dense_crf, two maps", f"{name_of(size)}, {count} labels", Method("ours", ours), theirs)


@pytest.mark.parametrize("count", [21, 81])
def test_few_labels_of_many(race, profile, count):
    size = TINY if profile == "quick" else VOC
    image, present = photo(*size), np.linspace(0, count - 1, 3).astype(int)
    labels = present[label_map(3, *size)]

    def ours():
        return dense_crf(image, energies(labels, count), threads=1)

    parity_on_a_crop(race, count)
    race.parity(marginals(image, [labels], count)[0], ours(), TOLERANCE)
    theirs = Method("pydensecrf2", lambda: marginals(image, [labels], count))
    race.run("dense_crf, 3 labels present", f"{name_of(size)}, {count} labels", Method("ours", ours), theirs)


@pytest.mark.parametrize("count", [2, 21])
def test_batch_on_two_threads(race, profile, count):
    size = TINY if profile == "quick" else VOC
    images = [photo(*size, shift=31 * i) for i in range(8)]
    unaries = [energies(label_map(count, *size, i), count) for i in range(8)]
    race.parity(
        [dense_crf(image, unary, threads=1) for image, unary in zip(images, unaries, strict=True)],
        dense_crf(images, unaries, threads=2),
        0,
    )
    parity_on_a_crop(race, count)
    two = Method("ours", lambda: dense_crf(images, unaries, threads=2), 2)
    one = Method("ours on one thread", lambda: dense_crf(images, unaries, threads=1))
    race.run("dense_crf, 8 images", f"{name_of(size)}, {count} labels", two, one)


@pytest.mark.parametrize("count", [21, 81])
def test_pruning(race, profile, count):
    """Inference on a softmax of four prominent labels, without labels below a thousandth of the largest one."""
    size = TINY if profile == "quick" else VOC
    image, labels = photo(*size), label_map(4, *size)
    logits = np.full((count, *size), -9, np.float32)
    np.put_along_axis(logits, labels[None], 0, 0)
    softmax = np.exp(logits) / np.exp(logits).sum(0)
    crf, unary = DenseCRF(image, threads=1), -np.log(softmax)
    parity_on_a_crop(race, count)
    race.parity(crf.labels(unary), crf.labels(unary, prune=1e-3), 0)
    all_labels = Method("ours, no pruning", lambda: crf.labels(unary))
    race.run(
        "dense_crf, pruned",
        f"{name_of(size)}, 4 prominent labels of {count}",
        Method("ours", lambda: crf.labels(unary, prune=1e-3)),
        all_labels,
    )


@pytest.mark.parametrize("count", [2, 21])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("gpu", devices()[1:])
def test_batch_on_a_gpu(race, profile, gpu, batch, count):
    """Inputs and answers stay on the GPU; the other side is the CPU with all its cores."""
    import torch

    race.device = gpu
    size = TINY if profile == "quick" else VOC
    images = [photo(*size, shift=31 * i) for i in range(batch)]
    unaries = [energies(label_map(count, *size, i), count) for i in range(batch)]
    there = [[torch.from_numpy(one).to(gpu) for one in many] for many in (images, unaries)]
    ours = Method("ours", lambda: dense_crf(*there, backend="cuda"))
    race.parity(dense_crf(images, unaries), [one.cpu() for one in ours.run()], TOLERANCE)
    cpu = Method("ours on the CPU", lambda: dense_crf(images, unaries), os.cpu_count() or 1)
    race.run("dense_crf", f"{batch} of {name_of(size)}, {count} labels", ours, cpu)


def test_lattice(race, profile):
    size = TINY if profile == "quick" else VOC
    image = photo(*size)
    crop = photo(*CROP)
    values = np.random.default_rng(0).random((2, CROP[0] * CROP[1]), np.float32)
    features = reference.bilateral_features(crop, 50, 50, [5, 5, 5])
    race.parity(Lattice(features, backend="reference").filter(values), Lattice(features).filter(values), 1e-5)

    def theirs():
        crf = densecrf.DenseCRF2D(size[1], size[0], 2)
        crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image, compat=10)

    ours = Method("ours", lambda: Lattice.of_image(image, 50, 50, [5, 5, 5], threads=1))
    race.run("dense_crf, lattice", name_of(size), ours, Method("pydensecrf2", theirs))


@pytest.mark.parametrize("count", [3, 21])
def test_inference(race, profile, count):
    size = TINY if profile == "quick" else VOC
    image, labels = photo(*size), label_map(count, *size)
    height, width = labels.shape
    crf, unary = DenseCRF(image, threads=1), energies(labels, count)
    theirs = densecrf.DenseCRF2D(width, height, count)
    theirs.setUnaryEnergy(utils.unary_from_labels(labels, count, 0.7, zero_unsure=False))
    theirs.addPairwiseGaussian(sxy=3, compat=3)
    theirs.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image, compat=10)
    parity_on_a_crop(race, count)
    race.parity(np.array(theirs.inference(10)).reshape(unary.shape), crf.marginals(unary), TOLERANCE)
    ours = Method("ours", lambda: crf.marginals(unary))
    other = Method("pydensecrf2", lambda: theirs.inference(10))
    race.run("dense_crf, inference", f"{name_of(size)}, {count} labels", ours, other)


def test_refine_seed(race, profile):
    size = TINY if profile == "quick" else VOC
    image, labels = photo(*size), label_map(3, *size)
    activations = np.stack([np.where(labels == k, 0.8, 0.1) for k in (1, 2)]).astype(np.float32)
    small = photo(*CROP), np.ascontiguousarray(activations[:, : CROP[0], : CROP[1]])
    if profile != "quick":
        expected, found = (
            refine_seed(*small, [3, 7], fg=0.3, bg=0.05, backend=backend) for backend in ("reference", "auto")
        )
        race.parity(expected, found, 0)

    def ours():
        return refine_seed(image, activations, [3, 7], fg=0.3, bg=0.05, threads=1)

    def theirs():
        return refined_seed(image, activations, np.array([3, 7]), 0.3, 0.05)

    race.parity(theirs(), ours(), 0)
    race.run("refine_seed", f"{name_of(size)}, 2 classes", Method("ours", ours), Method("pydensecrf2", theirs))
