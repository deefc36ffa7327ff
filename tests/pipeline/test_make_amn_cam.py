"""Which channels AMN's softmax runs over."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from amn_fast.config import AmnInference
from amn_fast.stages.make_amn_cam import activate


@pytest.mark.parametrize("softmax", ["all", "image"])
def test_softmax_over_all_channels_or_the_pictures_own(softmax):
    logits = torch.tensor([0.0, 1.0, 5.0, 2.0])[:, None, None].expand(4, 2, 3)  # background, three classes
    net = SimpleNamespace(
        activations=lambda pair, condition: logits, backbone=SimpleNamespace(normalize=torch.from_numpy)
    )
    image, seed = np.zeros((8, 12, 3), np.float32), np.zeros((8, 12), np.uint8)  # no pixel is sharpened
    label = np.array([True, False, True])
    found = activate(net, image, label, seed, AmnInference(scales=(1.0,), softmax=softmax), torch.device("cpu"))
    kept = [0, 1, 2, 3] if softmax == "all" else [0, 1, 3]
    expected = dict(zip(kept, torch.softmax(logits[kept, 0, 0], 0).tolist(), strict=True))
    assert found.keys.tolist() == [1, 3]
    for key, strided, full in zip(found.keys, found.strided, found.full, strict=True):
        np.testing.assert_allclose(strided, expected[int(key)], atol=1e-6)
        np.testing.assert_allclose(full, expected[int(key)], atol=1e-6)
