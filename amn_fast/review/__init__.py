"""From masks to a data set that a team trusts: export to labelling tools, import, scoring, a review page."""

from amn_fast.review.exporting import EXPORTERS, export_masks
from amn_fast.review.importing import IMPORTERS, import_masks
from amn_fast.review.scoring import score
from amn_fast.review.source import MaskSet, open_masks

__all__ = ["EXPORTERS", "IMPORTERS", "MaskSet", "export_masks", "import_masks", "open_masks", "score"]
