"""The report page of a run: `write_report`."""

from amn_fast.report.gallery import RunImages, Segmented
from amn_fast.report.page import write_report

__all__ = ["RunImages", "Segmented", "write_report"]
