"""Frozen features of a run's images: which images, and the network with its projections."""

from collections.abc import Sequence

import numpy as np

from amn_fast.errors import InputError
from amn_fast.models import CamNet
from amn_fast.models.heads import HeadsNet
from amn_fast.pipeline.engine import cores, for_each, on_device
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.training import load_weights
from amn_fast.steps import heads

PROJECTION_IMAGES = 50


def subset(work: Workspace, most: int) -> list[str]:
    """At most `most` images that show a class, drawn at random, in random order.

    Raises:
        InputError: no image shows a class.
    """
    shown = [id for id in work.dataset.ids if work.dataset.labels(id).any()]
    if not shown:
        raise InputError("no image has a label, expected at least one that shows a class")
    return [shown[k] for k in np.random.default_rng(work.config.seed).permutation(len(shown))[:most]]


def feature_net(work: Workspace, ids: Sequence[str]) -> HeadsNet:
    """The backbone of the run's classifier, with projections fitted on the first of these images."""
    n_classes = len(work.dataset.classes)
    classifier = CamNet(n_classes, work.config.backbone)
    load_weights(work.weights("cam"), classifier)
    net = HeadsNet(n_classes, work.config.backbone)
    net.backbone.load_state_dict(classifier.backbone.state_dict())
    net.to(work.device).eval()
    maps = {}

    def one(id: str) -> None:
        with on_device(work.device):
            maps[id] = heads.level_maps(net, work.dataset.image(id), work.device)

    some = ids[:PROJECTION_IMAGES]
    for_each("projections", some, one, cores())
    heads.fit_projections(net, [maps[id] for id in some], np.random.default_rng([work.config.seed, 0]))
    return net
