"""Optional dependencies: imported where they are used, and named when they are missing."""

import importlib
import importlib.util
from types import ModuleType

from amn_fast.errors import MissingExtra


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of amn_fast brings it.

    Raises:
        MissingExtra: the module is not installed.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise MissingExtra(f"{module} is not installed; `pip install 'amn-fast[{extra}]'` brings it")
    return importlib.import_module(module)
