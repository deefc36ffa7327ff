"""The balanced per-pixel loss: recorded answers, edge labels, errors; every backend that runs here."""

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from amn_fast.errors import InputError  # noqa: E402
from amn_fast.kernels.pixel_loss import reference  # noqa: E402
from amn_fast.ops.pixel_loss import balanced_mean, pixel_loss, pixel_sums  # noqa: E402
from case_table import each  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "amn"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if INTERPRETED else ["reference", "cpu"]


def random_case(shape=(2, 5, 6, 7), label_size=(12, 14), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, shape[1], (shape[0], *label_size), generator=generator).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits, labels


def value_and_gradient(logits, labels, **options):
    logits = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss = pixel_loss(logits, labels, **options)
    loss.backward()
    return loss.detach(), logits.grad


def exact(logits, labels, eps=0.4, ignore_index=255):
    """Value and gradient by the published tensors: one-hot target times log-softmax, in double precision."""
    x = logits.detach().double().requires_grad_()
    small = reference.sample_labels(labels, *x.shape[2:]).long()
    n_classes = x.shape[1] - 1
    target = torch.full_like(x, eps / n_classes)
    target.scatter_(1, small.where(small != ignore_index, 0)[:, None], 1 - eps)
    per_pixel = -(target * x.log_softmax(1)).sum(1)
    loss = x.new_zeros(())
    for side in ((small == 0) & (small != ignore_index), (small != 0) & (small != ignore_index)):
        if side.any():
            loss = loss + per_pixel[side].mean() / 2
    loss = loss + 0 * x[:0].sum()
    loss.backward()
    return loss.detach(), x.grad


@each({"backend": BACKENDS, "case": ["loss_voc", "loss_coco", "loss_eps0", "loss_upsampled_labels"]})
def test_recorded_answers(case, backend):
    golden = np.load(GOLDEN / f"{case}.npz")
    logits, labels = torch.from_numpy(golden["logits"]), torch.from_numpy(golden["labels"])
    loss, gradient = value_and_gradient(logits, labels, eps=float(golden["eps"]), backend=backend)
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-6)
    scale = np.abs(golden["grad"]).max()
    np.testing.assert_allclose(gradient.numpy(), golden["grad"], rtol=1e-6, atol=1e-6 * scale)


@each({"case": ["loss_voc", "loss_coco", "loss_eps0", "loss_upsampled_labels"]})
def test_recorded_label_sampling(case):
    golden = np.load(GOLDEN / f"{case}.npz")
    small = reference.sample_labels(torch.from_numpy(golden["labels"]), *golden["labels_small"].shape[1:])
    np.testing.assert_array_equal(small.numpy(), golden["labels_small"])


@each({"case": range(4)})
def test_recorded_resize(case):
    golden = np.load(GOLDEN / f"resize_{case}.npz")
    small = reference.sample_labels(torch.from_numpy(golden["labels"])[None], *golden["resized"].shape)
    np.testing.assert_array_equal(small[0].numpy(), golden["resized"])


def test_nearest_index_is_pillows():
    image = pytest.importorskip("PIL.Image")
    for size in [*range(1, 40), 321, 375, 500, 512, 596]:
        side = image.fromarray(np.arange(size, dtype=np.int32)[None])
        for target in [*range(1, 45), 94, 125, 129]:
            theirs = np.asarray(side.resize((target, 1), image.Resampling.NEAREST))[0]
            assert reference.nearest_index(size, target) == theirs.tolist(), (size, target)


@each(
    {
        "backend": BACKENDS,
        "shape": [(1, 2, 1, 1), (1, 3, 1, 9), (3, 21, 24, 40), (2, 81, 7, 5), (2, 5, 33, 3)],
        "eps": [0.0, 0.4, 1.0],
    }
)
def test_equals_the_exact_loss(shape, eps, backend):
    logits, labels = random_case(shape, label_size=(37, 50))
    loss, gradient = value_and_gradient(logits, labels, eps=eps, backend=backend)
    true_loss, true_gradient = exact(logits, labels, eps)
    assert loss.item() == pytest.approx(true_loss.item(), rel=1e-6, abs=1e-7)
    torch.testing.assert_close(
        gradient.double(), true_gradient, rtol=2e-6, atol=1e-6 * float(true_gradient.abs().max())
    )


@each({"backend": BACKENDS, "label": [0, 2, 255]})
def test_one_side_or_none(label, backend):
    logits, labels = random_case()
    labels.fill_(label)
    loss, gradient = value_and_gradient(logits, labels, backend=backend)
    true_loss, true_gradient = exact(logits, labels)
    assert loss.item() == pytest.approx(true_loss.item(), rel=1e-6)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-5, atol=1e-8)
    if label == 255:
        assert loss.item() == 0
        assert not gradient.any()


@each({"backend": BACKENDS})
def test_ignored_pixels_get_no_gradient_whatever_they_hold(backend):
    logits, labels = random_case(label_size=(6, 7))
    clean, _ = value_and_gradient(logits, labels, backend=backend)
    ignored = (labels == 255)[:, None].expand_as(logits)
    logits[ignored] = float("nan")
    loss, gradient = value_and_gradient(logits, labels, backend=backend)
    assert loss.item() == clean.item()
    assert not gradient[ignored].any()
    assert gradient[~ignored].all()


@each({"backend": BACKENDS, "dtype": [torch.float32, torch.float16, torch.bfloat16, torch.float64]})
def test_huge_logits_stay_finite(dtype, backend):
    logits, labels = random_case(dtype=dtype)
    logits = logits.sign() * 1e4
    loss, gradient = value_and_gradient(logits, labels, backend=backend)
    true_loss, true_gradient = exact(logits, labels)
    assert loss.item() == pytest.approx(true_loss.item(), rel=1e-6)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-2, atol=1e-4)


@each({"backend": BACKENDS, "dtype": [torch.float16, torch.bfloat16]})
def test_half_precision_is_no_worse_than_plain(dtype, backend):
    logits, labels = random_case((2, 21, 24, 40), (96, 160), dtype=dtype)
    loss, gradient = value_and_gradient(logits, labels, backend=backend)
    true_loss, true_gradient = exact(logits, labels)

    plain = logits.detach().clone().requires_grad_()
    small = reference.sample_labels(labels, *logits.shape[2:]).long()
    per_pixel = torch.nn.functional.cross_entropy(
        plain, small, ignore_index=255, reduction="none", label_smoothing=0.4 * 21 / 20
    )
    plain_loss = per_pixel[small == 0].mean() / 2 + per_pixel[(small != 0) & (small != 255)].mean() / 2
    plain_loss.backward()
    assert abs(loss.double() - true_loss) <= abs(plain_loss.double() - true_loss) + 1e-6
    ours, theirs = (gradient.double() - true_gradient).abs().max(), (plain.grad.double() - true_gradient).abs().max()
    truncated = INTERPRETED and dtype == torch.bfloat16  # Triton's interpreter cuts off where a GPU rounds
    assert ours <= (2 if truncated else 1) * theirs + 1e-6


@each({"backend": BACKENDS})
def test_batch_of_none(backend):
    logits, labels = random_case((0, 5, 6, 7))
    loss, gradient = value_and_gradient(logits, labels, backend=backend)
    assert loss.item() == 0
    assert gradient.shape == logits.shape


@each({"backend": BACKENDS})
def test_layouts_give_the_same_answer(backend):
    logits, labels = random_case((2, 21, 9, 13))
    plain, gradient = value_and_gradient(logits, labels, backend=backend)
    wide = torch.zeros(2, 21, 18, 20)
    wide[:, :, ::2, 3:16] = logits
    layouts = {
        "channels_last": logits.contiguous(memory_format=torch.channels_last),
        "transposed": logits.transpose(2, 3).contiguous().transpose(2, 3),
        "slice": wide[:, :, ::2, 3:16],
    }
    for name, view in layouts.items():
        source = view.detach().requires_grad_()
        loss = pixel_loss(source, labels, backend=backend)
        loss.backward()
        assert loss.item() == pytest.approx(plain.item(), rel=1e-6), name
        torch.testing.assert_close(source.grad, gradient, rtol=1e-5, atol=1e-8)


@each({"backend": BACKENDS})
def test_labels_of_any_strides(backend):
    logits, labels = random_case()
    loss = pixel_loss(logits, labels, backend=backend)
    turned = labels.transpose(1, 2).contiguous().transpose(1, 2)
    assert pixel_loss(logits, turned, backend=backend).item() == loss.item()
    assert pixel_loss(logits, labels.flip(2).contiguous().flip(2), backend=backend).item() == loss.item()


@each({"backend": BACKENDS})
def test_sums_of_parts_give_the_loss_of_the_whole(backend):
    logits, labels = random_case((4, 5, 6, 7))
    parts = [pixel_sums(logits[i : i + 2], labels[i : i + 2], backend=backend) for i in (0, 2)]
    loss = balanced_mean(parts[0][0] + parts[1][0], parts[0][1] + parts[1][1])
    assert loss.item() == pytest.approx(pixel_loss(logits, labels, backend=backend).item(), rel=1e-6)


@each({"backend": BACKENDS})
def test_another_ignore_index(backend):
    logits, labels = random_case()
    moved = labels.where(labels != 255, 254)
    loss = pixel_loss(logits, moved, ignore_index=254, backend=backend)
    assert loss.item() == pixel_loss(logits, labels, backend=backend).item()
    assert pixel_loss(logits, labels * 0, ignore_index=0, backend=backend).item() == 0


@each({"backend": BACKENDS})
def test_gradcheck(backend):
    logits, labels = random_case((2, 3, 4, 5), dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pixel_loss(x, labels, backend=backend), logits, fast_mode=INTERPRETED)


@each({"backend": BACKENDS})
def test_a_label_above_the_channels_is_an_error(backend):
    logits, labels = random_case()
    labels[1] = 5
    if backend == "triton":  # on a GPU the check would wait for the device
        loss, gradient = value_and_gradient(logits, labels, backend=backend)
        assert loss.isnan()
        assert gradient[1].isnan().all()
        assert gradient[0].isfinite().all()
        return
    with pytest.raises(InputError, match=r"labels hold 5, expected 0\.\.4"):
        pixel_loss(logits, labels, backend=backend)
