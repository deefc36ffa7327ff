"""PAR, PAMR and propagation: recorded answers, the definition in double precision, gradients, edge sizes, errors."""

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import modern_cases  # noqa: E402

from amn_fast import nn  # noqa: E402
from amn_fast.errors import BackendError, InputError  # noqa: E402
from amn_fast.kernels.local_refinement import reference  # noqa: E402
from amn_fast.ops.local_affinity import (  # noqa: E402
    DILATIONS,
    local_affinity,
    pixel_adaptive_refinement,
    propagate,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if INTERPRETED else ["reference", "cpu"]
KINDS = reference.KINDS
if INTERPRETED:
    from amn_fast.kernels.local_refinement import triton

    triton.BLOCK = 4096  # the interpreter's time goes by operations, not by elements


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


RECORDED = [  # name, images, maps, divisor of the image, dilations, iterations
    ("face_k2_d1-3_i2", ["face"], ["face_k2"], 255, (1, 3), 2),
    ("flat_k2_i10", ["flat"], ["cat_k2"], 255, DILATIONS, 10),
    ("cat_pot_k3_i10", ["cat", "pot"], ["cat_k3", "pot_k3"], 255, DILATIONS, 10),
    ("cat_k2_i15", ["cat"], ["cat_k2"], 255, DILATIONS, 15),
    ("face_k2_i10_0to255", ["face"], ["face_k2"], 1, DILATIONS, 10),
    ("cup_coarse_first3_i10", ["cup"], ["cup_coarse_k21"], 255, DILATIONS, 10),
]
if INTERPRETED:  # a step takes a second with all dilations
    RECORDED = RECORDED[:1]


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_answers(kind, backend):
    golden = modern_cases.recorded(kind)
    for name, images, maps, divisor, dilations, iterations in RECORDED:
        if images == ["flat"]:
            image = torch.tensor(modern_cases.recorded("par")["picture_flat"]).permute(2, 0, 1)[None].float()
        else:
            image = modern_cases.images(*images)
        mask = modern_cases.maps(*maps)
        mask = mask[:, :3] if "first3" in name else mask
        if kind == "par":
            module = nn.PAR(dilations, iterations, backend=backend)
        else:
            module = nn.PAMR(iterations, dilations, backend=backend)
        np.testing.assert_allclose(module(image / divisor, mask), golden[name], rtol=0, atol=5e-6, err_msg=name)


if not INTERPRETED:  # ten steps forward and backward take half a minute there

    @pytest.mark.parametrize("kind", KINDS)
    def test_recorded_gradient(kind, backend):
        mask = modern_cases.maps("face_k3").requires_grad_()
        image = modern_cases.images("face") / 255
        pixel_adaptive_refinement(image, mask, kind=kind, backend=backend).square().sum().backward()
        expected = modern_cases.recorded(kind)["face_k3_i10__grad_of_sum_squares"]
        np.testing.assert_allclose(mask.grad, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


SHAPES = [(2, 3, 5, 17, 9), (1, 1, 1, 1, 1), (2, 3, 1, 17, 2), (1, 1, 9, 1, 5), (1, 4, 40, 50, 3)]
if INTERPRETED:
    SHAPES = SHAPES[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_definition_in_double_precision(kind, backend):
    """1x1 images and dilations larger than the image among them; forward, backward, twice backward."""
    generator = torch.Generator().manual_seed(1)
    for number, (images, channels, height, width, labels) in enumerate(SHAPES):
        kinds = [([3], True)] if INTERPRETED and number else [((1, 8), False), ([3], True)]
        for dilations, normalise in kinds:
            image = torch.rand(images, channels, height, width, generator=generator, dtype=torch.float64)
            mask = torch.rand(images, labels, height, width, generator=generator, dtype=torch.float64)
            answers = []
            for chosen in ("reference", backend):
                given = mask.clone().requires_grad_()
                rule = {"dilations": dilations, "kind": kind, "normalise": normalise, "backend": chosen}
                fused = pixel_adaptive_refinement(image, given, iterations=2, **rule)
                affinity = local_affinity(image, **rule)
                apart = propagate(given, affinity, dilations=dilations, iterations=2, backend=chosen)
                (gradient,) = torch.autograd.grad((fused * fused + apart).sum(), given, create_graph=True)
                gradient.square().sum().backward()
                answers.append((fused.detach(), apart.detach(), affinity, gradient.detach(), given.grad))
            for expected, found in zip(*answers, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(answers[0][0], answers[0][1])
            total = 1.01 if kind == "par" and not normalise else 1.0
            torch.testing.assert_close(answers[1][2].sum(1), torch.full_like(mask[:, 0], total))


def test_types_layouts_and_no_steps(backend):
    image, mask = modern_cases.images("face")[..., 30:50, 40:73], modern_cases.maps("face_k3")[..., 30:50, 40:73]
    expected = pixel_adaptive_refinement(image, mask, iterations=2, backend=backend)
    exact = pixel_adaptive_refinement(image.double(), mask.double(), iterations=2, backend="reference")
    torch.testing.assert_close(expected.double(), exact, rtol=0, atol=5e-6)
    half = pixel_adaptive_refinement(image.half(), mask.half(), iterations=2, backend=backend)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=2e-3)
    moved = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(pixel_adaptive_refinement(moved, mask, iterations=2, backend=backend), expected)
    assert torch.equal(pixel_adaptive_refinement(image, mask, iterations=0, backend=backend), mask)


IMAGE, MASK = torch.rand(1, 3, 6, 5), torch.rand(1, 2, 6, 5)
AFFINITY = torch.rand(1, 48, 6, 5)
BAD = [
    (lambda b: pixel_adaptive_refinement(IMAGE, MASK, dilations=[], backend=b), "dilations are empty"),
    (
        lambda b: local_affinity(IMAGE, dilations=[0, 2], backend=b),
        r"dilations\[0\] is .*, expected an integer of at least 1",
    ),
    (
        lambda b: local_affinity(IMAGE, dilations=[1.5], backend=b),
        r"dilations\[0\] is .*, expected an integer of at least 1",
    ),
    (lambda b: local_affinity(IMAGE, kind="varm", backend=b), "kind is 'varm', expected one of par, pamr"),
    (lambda b: local_affinity(IMAGE[0], backend=b), r"image is \(3, 6, 5\)"),
    (lambda b: local_affinity(IMAGE.byte(), backend=b), "torch.uint8, expected .* floating"),
    (lambda b: pixel_adaptive_refinement(IMAGE, MASK[:, :0], backend=b), r"mask is \(1, 0, 6, 5\)"),
    (lambda b: pixel_adaptive_refinement(IMAGE, MASK.expand(2, -1, -1, -1), backend=b), "batch of 2, expected 1"),
    (lambda b: pixel_adaptive_refinement(IMAGE, MASK, iterations=-1, backend=b), "iterations is -1"),
    (lambda b: pixel_adaptive_refinement(IMAGE, MASK.to("meta"), backend=b), "mask is on meta, expected cpu"),
    (lambda b: propagate(MASK, AFFINITY[:, :8], backend=b), r"affinity is \(1, 8, 6, 5\) .* expected \(1, 48, 6, 5\)"),
    (lambda b: propagate(MASK, AFFINITY.to("meta"), backend=b), "affinity is on meta, expected cpu"),
]
NOT_DIFFERENTIABLE = [
    lambda b: local_affinity(IMAGE.clone().requires_grad_(), backend=b),
    lambda b: pixel_adaptive_refinement(IMAGE.clone().requires_grad_(), MASK, backend=b),
    lambda b: propagate(MASK, AFFINITY.clone().requires_grad_(), backend=b),
]


def test_bad_input(backend):
    for call, message in BAD:
        with pytest.raises(InputError, match=message):
            call(backend)
    for call in NOT_DIFFERENTIABLE:
        if backend == "reference":
            assert call(backend).requires_grad
            continue
        with pytest.raises(InputError, match="requires a gradient"):
            call(backend)


def test_forward_mode_derivatives_are_computed_or_refused(backend):
    """By the reference, which "auto" takes for them. A step is linear: its derivative along the mask is itself."""
    for step in (
        lambda x, **how: pixel_adaptive_refinement(IMAGE, x, iterations=2, **how),
        lambda x, **how: propagate(x, AFFINITY, iterations=2, **how),
    ):
        torch.testing.assert_close(*torch.func.jvp(step, (MASK,), (MASK,)))
        if backend != "reference":
            with pytest.raises(BackendError, match="no forward-mode derivative"):
                torch.func.jvp(lambda x: step(x, backend=backend), (MASK,), (MASK,))  # noqa: B023
