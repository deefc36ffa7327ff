"""A small problem for the stand-in of pydensecrf."""

import numpy as np
import pytest

from amn_fast.compat.pydensecrf import utils
from pydensecrf_cases import RECORDER, H, W


@pytest.fixture
def random():
    return np.random.RandomState(3)


@pytest.fixture
def image(random):
    return RECORDER["photo"](random, H, W)


@pytest.fixture
def unary(random):
    return utils.unary_from_softmax(RECORDER["probabilities"](random, 3, H, W))
