"""Where tensors and lattices of the GPU path lie, and what it does where memory is short; on the CPU, as loops."""

import logging

import numpy as np
import pytest

from amn_fast.errors import BackendError, InputError
from amn_fast.ops.dense_crf import DenseCRF, dense_crf, refine_seed
from amn_fast.ops.lattice import Lattice
from amn_fast.ops.mean_field import Pairwise, kl_divergence, mean_field
from crf_cases import GOLDEN, smooth_unary

torch = pytest.importorskip("torch")
cuda = pytest.importorskip("amn_fast.kernels.dense_crf.cuda")
gpu = pytest.importorskip("amn_fast.kernels.dense_crf.cuda.host")


def test_tensors_on_the_gpu_stay_there(tensors_are_on_gpu, photo):
    for kernels in [{}, {"gaussian": None}, {"gaussian": None, "bilateral": None}]:
        image, unary = torch.from_numpy(photo[:40, :50].copy()), torch.from_numpy(smooth_unary(3, 40, 50))
        answer = dense_crf(image, unary, **kernels)  # "auto"
        assert isinstance(answer, torch.Tensor)
        assert np.array_equal(answer.numpy(), dense_crf(image.numpy(), unary.numpy(), backend="cuda", **kernels))
        crf = DenseCRF(image, **kernels)
        assert crf.backend == "cuda"
        assert torch.equal(crf.marginals(unary), answer)
        assert torch.equal(crf.labels(unary), answer.argmax(0).int())
        strided = unary.double().permute(1, 2, 0).contiguous().permute(2, 0, 1)
        assert torch.equal(dense_crf(image, strided, **kernels), answer)
        assert torch.equal(dense_crf(image, unary.requires_grad_(), **kernels), answer)
        with pytest.raises(BackendError, match="call"):
            dense_crf(image, unary, backend="cpu")
        with pytest.raises(InputError, match="expected uint8"):
            dense_crf(image.float(), unary)
        with pytest.raises(InputError, match="as the image"):
            dense_crf(image, unary[:, :5])


def test_seeds_and_features_on_the_gpu_stay_there(tensors_are_on_gpu):
    case = np.load(GOLDEN / "amn" / "merge_cam.npz")
    image, scores = torch.from_numpy(case["image"]), torch.from_numpy(case["high_res"])
    seed = refine_seed(image, scores, torch.tensor([4, 15]), fg=0.3, bg=0.05)
    assert isinstance(seed, torch.Tensor)
    assert (seed.numpy() == case["refined_seed"]).all()
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32))
    lattice, unary = Lattice(features), torch.rand(3, 50)
    assert lattice.filter(unary).shape == (3, 50)
    q = mean_field(unary, [Pairwise(lattice, 2.0)], 3)
    assert isinstance(q, torch.Tensor)
    assert torch.equal(
        mean_field(unary, [Pairwise(lattice, 2.0)], 1, start=mean_field(unary, [Pairwise(lattice, 2.0)], 2)), q
    )
    assert np.isfinite(kl_divergence(q, unary, [Pairwise(lattice, 2.0)]))
    with pytest.raises(InputError, match="as the lattices are"):
        mean_field(unary, [Pairwise(Lattice(features.numpy(), backend="reference"), 2.0)], 1)


def test_what_the_gpu_has_no_room_for_is_refused(door, photo):
    with pytest.raises(InputError, match="7 dimensions"):
        Lattice(np.zeros((7, 5), np.float32), backend="cuda")
    with pytest.raises(InputError, match="labels, expected at most"):
        dense_crf(photo[:1, :2], np.zeros((12000, 1, 2), np.float32), backend="cuda")
    most = 4 * ((cuda.SHARED_BYTES // 4 - 2 * cuda.THREADS) // 4)
    unary = np.random.default_rng(0).random((most, 1, 3)).astype(np.float32)
    expected = dense_crf(photo[:1, :3], unary, iterations=1, backend="reference")
    assert np.abs(dense_crf(photo[:1, :3], unary, iterations=1, backend="cuda") - expected).max() <= 1e-6


def test_blocks_ask_for_no_more_memory_than_they_may(door, photo):
    for labels in (5, 6, 21, 81, 200, 1000, 1500):
        dense_crf(photo[:2, :2], smooth_unary(labels, 2, 2), iterations=1, backend="cuda")
    assert 0 < max(shared for *_, shared in door.launched) <= cuda.SHARED_BYTES


def test_a_batch_that_does_not_fit_is_cut_and_says_so(door, photo, monkeypatch, caplog):
    images, unaries = [photo[:40, :50]] * 5, [smooth_unary(3, 40, 50, seed) for seed in range(5)]
    whole = dense_crf(images, unaries, iterations=2, backend="cuda")
    needed = cuda.estimated_bytes(2000, [2, 5], 3)
    monkeypatch.setattr(gpu, "free_bytes", lambda device: int(2.5 * needed))
    door.launched.clear()
    with caplog.at_level(logging.INFO, "amn_fast"):
        parts = dense_crf(images, unaries, iterations=2, backend="cuda")
    assert "3 batches" in caplog.text
    assert [kernel for kernel, *_ in door.launched].count("give_answer") == 3
    assert all(np.array_equal(*pair) for pair in zip(whole, parts, strict=True))


def test_a_batch_that_turns_out_not_to_fit_is_cut_and_says_so(door, photo, monkeypatch, caplog):
    images, unaries = [photo[:40, :50]] * 5, [smooth_unary(3, 40, 50, seed) for seed in range(5)]
    whole = dense_crf(images, unaries, iterations=2, backend="cuda")
    launch, most = door.launch, 2 * 2000

    def small(kernel, blocks, *arguments, shared=0):
        if kernel == "mark_first_entries" and arguments[2] > most:
            raise torch.cuda.OutOfMemoryError("no memory")
        launch(kernel, blocks, *arguments, shared=shared)

    monkeypatch.setattr(door, "launch", small)
    with caplog.at_level(logging.INFO, "amn_fast"):
        parts = dense_crf(images, unaries, iterations=2, backend="cuda")
    assert "did not fit" in caplog.text
    assert all(np.array_equal(*pair) for pair in zip(whole, parts, strict=True))
    most = 100
    with pytest.raises(BackendError, match="40 x 50 with 3 labels does not fit"):
        dense_crf(images, unaries, backend="cuda")


def test_the_estimate_covers_what_lattices_and_inference_keep(door, photo):
    for labels in (2, 3, 21):
        crf = DenseCRF(photo, backend="cuda")
        meshes = [term.lattice.handle.lattices for term in crf.pairwise]
        points, width = meshes[0].batch.total, cuda.channel_stride(labels)
        kept = sum(
            tensor.numel() * tensor.element_size()
            for mesh in meshes
            for tensor in (mesh.vertices, mesh.weights, mesh.neighbours, mesh.row_points, mesh.row_weights)
        )
        kept += sum(8 * width * mesh.count for mesh in meshes) + 4 * points * (3 * width + labels)
        assert kept <= cuda.estimated_bytes(points, [2, 5], labels)
