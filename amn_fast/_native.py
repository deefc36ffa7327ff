"""The compiled CPU kernels, or why they are missing."""

import importlib
import os
import warnings
from types import ModuleType

native: ModuleType | None = None
missing = ""
"""Empty when the kernels are there."""

try:
    native = importlib.import_module("amn_fast.kernels._native")
except ImportError as error:
    missing = f"the C++ kernels were not built or do not load ({error}); reinstall with a C++20 compiler at hand"
    if os.environ.get("AMN_FAST_BACKEND") != "reference":
        warnings.warn(
            "amn_fast runs on its reference implementations, which are tens of times slower: "
            f"{missing}, or install a wheel for this platform",
            RuntimeWarning,
            stacklevel=2,
        )
