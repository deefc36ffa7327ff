"""The package of data sets stays light, and gaps in any data set are reported."""

import subprocess
import sys

import pytest

from amn_fast.data.base import list_ids, require_complete
from amn_fast.errors import InputError


class Gaps:
    name, ids = "toy", tuple("abcd")

    def __init__(self, **missing):
        self._missing = missing

    def missing(self):
        return self._missing


def test_importing_the_package_loads_neither_pillow_nor_torch():
    code = "import sys, amn_fast.data; sys.exit(int(any(name in sys.modules for name in ('PIL', 'torch', 'cv2'))))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_complete_sets_pass():
    require_complete(Gaps())
    require_complete(Gaps(image=[], labels=[]))


def test_each_kind_of_gap_is_listed():
    with pytest.raises(InputError) as caught:
        require_complete(Gaps(image=["a"], labels=["b", "c"]))
    expected = "data set toy: 1 id ('a') of 4 have no image; 2 ids ('b', 'c') of 4 have no labels"
    assert str(caught.value) == expected


def test_lists_are_cut_after_ten():
    assert list_ids([str(i) for i in range(12)]).endswith("'9' and 2 more)")
    assert list_ids([str(i) for i in range(10)]).endswith("'9')")
