"""Signs that a run cannot give useful masks, each as a sentence that says what to do. They need no ground truth.

Every check takes counts or figures and gives a `Finding`, or None where nothing is wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from amn_fast.steps.convergence import GUESSING

FLAT = 0.03
"""Standard deviation of an activation below which it is the same everywhere."""
FEWEST_IMAGES = 5
"""Of fewer images nothing is said."""
BELOW_HEADS = 0.05
"""How far AMN may be below linear heads on the same seeds."""
USUAL, BY_CHANCE = 0.2, 0.01
"""Share of the images that may have a flaw, and how unlikely it must be that a larger one was found by chance."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        text: a sentence, and what to do.
        serious: whether the masks are not useful as they are.
    """

    check: str
    text: str
    serious: bool

    @property
    def word(self) -> str:
        """What a reader calls it."""
        return "problem" if self.serious else "warning"

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return asdict(self)


def classifier(
    losses: Sequence[float], guess: float, divisor: int, lr: float, new_lr: float, images: int
) -> Finding | None:
    """Whether the classifier has learned, and at which rates.

    Args:
        losses: of each epoch of its last training.
        guess: `guessing_loss` of the labels.
        divisor: what the learning rates were divided by at restarts; 1 without any.
        lr, new_lr: the learning rates of the configuration.
        images: number of training images.
    """
    if images >= FEWEST_IMAGES and guess == 0:
        text = "all images have the same label, so a classifier has nothing to tell apart; add images without the class"
        return Finding("classifier", f"classifier: {text}, with 0 in the label file", True)
    if not losses:
        return None
    if losses[-1] >= GUESSING * guess:
        text = (
            f"classifier: its loss in the last epoch is {losses[-1]:.3f}, that of guessing is {guess:.3f}, so it has"
            " learned nothing"
        )
        if divisor > 1:
            lower = f"train_cam.lr={lr / divisor / 3:.2g}, train_cam.new_lr={new_lr / divisor / 3:.2g}"
            return Finding(
                "classifier",
                f"{text}, also at 1/{divisor} of the learning rates; check that each label belongs to its image, then"
                f" try {lower}",
                True,
            )
        return Finding("classifier", f"{text}; train for more epochs (train_cam.epochs) or at other rates", True)
    if divisor > 1:
        text = f"train_cam.lr={lr / divisor:.2g}, train_cam.new_lr={new_lr / divisor:.2g}"
        return Finding(
            "classifier",
            f"classifier: the learning rates are too high, it learned at 1/{divisor} of them only; set {text}",
            False,
        )
    return None


def separation(scores: NDArray[np.floating], labels: NDArray[np.bool_], names: Sequence[str]) -> list[Finding]:
    """Whether images and labels belong together, and which classes look alike.

    Args:
        scores: (N, C) of images that the scoring classifier has not seen, see `crossed_scores`.
        labels: (N, C) their labels.
        names: of the C classes.
    """
    found: list[Finding] = []
    tested = [k for k in range(labels.shape[1]) if min(labels[:, k].sum(), (~labels[:, k]).sum()) >= FEWEST_IMAGES]
    if not tested:
        return found
    curves = [_area(scores[:, k], labels[:, k]) for k in tested]
    # A ranking by chance has area 1/2 and this standard deviation (Mann and Whitney).
    sigmas = [_area_sigma(int(labels[:, k].sum()), len(labels)) for k in tested]
    overall = sum((area - 0.5) / sigma for area, sigma in zip(curves, sigmas, strict=True)) / math.sqrt(len(tested))
    if overall < 3 and np.mean(curves) < 0.7:
        return [
            Finding(
                "labels",
                f"labels: from the images, a classifier ranks unseen images of a class above others in"
                f" {np.mean(curves):.0%} of the pairs, by chance 50 %; check that each label belongs to its image",
                True,
            )
        ]
    weak = [
        names[k] for k, area, sigma in zip(tested, curves, sigmas, strict=True) if area < 0.6 and area - 0.5 < 2 * sigma
    ]
    if weak:
        found.append(
            Finding(
                "labels",
                f"labels: images of {_listed(weak)} look like those without; check the labels of"
                f" {'this class' if len(weak) == 1 else 'these classes'}, or add images without",
                len(weak) == len(tested),
            )
        )
    for i, one in enumerate(tested):
        for other in tested[i + 1 :]:
            single = labels[:, one] != labels[:, other]
            if not single.any():
                text = f"classes: {names[one]} and {names[other]} are labelled in the same images"
                found.append(
                    Finding("alike", f"{text}; nothing tells them apart: merge them or add images of one", True)
                )
                continue
            first = labels[single, one]
            if min(first.sum(), (~first).sum()) < FEWEST_IMAGES:
                continue
            area = _area(scores[single, one] - scores[single, other], first)
            if area - 0.5 < 2 * _area_sigma(int(first.sum()), len(first)) and area < 0.65:
                text = f"classes: images of {names[one]} and {names[other]} look alike"
                found.append(
                    Finding(
                        "alike", f"{text} (told apart in {area:.0%} of the pairs); merge the two or check them", False
                    )
                )
    return found


def crossed_scores(
    features: NDArray[np.floating], labels: NDArray[np.bool_], folds: int = 5, weight: float = 1.0
) -> NDArray[np.float64]:
    """Scores of each class for each image, by a ridge regression on the images of the other folds.

    Args:
        features: (N, D) of a network that has not seen the labels.
        labels: (N, C).
        folds: image n is in fold n % folds.
        weight: of the ridge, relative to the number of images.
    """
    features = (features - features.mean(0)) / (features.std(0) + 1e-6) / math.sqrt(features.shape[1])
    found = np.zeros(labels.shape)
    fold = np.arange(len(features)) % folds
    for one in range(folds):
        train, test = features[fold != one], features[fold == one]
        target = labels[fold != one].astype(float)
        mean, middle = train.mean(0), target.mean(0)
        train = train - mean
        kernel = train @ train.T
        dual = np.linalg.solve(kernel + weight * np.trace(kernel) / len(train) * np.eye(len(train)), target - middle)
        found[fold == one] = (test - mean) @ train.T @ dual  # without the middle, which differs between folds
    return found


def activations(flat: NDArray[np.int64], maps: NDArray[np.int64], names: Sequence[str]) -> Finding | None:
    """Whether activations are the same at all pixels.

    Args:
        flat, maps: (C,) flat and all activations of each class, over the images with its label.
        names: of the classes.
    """
    share = flat.sum() / max(1, maps.sum())
    bad = [name for name, own, count in zip(names, flat, maps, strict=True) if count >= 3 and own > count / 2]
    if maps.sum() < FEWEST_IMAGES or (share < 0.2 and not bad):
        return None
    of = f" of {_listed(bad)}" if bad else ""
    return Finding(
        "activations",
        f"activations: {flat.sum()} of {maps.sum()} class activations have the same value at all pixels, most{of},"
        " and show no object; the classifier has collapsed: lower train_cam.lr and train_cam.new_lr to a third"
        if bad
        else f"activations: {flat.sum()} of {maps.sum()} class activations have the same value at all pixels;"
        " lower train_cam.lr and train_cam.new_lr to a third",
        bool(share > 0.5 or len(bad) > len(names) / 2),
    )


def seeds(
    name: str, section: str, without: Sequence[int], images: int, thresholds: tuple[float, float]
) -> Finding | None:
    """Whether seeds lack foreground or background.

    Args:
        name: what they are called.
        section: of the configuration with their thresholds.
        without: images with a class whose seed has no foreground pixel, and no background pixel.
        images: images with a class.
        thresholds: fg and bg.
    """
    words = (("foreground", "fg", "lower"), ("background", "bg", "raise"))
    for lacking, value, (what, key, change) in zip(without, thresholds, words, strict=True):
        if _too_many(lacking, images):
            text = f"{name}: {lacking} of {images} images have no {what} pixel"
            return Finding("seeds", f"{text}; {change} {section}.{key}, now {value:g}", lacking > 0.6 * images)
    return None


def missing_classes(empty: Sequence[int], images: Sequence[int], names: Sequence[str]) -> Finding | None:
    """Whether classes are missing in masks of images with their label.

    Args:
        empty: masks without a pixel of the class, among those of `images` images with its label.
    """
    bad = [
        (name, lacking, count)
        for name, lacking, count in zip(names, empty, images, strict=True)
        if _too_many(lacking, count)
    ]
    if not bad:
        return None
    total = sum(count for _, _, count in bad)
    lost = sum(lacking for _, lacking, _ in bad)
    text = _listed([f"{name} ({lacking} of {count})" for name, lacking, count in bad])
    serious = lost > 0.6 * total and total > 0.5 * sum(images)
    return Finding(
        "masks",
        f"masks: images with a label whose mask has no pixel of it: {text}; lower mask.background or cam_seed.fg, or"
        " set mask.maximum=class",
        serious,
    )


def flooding(before: NDArray[np.floating], after: NDArray[np.floating], exp_times: int) -> Finding | None:
    """Whether the random walk spreads the foreground over the image.

    Args:
        before, after: foreground share of each image with a class, before and after the walk, at the same threshold.
        exp_times: the walk takes 2 ** exp_times steps.
    """
    flooded = (after > 0.8) & (after > before + 0.25)
    if _too_many(int(flooded.sum()), len(flooded)):
        return Finding(
            "walk",
            f"masks: the random walk spreads the foreground over {int(flooded.sum())} of {len(after)} images; lower"
            f" mask.exp_times, now {exp_times}, or raise mask.beta",
            bool(flooded.mean() > 0.6),
        )
    if len(after) >= 4 * FEWEST_IMAGES and after.mean() >= before.mean() + 0.15:  # good runs: up to .05
        return Finding(
            "walk",
            f"masks: the random walk raises the share of foreground from {before.mean():.0%} to {after.mean():.0%}; set"
            f" mask.background=auto, or lower mask.exp_times, now {exp_times}",
            False,
        )
    return None


def foreground(share: float | None, images: int) -> Finding | None:
    """Whether masks of images with a class are all background or all foreground; `share` is of their pixels."""
    if share is None or images < FEWEST_IMAGES or 0.005 <= share <= 0.95:
        return None
    what, change = ("background", "lower") if share < 0.005 else ("foreground", "raise")
    return Finding(
        "masks", f"masks: {max(share, 1 - share):.1%} of their pixels are {what}; {change} mask.background", True
    )


def below_cam(amn: float, cam: float) -> Finding | None:
    """Whether AMN's activations have a lower best mIoU than those that it started from; needs ground truth."""
    if amn >= cam - 0.02:
        return None
    return Finding(
        "amn",
        f"AMN: the mIoU of its activations, {amn:.3f}, is below the CAM's, {cam:.3f}; its seeds are poor: choose"
        " other cam_seed.fg and cam_seed.bg",
        True,
    )


def below_heads(amn: float, heads: float) -> Finding | None:
    """Whether AMN's activations have a lower best mIoU than linear heads on the same seeds; needs ground truth."""
    if amn >= heads - BELOW_HEADS:
        return None
    return Finding(
        "amn",
        f"AMN: the mIoU of its activations, {amn:.3f}, is below that of linear heads on the same seeds, {heads:.3f};"
        " train it for more epochs (train_amn.epochs), or set train_amn.kind=heads",
        False,
    )


def _area(score: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often an image of the class is ranked above another."""
    order = np.argsort(score, kind="stable")
    rank = np.empty(len(score))
    rank[order] = np.arange(1, len(score) + 1)
    count = int(positive.sum())
    return float((rank[positive].sum() - count * (count + 1) / 2) / (count * (len(score) - count)))


def _too_many(hits: int, tries: int) -> bool:
    """Whether more than `USUAL` of all images have a flaw, not these by chance: two of five say little, 12 of 30 much.

    The probability of so many is below `BY_CHANCE` if the share of all images is `USUAL` (binomial).
    """
    if tries < FEWEST_IMAGES or hits <= USUAL * tries:
        return False
    return bool(bdtrc(hits - 1, tries, USUAL) < BY_CHANCE)


def _area_sigma(positive: int, images: int) -> float:
    return math.sqrt((images + 1) / (12 * positive * (images - positive)))


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
