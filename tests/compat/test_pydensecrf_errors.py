"""Clear errors where pydensecrf crashed."""

import os

import numpy as np
import pytest

from amn_fast.compat.pydensecrf import densecrf as dcrf
from amn_fast.errors import InputError
from pydensecrf_cases import H, W, crf_of


def test_impossible_sizes_are_named():
    for make, message in [
        (lambda: dcrf.DenseCRF2D(0, 3, 2), "w is 0"),
        (lambda: dcrf.DenseCRF2D(3, -1, 2), "h is -1"),
        (lambda: dcrf.DenseCRF2D(3, 3, 0), "nlabels is 0"),
        (lambda: dcrf.DenseCRF(0, 2), "nvar is 0"),
        (lambda: dcrf.DenseCRF(float("nan"), 2), "nvar is nan"),
        (lambda: dcrf.DenseCRF("12", 2), "nvar is '12'"),
    ]:
        with pytest.raises(InputError, match=message):
            make()


def test_wrong_images_are_named_with_the_remedy():
    for shape, kind, message in [
        ((H, W), "u1", "repeat a grey"),
        ((H, W, 1), "u1", "repeat a grey"),
        ((H, W, 4), "u1", "create_pairwise_bilateral"),
        ((W, H, 3), "u1", "takes the width first"),
        ((3, H, W), "u1", r"transpose\(1, 2, 0\)"),
        ((H, W + 1, 3), "u1", rf"expected \({H}, {W}, 3\)"),
        ((H, W, 3), "f4", "scale and convert"),
        ((H, W, 3), "i4", "scale and convert"),
        ((H, W, 3), "u2", "scale and convert"),
    ]:
        d = dcrf.DenseCRF2D(W, H, 3)
        with pytest.raises(InputError, match=message):
            d.addPairwiseBilateral(50, 5, np.zeros(shape, kind), 10)


def test_wrong_unaries_are_named():
    for shape, message in [
        ((3, H * W - 1), "unary has shape"),
        ((4, H * W), rf"expected \(3, {H * W}\) or \(3, {H}, {W}\)"),
        ((H * W, 3), "transpose it"),
        ((3, W, H), rf"expected \(3, {H * W}\) or \(3, {H}, {W}\)"),
        ((H, W, 3), "unary has shape"),
        ((3 * H * W,), "expected"),
        ((3, 1, H, W), "expected"),
    ]:
        d = dcrf.DenseCRF2D(W, H, 3)
        with pytest.raises(InputError, match=message):
            d.setUnaryEnergy(np.zeros(shape, np.float32))
        assert (d.inference(1) == np.float32(1 / 3)).all()  # nothing was taken


def test_a_volume_checks_the_number_of_points():
    d = dcrf.DenseCRF(4 * 5 * 6, 2)
    d.setUnaryEnergy(np.zeros((2, 20, 6)))
    with pytest.raises(InputError, match=r"expected \(2, 120\)"):
        d.setUnaryEnergy(np.zeros((2, 4 * 5 * 7)))
    with pytest.raises(InputError, match=r"features have shape \(3, 119\), expected \(d, 120\)"):
        d.addPairwiseEnergy(np.zeros((3, 119)), 3)


def test_energies_that_are_no_numbers_are_refused(unary, image):
    for row, value in [(1, np.nan), (1, -np.inf), (slice(None), np.inf)]:
        wrong = unary.copy()
        wrong[row, 7] = value
        d = crf_of(wrong, image)
        for call in (lambda d=d: d.inference(2), d.startInference):
            with pytest.raises(InputError, match="unary holds NaN or -inf"):
                call()


def test_impossible_deviations_are_named(unary, image):
    for sxy, srgb, message in [
        (0, 5, "sxy is 0"),
        ((3, 0), 5, r"sxy\[1\] is 0"),
        (-3, 5, "sxy is -3"),
        (np.nan, 5, "sxy is nan"),
        (np.inf, 5, "sxy is inf"),
        (50, 0, "srgb is 0"),
        (50, (5, 5), "srgb is"),
        (50, -1, "srgb is -1"),
        ("wide", 5, "sxy"),
        (50, 1e-40, "srgb is 1e-40"),
    ]:
        with pytest.raises(InputError, match=message):
            crf_of(unary, image, sxy, srgb)


def finite_marginals_or_error(unary, method, *arguments):
    """The error's text, or "" where there is an answer, which then has to be finite."""
    d = dcrf.DenseCRF2D(W, H, 3)
    d.setUnaryEnergy(unary)
    try:
        getattr(d, method)(*arguments)
    except InputError as error:
        return str(error)
    assert np.isfinite(d.inference(3)).all()
    return ""


def test_tiny_deviations_give_an_answer_or_an_error(unary, random):
    for srgb, refused in [(1e-2, False), (1e-3, False), (1e-6, True), (1e-8, True), (1e-20, True)]:
        noise = (random.rand(H, W, 3) * 256).astype(np.uint8)
        error = finite_marginals_or_error(unary, "addPairwiseBilateral", 50, srgb, noise, 10)
        assert ("sigmas" in error) == refused


def test_wild_features_give_an_answer_or_an_error(unary, random):
    for value, refused in [(1e3, False), (1e5, False), (1e6, True), (3e38, True), (np.nan, True), (np.inf, True)]:
        features = random.rand(3, H * W).astype(np.float32)
        features[1, 5] = value
        error = finite_marginals_or_error(unary, "addPairwiseEnergy", features, 3)
        assert ("features" in error) == refused


def test_wrong_compatibilities_are_named(image):
    for compat, message in [
        (np.eye(2), r"compat has shape \(2, 2\)"),
        (np.ones(2), r"compat has shape \(2,\)"),
        (np.ones((3, 3, 3)), "compat has shape"),
        (np.ones((3, 1)), "compat has shape"),
        (np.nan, "compat holds NaN"),
        (np.full(3, np.inf), "compat holds NaN"),
        ("strong", "compat has dtype"),
        (3 + 1j, "compat has dtype complex"),
        (None, "compat has dtype object"),
    ]:
        for method, *arguments in (
            ("addPairwiseGaussian", 3, compat),
            ("addPairwiseBilateral", 50, 5, image, compat),
            ("addPairwiseEnergy", np.zeros((1, H * W)), compat),
        ):
            with pytest.raises(InputError, match=message):
                getattr(dcrf.DenseCRF2D(W, H, 3), method)(*arguments)


def test_unknown_kernels_and_normalizations_are_named():
    d = dcrf.DenseCRF2D(W, H, 3)
    with pytest.raises(InputError, match="kernel is 7"):
        d.addPairwiseGaussian(3, 3, kernel=7)
    with pytest.raises(InputError, match="normalization is 9"):
        d.addPairwiseGaussian(3, 3, normalization=9)


def test_unary_objects_are_checked(unary, image):
    d = crf_of(unary, image)
    with pytest.raises(InputError, match="unary has shape"):
        d.setUnary(dcrf.ConstUnary(unary[:, :-1]))
    with pytest.raises(InputError, match="u is a ndarray, expected a ConstUnary"):
        d.setUnary(unary)
    with pytest.raises(InputError, match=r"L has shape \(3, 4\) and f \(5, 9\)"):
        dcrf.LogisticUnary(np.ones((3, 4)), np.ones((5, 9)))
    with pytest.raises(InputError, match="expected"):
        dcrf.ConstUnary(np.ones(3))


def test_marginals_handed_in_are_checked(unary, image):
    d = crf_of(unary, image)
    Q, tmp1, tmp2 = d.startInference()
    for call in (lambda q: d.stepInference(q, tmp1, tmp2), d.klDivergence):
        with pytest.raises(InputError, match="Q has shape"):
            call(Q[:, 1:])
        with pytest.raises(InputError, match="Q holds NaN"):
            call(np.full_like(Q, np.nan))
    with pytest.raises(InputError, match="Q is a list"):
        d.stepInference(Q.tolist(), tmp1, tmp2)


def test_huge_pictures_do_not_overflow(monkeypatch):
    for side in (20_000, 50_000):  # w * h of the latter does not fit 32 bits
        d = dcrf.DenseCRF2D(side, side, 3)
        with pytest.raises(InputError, match=rf"expected \(3, {side * side}\)"):
            d.setUnaryEnergy(np.zeros((3, 10), np.float32))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 4096}.__getitem__)
    with pytest.raises(MemoryError, match="inference needs at least"):
        d.inference(1)
    with pytest.raises(MemoryError, match="lattice of 2500000000 points"):
        d.addPairwiseGaussian(3, 3)
