"""Masks of new images from a finished run, in memory: `Labeler`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from amn_fast.data.classes import label_vector
from amn_fast.data.image import Source, read_image
from amn_fast.data.store import as_stored
from amn_fast.errors import InputError
from amn_fast.label.finished import check_finished, classes_of, run_config
from amn_fast.models import AmnNet, CamNet, HeadsNet, IrnNet, prepare
from amn_fast.models.prepare import Net
from amn_fast.ops._arrays import default_backend, integer
from amn_fast.ops.mask import mask_from_scores
from amn_fast.pipeline.chosen import chosen_mask, chosen_seed
from amn_fast.pipeline.engine import on_device
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.training import load_weights
from amn_fast.review.doubt import doubt
from amn_fast.steps import amn, cam, irn, mask, seed

Image = NDArray[np.uint8] | Source
ImageLabels = Sequence[str] | NDArray[np.bool_]


@dataclass(frozen=True)
class LabelResult:
    """The mask of one image, and what it was computed from.

    Attributes:
        mask: (H, W) uint8: 0 is background, k the class `classes[k - 1]` of the run.
        labels: names of the image's K classes, in the order of the run's classes.
        predicted: whether the labels are those of the run's classifier.
        keys: (K,) uint8, the values of the labels in the mask.
        scores: (K, H, W) float32 in [0, 1], the propagated scores that the mask is the threshold of.
        areas: pixels of each label in the mask, in the order of `labels`.
        doubt: 0 to 1, how much of the foreground depends on the threshold; see `amn_fast.review.doubt.doubt`.
    """

    mask: NDArray[np.uint8]
    labels: tuple[str, ...]
    predicted: bool
    keys: NDArray[np.uint8]
    scores: NDArray[np.float32]
    areas: tuple[int, ...]
    doubt: float


class Labeler:
    """The networks and settings of a finished run, to label images that the run has not seen.

    Class activations, seed, AMN's activations, edges, random walk and threshold follow each other in memory. The mask
    is the one that the stages give for the same image: activations are rounded to half precision where the stages
    write them to files.

    Args:
        run: folder of a finished run; its configuration, class names and weights are read, its images are not.
        device: "cpu" or "cuda"; None takes the run's setting.
        threads: CPU threads for an image. Throughput grows more with images on several threads or processes. The
            networks' activations depend on it in their last bits; the stages compute on one.
        thresholds: probability above which the classifier's label counts, by class, for images that come without
            labels; 0.5 where none is given. `amn_fast.label.prediction.choose_thresholds` finds them.

    Raises:
        InputError: the run is not finished, or its weights do not fit.

    Examples:
        labeler = amn_fast.Labeler("runs/demo")
        result = labeler.label("photo.jpg", ["cat"])
        result.mask, result.areas
    """

    def __init__(
        self,
        run: Path | str,
        *,
        device: str | None = None,
        threads: int = 1,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        self.run = Path(run)
        check_finished(self.run)
        self.config = run_config(self.run)
        if device is not None:
            self.config = self.config.model_copy(update={"device": device})
        self.classes = classes_of(self.run)
        self.threads = integer("threads", threads, 1)
        unknown = sorted(set(thresholds or {}) - set(self.classes))
        if unknown:
            raise InputError(
                f"thresholds: {unknown[0]!r} is no class of {self.run}, expected {', '.join(self.classes)}"
            )
        self.thresholds = np.array([(thresholds or {}).get(name, 0.5) for name in self.classes], np.float32)
        self._seed, self._mask = chosen_seed(self.config, "cam_seed"), chosen_mask(self.config)
        work = Workspace(self.config)
        self.device = work.device
        backbone = self.config.backbone
        self._cam = self._loaded(work, "cam", CamNet(len(self.classes), backbone))
        kind = HeadsNet if self.config.train_amn.kind == "heads" else AmnNet
        self._amn = self._loaded(work, "amn", kind(len(self.classes), backbone))
        self._irn = self._loaded(work, "irn", IrnNet(backbone)) if self.config.mask.kind == "walk" else None

    def _loaded(self, work: Workspace, name: str, net: Net) -> Net:
        load_weights(work.weights(name), net)
        return prepare(net.to(self.device), self.config.precision)

    def label(self, image: Image, labels: ImageLabels | None = None) -> LabelResult:
        """The mask of an image.

        Args:
            image: (H, W, 3) uint8 RGB, or a file.
            labels: names of the classes that it shows, or (C,) bool over the run's classes; None predicts them.

        Raises:
            InputError: the image or a label is not as above.
        """
        with self._settings():
            pixels = _pixels(image)
            predicted = labels is None
            shown = self.probabilities(pixels) > self.thresholds if labels is None else self._vector(labels)
            return self._label(pixels, shown, predicted)

    def probabilities(self, image: Image) -> NDArray[np.float32]:
        """The classifier's probability of each class, (C,) float32: the mean over the image and its horizontal flip."""
        with self._settings():
            return cam.probabilities(self._cam, _pixels(image), self.device)

    def _label(self, image: NDArray[np.uint8], shown: NDArray[np.bool_], predicted: bool) -> LabelResult:
        config, device = self.config, self.device
        names = tuple(name for name, on in zip(self.classes, shown, strict=True) if on)
        if not names:
            nothing = np.zeros((0, *image.shape[:2]), np.float32)
            blank = np.zeros(image.shape[:2], np.uint8)
            return LabelResult(blank, names, predicted, np.zeros(0, np.uint8), nothing, (), doubt(nothing))
        with on_device(device):
            found = as_stored(cam.activate(self._cam, image, shown, config.cam.scales, device))
        labels = seed.refine(image, found, self._seed, device)
        with on_device(device):
            found = as_stored(amn.activate(self._amn, image, shown, labels, config.amn, device))
            edge = None if self._irn is None else irn.find_edge(self._irn, image, config.edge.pad, device)
        if edge is None:
            scores, made = found.full, mask.make_crf_mask(image, found, self._mask)
        else:
            scores = mask.scores(found, edge, config.mask, device, self.threads)
            made = mask_from_scores(scores, found.keys, self._mask.threshold)
        areas = tuple(int(np.count_nonzero(made == key)) for key in found.keys)
        return LabelResult(made, names, predicted, found.keys, scores, areas, doubt(scores))

    def _vector(self, labels: ImageLabels) -> NDArray[np.bool_]:
        if isinstance(labels, str):
            raise InputError(f"labels are the text {labels!r}, expected a list of class names")
        given = np.asarray(labels)
        if given.dtype == bool:
            if given.shape != (len(self.classes),):
                raise InputError(
                    f"labels have shape {given.shape}, expected ({len(self.classes)},), one for each class"
                )
            return given
        return label_vector([str(name) for name in labels], self.classes, "labels", "the image")

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """The run's backend, and this object's number of threads; they are settings of the whole process."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with default_backend(self.config.backend):
                yield
        finally:
            torch.set_num_threads(before)


def _pixels(image: Image) -> NDArray[np.uint8]:
    if not isinstance(image, np.ndarray):
        return read_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"image has shape {image.shape} and type {image.dtype}, expected (H, W, 3) uint8")
    return image
