"""Answers `import bilateralfilter` with amn_fast's bilateral filter."""

from amn_fast.compat.bilateralfilter import bilateralfilter, bilateralfilter_batch

__all__ = ["bilateralfilter", "bilateralfilter_batch"]
