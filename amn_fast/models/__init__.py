"""The networks: CAM, AMN, IRN and DeepLabV2, each on a backbone chosen by name. Needs the extra `pipeline`."""

from amn_fast._extras import require

require("torch", "pipeline")
require("torchvision", "pipeline")
require("timm", "pipeline")

from amn_fast.models.amn import AmnNet  # noqa: E402  (after the check, so that its sentence is what a user sees)
from amn_fast.models.backbone import Backbone, make_backbone  # noqa: E402
from amn_fast.models.cam import CamNet  # noqa: E402
from amn_fast.models.deeplab import DeepLabV2, MultiScale  # noqa: E402
from amn_fast.models.heads import HeadsNet  # noqa: E402
from amn_fast.models.irn import IrnNet  # noqa: E402
from amn_fast.models.prepare import prepare  # noqa: E402
from amn_fast.models.published import load_published, published_state_dict  # noqa: E402

__all__ = [
    "AmnNet",
    "Backbone",
    "CamNet",
    "DeepLabV2",
    "HeadsNet",
    "IrnNet",
    "MultiScale",
    "load_published",
    "make_backbone",
    "prepare",
    "published_state_dict",
]
