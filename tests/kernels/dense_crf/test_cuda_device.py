"""The GPU kernels on a GPU: launches, streams, memory; everything else is tested on the CPU beside this."""

import numpy as np
import pytest

from amn_fast.errors import BackendError, InputError
from amn_fast.ops.dense_crf import dense_crf, refine_seed, unary_from_labels
from amn_fast.ops.lattice import Lattice, Pairwise, mean_field
from crf_cases import FEATURE_CASES, IMAGE_CASES, answer_to, check_marginals, load, seed_case, unary_of

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("cuda.core")
pytestmark = pytest.mark.gpu


def on_card(name):
    """A recorded case, its image and its energies."""
    case = load(name)
    unary = np.ascontiguousarray(unary_of(case), np.float32)
    return case, torch.from_numpy(case["image"]).cuda(), torch.from_numpy(unary).cuda()


@pytest.mark.parametrize("name", IMAGE_CASES)
def test_marginals_equal_the_recorded_ones(name):
    case, image, unary = on_card(name)
    answer = answer_to(case, image, unary)
    assert answer.is_cuda
    check_marginals(name, case, answer.cpu().numpy())
    for _ in range(3):
        assert torch.equal(answer, answer_to(case, image, unary))


@pytest.mark.parametrize("name", FEATURE_CASES)
def test_any_features_equal_the_recorded_answers(name):
    case = load(name)
    call = case["call"]
    unary = unary_from_labels(case["labels"].ravel(), call["labels"], call["gt_prob"], zero_unsure=False)
    lattice = Lattice(torch.from_numpy(case["features"]).cuda())
    q = mean_field(torch.from_numpy(unary).cuda(), [Pairwise(lattice, call["compat"])], call["iterations"])
    assert np.abs(q.cpu().numpy() - case["q"]).max() <= 1e-4


def test_batches_give_the_same_bits_in_any_order():
    images = [on_card(name)[1:] for name in ("irn_3labels", "norm_none", "irn_2labels", "irn_21labels", "one_row")]
    alone = [dense_crf(image, unary) for image, unary in images]
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(images))
        answers = dense_crf([images[i][0] for i in order], [images[i][1] for i in order])
        assert all(torch.equal(answer, alone[i]) for i, answer in zip(order, answers, strict=True))


def test_seeds_of_a_batch_equal_the_recorded_ones():
    (image, scores, keys), expected = seed_case("merge_cam")
    image, scores = torch.from_numpy(image).cuda(), torch.from_numpy(scores).cuda()
    for seed in refine_seed([image] * 3, [scores] * 3, [keys] * 3, fg=0.3, bg=0.05):
        assert seed.is_cuda
        assert (seed.cpu().numpy() == expected).all()


def test_the_current_stream_is_used():
    _, image, unary = on_card("irn_3labels")
    expected = dense_crf(image, unary)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        waiting = torch.zeros_like(unary)
        torch.cuda._sleep(50_000_000)
        waiting.copy_(unary)
        answer = dense_crf(image, waiting)
    stream.synchronize()
    assert torch.equal(answer, expected)


def test_iterations_do_not_wait_for_the_gpu(monkeypatch):
    cuda = pytest.importorskip("amn_fast.kernels.dense_crf.cuda")
    iterate = cuda.MeanField.iterate

    def watched(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            iterate(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    _, image, unary = on_card("irn_3labels")
    expected = dense_crf(image, unary)
    monkeypatch.setattr(cuda.MeanField, "iterate", watched)
    assert torch.equal(dense_crf(image, unary), expected)


def test_a_batch_that_does_not_fit_is_cut(monkeypatch):
    gpu = pytest.importorskip("amn_fast.kernels.dense_crf.cuda.host")
    _, image, unary = on_card("irn_3labels")
    expected = dense_crf([image] * 5, [unary] * 5)
    monkeypatch.setattr(gpu, "free_bytes", lambda device: 1)
    assert all(torch.equal(*pair) for pair in zip(dense_crf([image] * 5, [unary] * 5), expected, strict=True))


def test_memory_stays_within_the_estimate():
    cuda = pytest.importorskip("amn_fast.kernels.dense_crf.cuda")
    for name in ("voc_full_3labels", "voc_full_21labels", "coco_full_81labels"):
        case, image, unary = on_card(name)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        dense_crf([image] * 2, [unary] * 2)
        peak = torch.cuda.max_memory_allocated() - before
        assert peak <= 2 * cuda.estimated_bytes(image.shape[0] * image.shape[1], [2, 5], case["call"]["labels"])


def test_energies_that_are_not_numbers_are_refused():
    _, image, unary = on_card("irn_3labels")
    unary[0, 3, 3] = torch.nan
    with pytest.raises(InputError, match="NaN or -inf"):
        dense_crf(image, unary)
    with pytest.raises(BackendError, match="on a GPU"):
        dense_crf(image, unary, backend="cpu")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_the_tensors_device_is_used():
    _, image, unary = on_card("irn_3labels")
    answer = dense_crf(image.to("cuda:1"), unary.to("cuda:1"))
    assert answer.device == torch.device("cuda:1")
    assert torch.equal(answer.cpu(), dense_crf(image, unary).cpu())
