"""pydensecrf's names on amn_fast's dense CRF: `densecrf`, `utils`, and `install()` for code that is not to be changed.

The calls are the same; what crashes there raises `InputError`, a ValueError, here. Marginals agree within 1e-4 on all
recorded images. Problems that amplify the rounding of single precision differ more: of 8,000 random ones
(`tests/compat/compare_pydensecrf.py`), 6 of 2,546 with symmetric normalization (at most 2.0e-2) and 48 of 5,454 with
another one or none (at most 3.6e-3); in 45 of these 54 amn_fast is nearer to the answer in double precision.
"""

import sys

from amn_fast.compat.pydensecrf import densecrf, eigen, utils

__all__ = ["densecrf", "eigen", "install", "utils"]


def install() -> None:
    """Make `import pydensecrf`, in whatever form, resolve to this package from now on, in this process.

    Call it before the code that imports pydensecrf. `amn-fast shim SCRIPT` does it for a script and for the processes
    that the script starts.
    """
    sys.modules["pydensecrf"] = sys.modules[__name__]
    for module in (densecrf, eigen, utils):
        sys.modules[f"pydensecrf.{module.__name__.rpartition('.')[2]}"] = module
