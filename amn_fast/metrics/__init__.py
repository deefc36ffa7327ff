"""How good masks and activations are: confusion, threshold curve, activation histogram.

All three stream: images go in one at a time with `add`, and only integer counts are kept. The result is therefore
bit-identical for any order of the images.

Labels are 0 (background) and 1..C (the classes); background is one of the C + 1 classes that mIoU averages over.
255 is "unknown", and so is -1 in signed arrays. A pixel whose ground truth is unknown never counts.
"""

from amn_fast.metrics._checks import UNKNOWN, AbsentRule, UnknownRule
from amn_fast.metrics.confusion import Confusion, Scores
from amn_fast.metrics.curve import CurveResult, ThresholdCurve
from amn_fast.metrics.histogram import ActivationHistogram, HistogramResult

__all__ = [
    "UNKNOWN",
    "AbsentRule",
    "ActivationHistogram",
    "Confusion",
    "CurveResult",
    "HistogramResult",
    "Scores",
    "ThresholdCurve",
    "UnknownRule",
]
