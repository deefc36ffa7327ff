"""The compiled CPU kernels, or why they are missing."""

from types import ModuleType

native: ModuleType | None
missing: str  # empty when the kernels are there

try:
    from amn_fast.kernels import _native as native

    missing = ""
except ImportError as error:
    native = None
    missing = f"the C++ kernels were not built or do not load ({error}); reinstall with a C++20 compiler at hand"
