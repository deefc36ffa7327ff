"""Calls through pydensecrf's interface whose answers `tests/golden/compat/pydensecrf.npz` records.

    python tests/compat/record_pydensecrf.py tests/golden/compat/pydensecrf.npz

records them, in an environment with pydensecrf2 1.1; the tests make the same calls through amn_fast.
"""

import sys

import numpy as np

H, W = 20, 27


def photo(random, h=H, w=W, channels=3):
    y, x = np.mgrid[:h, :w]
    waves = [120 + 80 * np.sin(x / 9 + c) + 40 * np.cos(y / 7 + 2 * c) for c in range(channels)]
    return np.ascontiguousarray(
        np.clip(np.stack(waves, -1) + random.randn(h, w, channels) * 6, 0, 255).astype(np.uint8)
    )


def probabilities(random, n, h=H, w=W):
    p = random.rand(n, h, w) ** 3 + 1e-3
    for _ in range(2):
        p = (p + np.roll(p, 1, 1) + np.roll(p, 1, 2)) / 3
    return (p / p.sum(0)).astype(np.float32)


COMPATIBILITIES = {
    "scalar": 4,
    "negative": -2.5,
    "multiple_of_identity": -4 * np.eye(3, dtype=np.float32),
    "constant_vector": np.full(3, -4, np.float32),
    "vector": np.array([-1, -2, -3], np.float32),
    "asymmetric": np.array([[-3, 1, 0.5], [0, -2, 0.3], [0.1, 0.2, -4]], np.float32),
}


def marginals(dcrf, utils):
    """Name -> Q (n_labels, N), or a divergence per point."""
    out = {}
    random = np.random.RandomState(7)
    for h, w in [(1, 1), (1, 17), (17, 1), (2, 3)]:
        for n in (1, 2, 3, 21, 81):
            image, p = photo(random, h, w), probabilities(random, n, h, w)
            d = dcrf.DenseCRF2D(w, h, n)
            d.setUnaryEnergy(utils.unary_from_softmax(p))
            d.addPairwiseGaussian(3, 3)
            d.addPairwiseBilateral(20, 10, image, 5)
            out[f"size_{h}x{w}_{n}"] = np.array(d.inference(5))
            out[f"size_kl_{h}x{w}_{n}"] = d.klDivergence(d.inference(2)) / (h * w)

    image, unary = photo(random), utils.unary_from_softmax(probabilities(random, 3))
    for normalization in dcrf.NormalizationType:
        for kernel in dcrf.KernelType:
            d = dcrf.DenseCRF2D(W, H, 3)
            d.setUnary(dcrf.ConstUnary(unary))
            d.addPairwiseGaussian((2, 4), 4, kernel, normalization)
            d.addPairwiseBilateral((20, 10), (5, 10, 20), image, 4, kernel=kernel, normalization=normalization)
            out[f"normalization_{int(normalization)}_{int(kernel)}"] = np.array(d.inference(4))
    for name, compat in COMPATIBILITIES.items():
        d = dcrf.DenseCRF(W * H, 3)
        d.setUnaryEnergy(unary)
        d.addPairwiseEnergy(utils.create_pairwise_gaussian((2, 4), (H, W)), compat)
        d.addPairwiseEnergy(utils.create_pairwise_bilateral((20, 10), (5, 10, 20), image, 2), compat=compat)
        out[f"compat_{name}"] = np.array(d.inference(4))

    d = dcrf.DenseCRF2D(W, H, 3)
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian(3, 3)
    d.addPairwiseBilateral(50, 5, image, 10)
    Q, tmp1, tmp2 = d.startInference()
    for step in range(4):
        out[f"step_{step}"] = np.array(Q)
        out[f"step_kl_{step}"] = d.klDivergence(Q) / (H * W)
        d.stepInference(Q, tmp1, tmp2)
    for count in (0, -1, 4):
        out[f"inference_{count}"] = np.array(d.inference(count))

    d = dcrf.DenseCRF2D(W, H, 3)
    out["no_unary_no_pairwise"] = np.array(d.inference(2))
    d.addPairwiseGaussian(3, 3)
    out["no_unary"] = np.array(d.inference(2))
    out["no_unary_kl"] = d.klDivergence(d.inference(2)) / (H * W)
    d.setUnaryEnergy(unary)
    d.setUnaryEnergy(2 * unary)
    out["unary_set_twice"] = np.array(d.inference(3))
    forbidden = unary.copy()
    forbidden[1, 100] = np.inf
    d.setUnaryEnergy(forbidden)
    out["one_infinity_0"], out["one_infinity"] = np.array(d.inference(0)), np.array(d.inference(3))
    d.setUnary(dcrf.LogisticUnary(random.rand(3, 4).astype(np.float32), random.rand(4, H * W).astype(np.float32)))
    out["logistic"] = np.array(d.inference(3))

    six = (random.rand(12, 15, 6) * 255).astype(np.uint8)
    d = dcrf.DenseCRF(180, 4)
    d.setUnaryEnergy(utils.unary_from_softmax(probabilities(random, 4, 12, 15)))
    d.addPairwiseEnergy(utils.create_pairwise_bilateral((5, 5), (40,) * 6, six, 2), 6)
    out["six_channels"] = np.array(d.inference(5))

    labels = (np.arange(30) < 12).astype(int)[None].repeat(20, 0)
    labels[5:9, 20:24] = 1
    edge = np.where(np.arange(30) < 15, 30, 200)[None, :, None].repeat(20, 0).repeat(3, 2).astype(np.uint8)
    pictures = {"constant": np.full((20, 30, 3), 77, np.uint8), "edge": edge}
    pictures["noise"] = (random.rand(20, 30, 3) * 256).astype(np.uint8)
    for name, picture in pictures.items():
        for listed in (2, 10):
            d = dcrf.DenseCRF2D(30, 20, listed)
            d.setUnaryEnergy(utils.unary_from_labels(labels, listed, 0.7, zero_unsure=False))
            d.addPairwiseGaussian(3, 3)
            d.addPairwiseBilateral(50, 5, picture, 10)
            out[f"picture_{name}_{listed}"] = np.array(d.inference(10))
    return out


def helpers(utils):
    """Name -> what a function of pydensecrf.utils gives; to be equal bit for bit."""
    out = {}
    random = np.random.RandomState(8)
    labels, p = random.randint(0, 4, (5, 7)), probabilities(random, 3, 5, 7)
    out["labels_unsure"] = utils.unary_from_labels(labels, 3, 0.7)
    out["labels_sure"] = utils.unary_from_labels(labels, 4, 0.7, zero_unsure=False)
    out["labels_absent"] = utils.unary_from_labels(labels, 10, 0.6)
    out["compute_unary"] = utils.compute_unary(labels, 3)
    wild = 1.5 * p
    wild[0, 0, 0], wild[1, 0] = 0, -0.5
    wild[2, 1, 1] = 1.2
    zero = p.copy()
    zero[0, 0, 0] = 0
    for kind in ("f4", "f8", "f2"):
        out[f"softmax_{kind}"] = utils.unary_from_softmax(wild.astype(kind))
        out[f"softmax_scale_{kind}"] = utils.unary_from_softmax(wild.astype(kind), scale=0.7)
        out[f"softmax_clip_{kind}"] = utils.unary_from_softmax(wild.astype(kind), clip=1e-2)
        out[f"softmax_scale_only_{kind}"] = utils.unary_from_softmax(p.astype(kind), 0.3, None)
        with np.errstate(divide="ignore"):
            out[f"softmax_unclipped_{kind}"] = utils.unary_from_softmax(zero.astype(kind), clip=None)
    out["softmax_whole"] = utils.unary_from_softmax(np.eye(3, dtype=int)[:, :, None])
    with np.errstate(divide="ignore"):
        out["softmax_to_unary"] = utils.softmax_to_unary(zero)
        out["softmax_to_unary_scaled"] = utils.softmax_to_unary(zero, 0.6)
    image = photo(random, 5, 7)
    for name, sdims in {"tuple": (2.3, 3.7), "array": np.array([2.3, 3.7])}.items():
        out[f"gaussian_{name}"] = utils.create_pairwise_gaussian(sdims, (5, 7))
        for kind in ("u1", "f4", "f8", "i2"):
            out[f"bilateral_{name}_{kind}"] = utils.create_pairwise_bilateral(
                sdims, (13, 7.7, 3), image.astype(kind), 2
            )
    out["gaussian_volume"] = utils.create_pairwise_gaussian([2, 3, 4], [2, 3, 4])
    out["bilateral_one_deviation"] = utils.create_pairwise_bilateral((2, 3), schan=9.9, img=image, chdim=2)
    out["bilateral_fewer_deviations"] = utils.create_pairwise_bilateral((3,), (13,), image, 2)
    out["bilateral_grey"] = utils.create_pairwise_bilateral((3, 4), (13,), image[..., 0])
    out["bilateral_volume"] = utils.create_pairwise_bilateral((3, 4, 5), 2.5, image)
    out["bilateral_channels_first"] = utils.create_pairwise_bilateral((3, 4), (2, 3, 4), image.transpose(2, 0, 1), 0)
    out["bilateral_channels_between"] = utils.create_pairwise_bilateral((3, 4), 3.3, image, -2)
    return out


if __name__ == "__main__":
    import pydensecrf.densecrf
    import pydensecrf.utils

    answers = marginals(pydensecrf.densecrf, pydensecrf.utils)
    answers |= {f"utils_{name}": value for name, value in helpers(pydensecrf.utils).items()}
    np.savez_compressed(sys.argv[1], **answers)
