"""Run the tests of the light install (NumPy and OpenCV alone) against whichever amn_fast is installed.

python tests/light.py [pytest's options]
"""

import sys
from pathlib import Path

import pytest

TESTS = (
    "kernels/test_build.py", "ops/test_dense_crf.py", "ops/test_dense_crf_inputs.py", "ops/test_random_walk.py",
    "compat",
)  # fmt: skip

if __name__ == "__main__":
    folder = Path(__file__).parent  # Python puts it on sys.path; the source tree above it is not there
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:], *(str(folder / name) for name in TESTS)]))
