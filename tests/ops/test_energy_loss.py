"""DenseCRFLoss, DenseEnergyLoss and energy_loss: recorded answers, exact gradients, PyTorch's contract, errors."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import modern_cases  # noqa: E402

from amn_fast import _native, nn  # noqa: E402
from amn_fast.errors import InputError  # noqa: E402
from amn_fast.ops import energy_loss as module  # noqa: E402
from amn_fast.ops.bilateral_filter import bilateral_filter  # noqa: E402
from amn_fast.ops.crf_layer import crf_layer  # noqa: E402
from amn_fast.ops.energy_loss import dense_energy, energy_loss  # noqa: E402

BACKENDS = ["reference"] if _native.missing else ["reference", "cpu"]
GOLDEN = modern_cases.recorded("losses")
RECORDED = [  # key, images, channels, weight, scale, recompute_scale_factor (None: DenseCRFLoss)
    ("crf_cat_pot_k3_w1_s1", ["cat", "pot"], 3, 1, 1, None),
    ("crf_cat_pot_k21_w2e-9_s0.5", ["cat", "pot"], 21, 2e-9, 0.5, None),
    ("crf_face_k3_w1_s0.5", ["face"], 3, 1, 0.5, None),
    ("crf_cup_k2_w1_s0.5", ["cup"], 2, 1, 0.5, None),
    ("energy_cat_pot_k3_w1_s1", ["cat", "pot"], 3, 1, 1, True),
    ("energy_toco_cat_pot_k21_w1e-7_s0.5", ["cat", "pot"], 21, 1e-7, 0.5, True),
    ("energy_toco_face_k3_w1_s0.5", ["face"], 3, 1, 0.5, True),
    ("energy_afa_face_k3_w1_s0.5", ["face"], 3, 1, 0.5, False),
    ("energy_toco_cup_k3_w1_s0.5", ["cup"], 3, 1, 0.5, True),
]


def assert_recorded(key, loss, gradient):
    expected = GOLDEN[f"{key}__grad"]
    assert loss.shape == (1,)
    np.testing.assert_allclose(loss.detach(), GOLDEN[f"{key}__loss"], rtol=1e-6, err_msg=key)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=5e-6 * np.abs(expected).max(), err_msg=key)


@pytest.mark.parametrize("backend", BACKENDS)
def test_recorded_answers(backend):
    for key, names, channels, weight, scale, recompute in RECORDED:
        image = modern_cases.images(*names)
        probabilities = modern_cases.maps(*(f"{name}_k{channels}" for name in names)).requires_grad_()
        size = f"{len(names)}x{image.shape[2]}x{image.shape[3]}"
        region = torch.tensor(GOLDEN[f"roi_{size}"]) if len(names) == 2 else torch.ones_like(image[:, 0])
        if recompute is None:
            loss = nn.DenseCRFLoss(weight, 15, 100, scale, backend=backend)(image, probabilities, region)
        else:
            layer = nn.DenseEnergyLoss(weight, 15, 100, scale, recompute_scale_factor=recompute, backend=backend)
            loss = layer(image, probabilities, region, torch.tensor(GOLDEN[f"labels_{size}"])[:, None])
        loss.backward()
        assert_recorded(key, loss, probabilities.grad)
    assert set(GOLDEN.files) == {
        *(f"{key}__{what}" for key, *_ in RECORDED for what in ("loss", "grad")),
        *(name for name in GOLDEN.files if name.startswith(("labels", "roi", "get_energy_loss"))),
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_function_recorded(backend):
    mean, std = (torch.tensor(three).view(1, 3, 1, 1) for three in (module.MEAN, module.STD))
    logits = (modern_cases.maps("cat_k3") * 8 - 4).requires_grad_()  # (q - 128) / 32 for maps of q / 256
    labels = torch.tensor(GOLDEN["labels_1x80x107"])
    loss = nn.DenseEnergyLoss(1e-7, 15, 100, 0.5, backend=backend)
    found = energy_loss((modern_cases.images("cat") - mean) / std, logits, labels, [[4, 70, 0, 95]], loss)
    found.backward()
    assert_recorded("get_energy_loss_cat_k3", found, logits.grad)


def case(size=(13, 18), dtype=torch.float32):
    image = modern_cases.images("cat", "pot")[:, :, : size[0], : size[1]]
    probabilities = modern_cases.maps("cat_k3", "pot_k3")[:, :, : size[0], : size[1]].to(dtype)
    generator = torch.Generator().manual_seed(3)
    region = (torch.rand(2, *size, generator=generator) > 0.2).float()
    labels = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (2, *size), generator=generator)]
    return image, probabilities.clone().requires_grad_(), region, labels


@pytest.mark.parametrize("backend", BACKENDS)
def test_exact_gradient(backend):
    rule = {"weight": 2.0, "sigma_xy": 40, "gradient": "exact", "scale_factor": 0.5, "backend": backend}
    if backend == "reference":
        image, probabilities, region, _ = case((5, 7), torch.float64)
        torch.autograd.gradcheck(lambda x: dense_energy(image, x, region, **rule), probabilities)
    # With a gate, held constant: by automatic differentiation of the filter, at full resolution.
    image, probabilities, region, labels = case()
    rule["scale_factor"] = 1
    dense_energy(image, probabilities, region, labels, **rule).backward()
    given = probabilities.detach().clone().requires_grad_()
    gate = torch.where(labels == 255, 1.0, (region - given.detach().amax(1)).clamp(min=0))
    segments = given * region[:, None]
    (-(segments * gate[:, None] * bilateral_filter(image, segments, 15, 40)).sum()).backward()
    torch.testing.assert_close(probabilities.grad, given.grad, rtol=0, atol=5e-6 * float(given.grad.abs().max()))
    published = case()[1]
    dense_energy(image, published, region, labels, **rule | {"gradient": "published"}).backward()
    assert (published.grad - given.grad).abs().max() > 0.01 * given.grad.abs().max()


@pytest.mark.skipif(_native.native is None, reason=_native.missing)
def test_pytorch_contract():
    image, probabilities, region, labels = case()
    for name in ("published", "exact"):
        arguments = (image, probabilities, region, labels.byte(), 0.5, True, 15.0, 50.0, name)
        torch.library.opcheck(module._energies, arguments)
    layer = nn.DenseEnergyLoss(1e-7, 15, 100, 0.5)

    def run(function):
        probabilities.grad = None
        loss = function(image, probabilities, region, labels)
        (3 * loss).backward()
        return loss.detach(), probabilities.grad

    expected = run(layer)
    assert all(map(torch.equal, run(torch.compile(layer, fullgraph=True, backend="aot_eager")), expected))
    before = torch.get_num_threads()
    try:
        for count in (2, 3, 16):
            torch.set_num_threads(count)
            assert all(map(torch.equal, run(layer), expected))
    finally:
        torch.set_num_threads(before)
    with torch.no_grad():
        assert torch.equal(layer(image, probabilities, region, labels), expected[0])
    half = layer(image, probabilities.bfloat16(), region.bool(), labels.int())
    torch.testing.assert_close(half, expected[0], rtol=1e-2, atol=0)


IMAGE, MAPS, ROI, LABELS = (
    torch.rand(1, 3, 6, 5),
    torch.rand(1, 2, 6, 5),
    torch.ones(1, 6, 5),
    torch.ones(1, 6, 5).byte(),
)
NAN = torch.full((1, 2, 6, 5), float("nan"))
BAD = [
    ({"image": IMAGE[0]}, r"image is \(3, 6, 5\)"),
    ({"segmentations": MAPS[:, :, 1:]}, r"segmentations is \(1, 2, 5, 5\), expected \(1, K, 6, 5\)"),
    ({"segmentations": MAPS.long()}, "segmentations is .* expected .* floating type"),
    ({"rois": ROI[:, 1:]}, r"ROIs is \(1, 5, 5\), expected \(1, 6, 5\)"),
    ({"rois": ROI[:, None]}, r"ROIs is \(1, 1, 6, 5\)"),
    ({"labels": LABELS[:, 1:]}, r"labels is \(1, 5, 5\)"),
    ({"labels": ROI}, "labels is .*float32, expected .* integers"),
    ({"labels": 2 * LABELS}, r"labels hold 2, expected 0..1 \(the segmentations' channels\) or 255"),
    ({"labels": -1 * LABELS.int()}, "labels hold -1"),
    ({"rois": ROI.to("meta")}, "ROIs is on meta, expected cpu"),
    ({"labels": LABELS.to("meta")}, "labels is on meta, expected cpu"),
    ({"sigma_rgb": -1}, "sigma_rgb is -1"),
    ({"scale_factor": 0}, "scale_factor is 0"),
    ({"scale_factor": 0.1}, "at least one pixel at scale 0.1"),
    ({"gradient": "true"}, "gradient is 'true'"),
    ({"image": IMAGE + NAN[:, :1]}, "NaN or infinity"),
    ({"segmentations": NAN}, "NaN or infinity"),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_input(backend):
    good = {"image": IMAGE, "segmentations": MAPS, "rois": ROI, "labels": LABELS, "weight": 1}
    for change, message in BAD:
        with pytest.raises(InputError, match=message):
            dense_energy(**good | {"backend": backend} | change)
    for function in (
        lambda x: dense_energy(**good | {"segmentations": x}),
        lambda x: bilateral_filter(IMAGE, x, 15, 50),
        lambda x: crf_layer(IMAGE, x, *torch.eye(2).expand(3, 2, 2)),
    ):
        with pytest.raises(InputError, match="forward-mode derivative"):
            torch.func.jvp(function, (MAPS,), (MAPS,))
    loss = nn.DenseEnergyLoss(1, 15, 100, 0.5)
    for boxes in ([[0, 1, 2]], [[0.0, 1.0, 2.0, 3.0]]):
        with pytest.raises(InputError, match="boxes is"):
            energy_loss(IMAGE, MAPS, LABELS, boxes, loss)
    with pytest.raises(InputError, match="mean and std have 1 and 3"):
        energy_loss(IMAGE, MAPS, LABELS, None, loss, mean=[0.5])
