"""The former name of `_arrays.choose_backend`."""

from amn_fast.ops._arrays import choose_backend as choose

__all__ = ["choose"]
