"""What the dense CRF takes and refuses: layouts, types, tensors, enormous values, arrays that change meanwhile."""

import contextlib
import itertools
import threading

import numpy as np
import pytest

from amn_fast.errors import InputError
from amn_fast.ops.dense_crf import DenseCRF, dense_crf, refine_seed, unary_from_labels, unary_from_softmax
from amn_fast.ops.lattice import Lattice
from amn_fast.ops.mean_field import Pairwise, mean_field
from crf_cases import BACKENDS, close, cpu, reference_of, refusals, smooth_unary


@cpu
def test_sigmas_too_small_for_the_lattice_are_refused_and_small_ones_are_not(photo):
    image, unary = photo[:64, :64], smooth_unary(3, 64, 64)
    with pytest.raises(InputError, match="sigmas"):
        dense_crf(image, unary, bilateral=(50, 1e-8, 10))
    close(
        dense_crf(image, unary, bilateral=(0.01, 1e-3, 10)),
        dense_crf(image, unary, bilateral=(0.01, 1e-3, 10), backend="reference"),
    )


def test_bad_values_are_refused_alike_on_every_backend():
    """One sentence each, and the same one; what a value is checked for does not depend on the backend."""
    for name, call in refusals():
        messages = set()
        for backend in BACKENDS:
            with pytest.raises(InputError, match="expected") as caught:
                call(backend)
            messages.add(str(caught.value))
        assert len(messages) == 1, (name, messages)
    with pytest.raises(InputError, match="backend is 'abacus'"):
        Lattice(np.zeros((2, 5)), backend="abacus")


def test_label_maps_and_softmax_are_checked():
    maps = [[[0, 255]], [[0, 3]], [[-1, 0]], [[0.0, 1.0]], "map", None]
    wrong = [(unary_from_labels, (one, 3, 0.7, False), {}) for one in maps]
    wrong += [(unary_from_labels, ([[0, 1]], count), {}) for count in (1, 2.5, "2", None, np.nan)]
    wrong += [(unary_from_labels, ([[0, 1]], 2), {"gt_prob": value}) for value in (0, 1, np.nan, "0.7", None)]
    wrong += [
        (unary_from_labels, ([[0, 1]], 2), {"zero_unsure": "no"}),
        (unary_from_labels, ([[0, 1]], 2), {"ignore_label": 0.5}),
    ]
    wrong += [(unary_from_softmax, (one,), {}) for one in ([[np.nan], [1]], np.zeros((0, 4)), 3.0, "softmax", [[1j]])]
    wrong += [(unary_from_softmax, ([[0.5], [0.5]],), {"scale": value}) for value in (0, 1.5, np.nan, "1")]
    wrong += [(unary_from_softmax, ([[0.5], [0.5]],), {"clip": value}) for value in (-1, 2, np.nan, "1")]
    wrong += [(unary_from_softmax, ([[-0.5], [1]],), {"clip": None})]
    for function, arguments, options in wrong:
        with pytest.raises(InputError, match="expected"):
            function(*arguments, **options)


@cpu
def test_layouts_and_types_do_not_matter(photo):
    torch = pytest.importorskip("torch")
    image, unary = photo[:30, :40].copy(), smooth_unary(3, 30, 40).astype(np.float16).astype(np.float32)
    expected = dense_crf(image, unary)
    frozen, energies = image.copy(), unary.copy()
    frozen.flags.writeable = energies.flags.writeable = False
    for other in (np.repeat(image, 2, 1)[:, ::2], np.asfortranarray(image), image[:, ::-1].copy()[:, ::-1], frozen):
        assert np.array_equal(dense_crf(other, unary), expected)
    spread = np.repeat(unary, 2, 2)[:, :, ::2]
    for other in (unary.astype("f8"), unary.astype("f2"), np.asfortranarray(unary), spread, energies):
        assert np.array_equal(dense_crf(image, other), expected)

    class Mine(torch.Tensor):
        pass

    pixels, tensor = torch.from_numpy(image), torch.from_numpy(unary)
    for other in (tensor, tensor.double(), tensor.half(), torch.nn.Parameter(tensor), tensor.as_subclass(Mine)):
        for answer in (dense_crf(pixels, other), DenseCRF(pixels).marginals(other), dense_crf([image], [other])[0]):
            assert isinstance(answer, torch.Tensor)
            assert np.array_equal(answer.detach().numpy(), expected)
    rounded = tensor.bfloat16()
    assert np.array_equal(dense_crf(pixels, rounded).numpy(), dense_crf(image, rounded.float().numpy()))
    assert np.array_equal(dense_crf(image, unary > 1), dense_crf(image, (unary > 1).astype("f4")))


@cpu
def test_enormous_energies_and_many_maps_give_the_reference(photo):
    image = photo[:12, :13]
    for labels, scale in itertools.product((2, 3, 7, 21), (2000, 3e4, 1e10, 1e30, 3e37, 1e300)):
        unary = np.random.default_rng(labels).normal(size=(labels, 12, 13)) * scale
        for forbidden in (False, True):
            unary[0, 3, 3] = np.inf if forbidden else unary[0, 3, 3]
            close(dense_crf(image, unary), reference_of(image, unary), 2e-5)
    activations, keys = np.random.default_rng(0).random((300, 12, 13)), np.arange(300) % 254 + 1
    seeds = [refine_seed(image, activations, keys, fg=0.3, bg=0.05, iterations=1, backend=one) for one in BACKENDS]
    assert (seeds[0] == seeds[-1]).all()
    assert (seeds[0] > 0).all()


@cpu
def test_what_another_thread_rewrites_does_not_break_the_lattice():
    random = np.random.default_rng(0)
    features = random.normal(size=(5, 40000)).astype(np.float32)
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            features[:, ::3] = 1e30
            features[:, ::3] = np.nan
            features[:, ::3] = 0

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(20):
            with contextlib.suppress(InputError):  # it was rewritten before the check
                assert Lattice(features, threads=2).filter(np.ones((1, 40000))).shape == (1, 40000)
    finally:
        stop.set()
        writer.join()


def test_tensors_run_as_an_operator_and_gradients_are_not_cut(photo):
    torch = pytest.importorskip("torch")
    image, unary = torch.from_numpy(photo[:16, :20].copy()), torch.from_numpy(smooth_unary(3, 16, 20))
    expected = dense_crf(image.numpy(), unary.numpy(), iterations=2, bilateral=(9, (5, 6, 7), 4.0))
    compiled = torch.compile(
        lambda image, unary: dense_crf(image, unary, iterations=2, bilateral=(9, (5, 6, 7), 4.0)),
        fullgraph=True,
        backend="aot_eager",
    )
    assert np.array_equal(compiled(image, unary).numpy(), expected)
    compat = torch.tensor(3.0, dtype=torch.float64)
    arguments = (image, unary, [3.0, 3.0], [50.0, 50.0, 5.0, 5.0, 5.0], compat, compat, 2, "symmetric", 0.0, "auto", 1)
    torch.library.opcheck(torch.ops.amn_fast.dense_crf, arguments)
    given = unary.clone().requires_grad_()
    lattice = Lattice(torch.rand(2, 320))
    calls = (
        lambda given: dense_crf(image, given),
        lambda given: dense_crf([image], [given])[0],
        lambda given: DenseCRF(image).marginals(given),
        lambda given: lattice.filter(given.reshape(3, -1)),
        lambda given: mean_field(given.reshape(3, -1), [Pairwise(lattice, 2.0)], 1),
    )
    for call in calls:
        with pytest.raises(InputError, match="not differentiable"):
            call(given).sum().backward()
        with torch.no_grad():
            assert not call(given).requires_grad
        with (
            torch.autograd.forward_ad.dual_level(),
            pytest.raises(InputError, match="not differentiable"),
        ):
            call(torch.autograd.forward_ad.make_dual(unary, torch.ones_like(unary)))
    with pytest.raises(InputError, match="compat"):
        dense_crf(image, unary, gaussian=(3, "strong"))
