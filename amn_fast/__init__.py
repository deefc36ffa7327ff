"""Image-level labels to segmentation masks: AMN's pipeline, with fast dense CRF, random walk and losses.

Everything public is reachable from here and loaded at first use: importing `amn_fast` imports neither PyTorch nor
OpenCV, and what needs only arrays never imports PyTorch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# One line for each public name and the module that defines it. No module of this package may bear one of these names.
_NAMES = {
    "Config": "amn_fast.config",
    "DenseCRF": "amn_fast.ops.dense_crf",
    "Labeler": "amn_fast.label.labeler",
    "bilateral_filter": "amn_fast.ops.bilateral_filter",
    "dense_crf": "amn_fast.ops.dense_crf",
    "energy_loss": "amn_fast.ops.energy_loss",
    "info": "amn_fast._info",
    "local_affinity": "amn_fast.ops.local_affinity",
    "make_mask": "amn_fast.ops.mask",
    "merge_amn": "amn_fast.ops.merge",
    "merge_cam": "amn_fast.ops.merge",
    "pair_loss": "amn_fast.ops.pair_loss",
    "pixel_adaptive_refinement": "amn_fast.ops.local_affinity",
    "pixel_loss": "amn_fast.ops.pixel_loss",
    "propagate": "amn_fast.ops.local_affinity",
    "random_walk": "amn_fast.ops.random_walk",
    "read_activations": "amn_fast.data",
    "refine_seed": "amn_fast.ops.dense_crf",
    "run": "amn_fast.pipeline",
    "selftest": "amn_fast._selftest",
    "unary_from_labels": "amn_fast.ops.unary",
    "unary_from_softmax": "amn_fast.ops.unary",
}
_MODULES = ("compat", "config", "data", "errors", "label", "metrics", "models", "nn", "ops", "pipeline")

__all__ = ["__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"amn_fast.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module 'amn_fast' has no attribute {name!r}")
    try:
        value = getattr(import_module(_NAMES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "amn_fast").startswith("amn_fast"):
            raise
        from amn_fast.errors import MissingExtra

        raise MissingExtra(
            f"amn_fast.{name} needs {error.name}, which is not installed; `pip install 'amn-fast[pipeline]'` brings it"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_MODULES})
