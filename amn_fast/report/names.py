"""Keys of metrics.json, and what the report calls them."""

from amn_fast.pipeline import table

RESULTS = {
    "cam": "CAM",
    "refined_seed": "Refined seed",
    "amn": "AMN",
    "amn_refined": "Refined AMN seed",
    "mask": "Mask",
}
"""Results with scores, in the order of the pipeline."""

STAGES = {stage.name: stage.result or None for stage in table.STAGES}
"""Stages in the order of the pipeline, and the result that each one makes."""

NETWORKS = {"cam": "Classifier", "amn": "AMN", "irn": "IRN"}
"""Networks by the names of their weights, in the order of their training."""

SEGMENTATION = {"without_crf": "Network", "with_crf": "Network and CRF"}
"""Results in the record of the segmentation network."""

COMPARED = ("cam", "amn", "mask")
"""Results that are plotted against each other; each has a colour and a dash pattern of its own."""

TONES = {"without_crf": "amn", "with_crf": "mask", "irn": "mask", "seg": "amn"}
"""Results and networks that take the colour of one of `COMPARED`."""


def result_name(key: str) -> str:
    """What the page calls a result."""
    return RESULTS.get(key) or SEGMENTATION[key]


def label_name(label: int, names: list[str]) -> str:
    """The class of a label; `names` starts with the background."""
    if label == 255:
        return "unknown"
    return names[label] if label < len(names) else f"class {label}"


CHOICES = {"cam_seed": "Seeds of the CAM", "amn_seed": "Seeds of AMN"}
"""Sections of the configuration whose thresholds a run may choose, and what the page calls them."""
