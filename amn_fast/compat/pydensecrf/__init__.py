"""pydensecrf's names on amn_fast's dense CRF: `densecrf`, `utils`, and `install()` for code that is not to be changed.

Same calls and same answers (marginals within 1e-4); what crashed there raises `InputError`, a ValueError, here.
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
