"""The stages of the pipeline, one row each, in their order.

Everything that concerns several stages derives from this table: order, dependencies, commands and their help, what a
result depends on, columns and time table of the report, import from and export to folders of the reference
implementations. The module needs neither PyTorch nor the configuration.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amn_fast.errors import InputError

IMAGE, LABELS, GROUND_TRUTH, MASK, CLASSES = "image", "label", "ground truth", "mask", "class names"
TRUSTED = "trusted mask"
"""Inputs from the data set; MASK is a file of the folder `train_seg.masks`, TRUSTED one of the folder `trusted`."""


@dataclass(frozen=True)
class Stage:
    """One row.

    Attributes:
        name: name of the stage and of its command.
        help: the command's help line.
        function: "module:function" in `amn_fast.pipeline`. It takes a `Workspace` and a function `new`, which gives
            the path to write to for a path in the run folder. For a stage per image it returns the function of an id
            that writes the outputs of that image.
        inputs: IMAGE, LABELS, ... of the data set, or outputs of earlier stages. `{id}` stands for each image.
        outputs: files in the run folder; a path that ends in "/" is a folder of any files. Under some configurations
            a stage per image writes a part of them only.
        settings: keys of the configuration that the outputs depend on.
        per_image: whether each image has its own outputs, recomputed for that image alone.
        trains: whether the stage trains a network: its result is never replaced without `--overwrite`.
        scores: whether the stage only scores: its result is replaced without asking.
        result: name of the result in metrics.json, for the report.
        reference: the place of the same output in a folder of the reference implementation; `*` matches any name.
        imported: whether the output can be imported from there (it is exported in any case).
        segmentation: whether the stage belongs to the segmentation network, which a configuration may leave out.
        together: whether several processes of torchrun may run it together.
        when: (key, value) pairs of the configuration: the stage exists only where each setting has that value.
        inputs_when: (key, value, input): further inputs where a setting has a value.
    """

    name: str
    help: str
    function: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: tuple[str, ...] = ()
    per_image: bool = False
    trains: bool = False
    scores: bool = False
    result: str = ""
    reference: str = ""
    imported: bool = True
    segmentation: bool = False
    together: bool = False
    when: tuple[tuple[str, Any], ...] = ()
    inputs_when: tuple[tuple[str, Any, str], ...] = ()

    def load(self) -> Callable[..., Any]:
        """The function; its module is imported now."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(f"amn_fast.pipeline.{module}"), name)


TRAINING = ("seed", "training_precision", "backbone", "weights")

WALK = ("mask.kind", "walk")
"""Without the random walk over IRN's edges, IRN and its seeds are left out."""

STAGES: tuple[Stage, ...] = (
    Stage(
        "train-cam",
        "Train the classifier whose class activations everything starts from.",
        "trainings:train_cam",
        inputs=(IMAGE, LABELS, CLASSES),
        outputs=("weights/cam.safetensors",),
        settings=(*TRAINING, "train_cam"),
        trains=True,
        together=True,
        reference="sess/*cam.pth",
    ),
    Stage(
        "make-cam",
        "Compute the class activations of every image.",
        "inference:make_cam",
        inputs=(IMAGE, LABELS, "weights/cam.safetensors"),
        outputs=("cam/{id}.npz",),
        settings=("precision", "store", "cam"),
        per_image=True,
        result="cam",
        reference="result/cam",
    ),
    Stage(
        "choose-seed",
        "Choose the thresholds of the seeds without ground truth.",
        "choosing:choose_seed",
        inputs=(IMAGE, LABELS, CLASSES, "weights/cam.safetensors", "cam/{id}.npz"),
        outputs=("thresholds/cam_seed.json", "thresholds/cam_seed/"),
        settings=("seed", "cam_seed"),
        when=(("cam_seed.fg", "auto"),),
    ),
    Stage(
        "refine-seed",
        "Refine the class activations with a dense CRF to the seeds that AMN learns from.",
        "inference:refine_seed",
        inputs=(IMAGE, "cam/{id}.npz", "thresholds/cam_seed.json"),
        outputs=("cam_seed/{id}.png",),
        settings=("cam_seed",),
        per_image=True,
        result="refined_seed",
        reference="result/ir_label",
    ),
    Stage(
        "train-amn",
        "Train the activation manipulation network.",
        "trainings:train_amn",
        inputs=(IMAGE, LABELS, CLASSES, "cam_seed/{id}.png", TRUSTED),
        outputs=("weights/amn.safetensors",),
        settings=(*TRAINING, "train_amn"),
        trains=True,
        together=True,
        inputs_when=(("train_amn.kind", "heads", "weights/cam.safetensors"),),
        reference="sess/*amn.pth",
    ),
    Stage(
        "make-amn-cam",
        "Compute AMN's activations of every image.",
        "inference:make_amn_cam",
        inputs=(IMAGE, LABELS, "weights/amn.safetensors", "cam_seed/{id}.png"),
        outputs=("amn/{id}.npz",),
        settings=("precision", "store", "amn"),
        per_image=True,
        result="amn",
        reference="result/amn_cam",
    ),
    Stage(
        "choose-amn-seed",
        "Choose the thresholds of AMN's seeds without ground truth.",
        "choosing:choose_amn_seed",
        inputs=(IMAGE, LABELS, CLASSES, "weights/cam.safetensors", "amn/{id}.npz"),
        outputs=("thresholds/amn_seed.json", "thresholds/amn_seed/"),
        settings=("seed", "amn_seed"),
        when=(("amn_seed.fg", "auto"), WALK),
    ),
    Stage(
        "refine-amn-seed",
        "Refine AMN's activations with a dense CRF to the seeds that IRN learns from.",
        "inference:refine_amn_seed",
        inputs=(IMAGE, "amn/{id}.npz", "thresholds/amn_seed.json"),
        outputs=("amn_seed/{id}.png",),
        settings=("amn_seed",),
        per_image=True,
        when=(WALK,),
        result="amn_refined",
        reference="result/amn_ir_label",
    ),
    Stage(
        "train-irn",
        "Train IRN's edges.",
        "trainings:train_irn",
        inputs=(IMAGE, "amn_seed/{id}.png", TRUSTED),
        outputs=("weights/irn.safetensors",),
        settings=(*TRAINING, "train_irn"),
        trains=True,
        together=True,
        when=(WALK,),
        reference="sess/*irn.pth",
    ),
    Stage(
        "choose-background",
        "Choose the threshold of the masks without ground truth.",
        "choosing:choose_background",
        inputs=(IMAGE, LABELS, "amn/{id}.npz", "weights/irn.safetensors", "thresholds/cam_seed.json"),
        outputs=("thresholds/mask.json",),
        settings=("seed", "precision", "edge", "mask"),
        when=(("mask.background", "auto"),),
    ),
    Stage(
        "make-mask",
        "Propagate AMN's activations over IRN's edges and threshold them to pseudo-masks.",
        "inference:make_masks",
        inputs=(IMAGE, "amn/{id}.npz", "weights/irn.safetensors", "thresholds/mask.json", TRUSTED),
        outputs=("masks/{id}.png", "edge/{id}.npz"),
        settings=("precision", "edge", "mask"),
        per_image=True,
        result="mask",
        reference="result/sem_seg",
        imported=False,
    ),
    Stage(
        "check-run",
        "Look for signs that the masks are not useful, and rank them by doubt; needs no ground truth.",
        "health:check_run",
        inputs=(
            IMAGE, LABELS, CLASSES, "cam/{id}.npz", "cam_seed/{id}.png", "amn/{id}.npz", "amn_seed/{id}.png",
            "edge/{id}.npz", "masks/{id}.png", TRUSTED,
        ),
        outputs=("health.json", "doubt.csv"),
        settings=("seed", "mask"),
        scores=True,
    ),
    Stage(
        "evaluate",
        "Score seeds and masks against ground truth and write the report.",
        "evaluation:evaluate",
        inputs=(
            GROUND_TRUTH, "cam/{id}.npz", "cam_seed/{id}.png", "amn/{id}.npz", "amn_seed/{id}.png", "edge/{id}.npz",
            "masks/{id}.png", "thresholds/cam_seed.json",
        ),
        outputs=("evaluation.json",),
        settings=("mask",),
        scores=True,
    ),
    Stage(
        "train-seg",
        "Train the segmentation network on the masks.",
        "trainings:train_seg",
        inputs=(IMAGE, CLASSES, "masks/{id}.png"),
        outputs=("weights/seg.safetensors",),
        settings=("seed", "training_precision", "train_seg"),
        trains=True,
        segmentation=True,
        together=True,
    ),
    Stage(
        "eval-seg",
        "Score the segmentation network with and without CRF; write masks for a benchmark's server.",
        "segmentation:evaluate",
        inputs=(f"evaluated {IMAGE}", f"evaluated {GROUND_TRUTH}", "weights/seg.safetensors"),
        outputs=("segmentation.json", "segmentation_shown/", "segmentation/results/"),
        settings=("precision", "train_seg.backbone", "eval_seg"),
        scores=True,
        segmentation=True,
    ),
)  # fmt: skip
"""From images to masks and their scores."""

REPORT = Stage(
    "report",
    "Write metrics.json and the report page of a finished run again.",
    "reporting:write",
    inputs=(
        "health.json",
        "evaluation.json",
        "segmentation.json",
        "thresholds/cam_seed.json",
        "thresholds/amn_seed.json",
        "thresholds/mask.json",
    ),
    outputs=("metrics.json", "report.html"),
    scores=True,
)
"""Written after each stage that scores; all inputs are optional."""


def stage_named(name: str) -> Stage:
    """The row of that name.

    Raises:
        InputError: there is none.
    """
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise InputError(f"stage is {name!r}, expected one of {', '.join(stage.name for stage in STAGES)}")


def producer(path: str) -> Stage | None:
    """The stage that writes `path`; None for an input from the data set."""
    return next((stage for stage in STAGES if path in stage.outputs), None)


def upstream(stage: Stage, inputs: tuple[str, ...]) -> list[Stage]:
    """The stages that write the `inputs` of `stage`, in order."""
    found = [earlier for path in inputs if (earlier := producer(path))]
    return [earlier for earlier in STAGES if earlier in found]


def ancestors(stage: Stage) -> list[Stage]:
    """All stages that `stage` builds on, at any distance, in order."""
    found: set[str] = set()
    for candidate in reversed(STAGES[: STAGES.index(stage)]):
        later = [s for s in STAGES if s is stage or s.name in found]
        if any(path in s.inputs for s in later for path in candidate.outputs):
            found.add(candidate.name)
    return [s for s in STAGES if s.name in found]
