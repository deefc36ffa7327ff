"""The classifier's loss and accuracy."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm", reason="networks need the pipeline extra")


def test_accuracy_counts_images_with_all_labels_right():
    from amn_fast.pipeline.training import RunningMean
    from amn_fast.steps import cam

    logits = torch.tensor([[2.0, -1.0], [2.0, 1.0], [-3.0, -1.0], [0.5, 4.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    loss, right = cam.loss(lambda images: logits, torch.zeros(4, 3, 8, 8), labels)
    assert right.tolist() == [True, False, True, True]
    expected = torch.nn.functional.softplus(torch.where(labels > 0, -logits, logits)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    mean = RunningMean(torch.device("cpu"))
    mean.add(right)
    mean.add(torch.tensor([True, True]))
    assert mean.take() == pytest.approx(5 / 6)
    assert mean.take() == 0  # counting begins anew
