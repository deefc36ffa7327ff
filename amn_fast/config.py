"""The configuration of a run: complete, checked before anything runs, and the same on every machine.

A YAML file names what differs from the defaults; `Config` holds everything, and `config.yaml` in the run folder is the
resolved form. The defaults are those of the reference implementations for VOC 2012. Each field carries its meaning and
range as a description.

Relative paths in a configuration file are relative to that file; those on the command line, and those of the shipped
configurations, to the working directory.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from amn_fast._extras import require
from amn_fast.errors import InputError
from amn_fast.ops.random_walk import MAX_EXP_TIMES, MAX_RADIUS

require("pydantic", "pipeline")
require("yaml", "pipeline")

import yaml  # noqa: E402  (after the check, so that its sentence is what a user sees)
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator  # noqa: E402

from amn_fast._wording import refusal, short  # noqa: E402
from amn_fast._yaml import parse_yaml  # noqa: E402

AUTO = "auto"
"""Value of a threshold that is chosen without ground truth."""
SHIPPED = Path(__file__).parent / "configs"
SHIPPED_NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
MAX_FILE_BYTES = 1_000_000
MAX_WORKERS = 256

# Constraints and descriptions sit in the types: a subclass that gives a field another default keeps them.
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Epochs = Annotated[int, Field(ge=1, description="Passes over the data set; 1 or more.")]
Batch = Annotated[int, Field(ge=1, description="Images per step; 1 or more. Fewer images than that make one batch.")]
Crop = Annotated[int, Field(ge=32, description="Side of the random square crop, in pixels; 32 or more.")]
LearningRate = Annotated[
    float, Field(gt=0, description="Base learning rate of pretrained layers; above 0. It decays as `power` says.")
]
NewLearningRate = Annotated[
    float, Field(gt=0, description="Base learning rate of the layers without pretrained values; above 0.")
]
WeightDecay = Annotated[float, Field(ge=0, description="Weight decay of the optimizer; 0 or more.")]
Power = Annotated[
    float, Field(ge=0, description="Learning rates follow lr * (1 - step / steps) ** power; 0 keeps them constant.")
]
Momentum = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="Momentum of SGD, in [0, 1). IRN's code passes the weight decay, 1e-4, in its place; mode `fixed`"
        " takes 0.9.",
    ),
]
Rescale = Annotated[
    tuple[Positive, Positive],
    Field(description="Smallest and largest factor by which an image and its seed are resized at random; above 0."),
]
Scales = Annotated[
    tuple[Positive, ...],
    Field(
        min_length=1,
        description="Scales of the image, each seen with its horizontal flip; one or more factors above 0."
        " The time grows with the sum of their squares.",
    ),
]
ExtraScales = Annotated[
    tuple[Positive, ...], Field(description="Scales of the network's input beside 1; factors above 0, or none.")
]
Bilateral = Annotated[
    tuple[Positive, Positive, Positive],
    Field(
        description="Appearance kernel of the dense CRF: sigma_xy in pixels, sigma_rgb in grey levels, compatibility;"
        " all above 0."
    ),
]


class Section(BaseModel):
    """A part of the configuration; an unknown name in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """Where the images and their labels are."""

    kind: Annotated[
        Literal["demo", "folder", "voc", "coco"],
        Field(description="Layout of the data set: folder (any images with a label file), voc, coco or demo."),
    ]
    root: Annotated[Path, Field(description="Folder of the data set; relative to the configuration file.")] = Path(
        "data"
    )
    options: Annotated[
        dict[str, Any],
        Field(description="Options of that layout: list file, label file, folder names; listed as data.options."),
    ] = {}


class Training(Section):
    """What all training sections share. Learning rates follow lr * (1 - step / steps) ** power."""

    epochs: Epochs
    batch: Batch
    crop: Crop
    lr: LearningRate
    new_lr: NewLearningRate
    weight_decay: WeightDecay = 1e-4
    power: Power = 0.9


class CamTraining(Training):
    """train-cam: SGD on the multi-label soft-margin loss, or a linear classifier on frozen features."""

    kind: Annotated[
        Literal["network", "linear"],
        Field(
            description="Train the network (network), or fit its last layer alone to the frozen pretrained features"
            " (linear), which takes seconds; the other settings of this section then have no effect."
        ),
    ] = "network"
    epochs: Epochs = 5
    batch: Batch = 16
    crop: Crop = 512
    lr: LearningRate = 0.1
    new_lr: NewLearningRate = 1.0
    momentum: Momentum = 1e-4
    clip: Annotated[
        float | None,
        Field(gt=0, description="Largest norm of a step's gradient, above 0; null, as published, clips nothing."),
    ] = None
    long_side: Annotated[
        tuple[Count, Count],
        Field(description="Shortest and longest long side, in pixels, to which an image is resized at random."),
    ] = (320, 640)

    @model_validator(mode="after")
    def _long_side_ordered(self) -> "CamTraining":
        if self.long_side[0] > self.long_side[1]:
            raise ValueError(f"long_side is {self.long_side}, expected the shortest first")
        return self


class SeedTraining(Training):
    """What training on seeds shares: images and seeds are resized by a random factor from a range."""

    rescale: Rescale = (0.5, 1.5)

    @model_validator(mode="after")
    def _rescale_ordered(self) -> "SeedTraining":
        if self.rescale[0] > self.rescale[1]:
            raise ValueError(f"rescale is {self.rescale}, expected the smallest first")
        return self


class AmnTraining(SeedTraining):
    """train-amn: Adam on the balanced per-pixel loss, or linear heads on frozen features."""

    kind: Annotated[
        Literal["network", "heads"],
        Field(
            description="Train the network (network), or fit a linear head on frozen features to the seeds (heads),"
            " which takes seconds; of the other settings of this section only `rounds` then has an effect."
        ),
    ] = "network"
    rounds: Annotated[
        int,
        Field(
            ge=1,
            le=5,
            description="Of `kind: heads`, fits of the head, 1 to 5. Each further one learns from seeds that a CRF"
            " makes from the last head's activations, at .8 / .2; trusted masks stay.",
        ),
    ] = 1
    epochs: Epochs = 5
    batch: Batch = 16
    crop: Crop = 512
    lr: LearningRate = 5e-6
    new_lr: NewLearningRate = 1e-4
    eps: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Label smoothing in [0, 1): 1 - eps on the label, eps shared by the other channels.",
        ),
    ] = 0.4


class IrnTraining(SeedTraining):
    """train-irn: SGD on the pair losses. `new_lr` is the learning rate of the displacement branch."""

    epochs: Epochs = 3
    batch: Batch = 32
    crop: Crop = 512
    lr: LearningRate = 0.1
    new_lr: NewLearningRate = 1.0
    momentum: Momentum = 1e-4
    radius: Annotated[
        int, Field(ge=2, description="Largest distance of a pair of pixels, at stride 4; 2 or more, up to crop / 8.")
    ] = 10
    displacement: Annotated[
        bool, Field(description="Train the displacement branch too; semantic masks do not use it.")
    ] = True

    @model_validator(mode="after")
    def _room_for_pairs(self) -> "IrnTraining":
        if self.crop < 8 * self.radius:
            raise ValueError(f"crop is {self.crop}, expected {8 * self.radius} or more, 8 times the pairs' radius")
        return self


RECIPES: dict[str, dict[str, Any]] = {
    "deeplabv2-voc": {},
    # No schedule is known to be published with the figure for COCO; this is the PyTorch code's for COCO-Stuff.
    "deeplabv2-coco": {"iterations": 100_000},
    "small": {
        "backbone": "efficientnet_lite0",
        "iterations": 200,
        "checkpoint_every": 25,
        "batch": 4,
        "accumulate": 1,
        "crop": 240,
        "lr": 1e-4,
        "lr_step": 1,
        "rescale": (0.5, 0.75, 1.0),
    },
}
"""What the recipes of train-seg set otherwise than the defaults, which are the published values for VOC."""


class SegTraining(Section):
    """train-seg: SGD on the cross entropies at all scales.

    The features learn at `lr`, the weights of the ASPP at ten times that, its biases at twenty times. All follow
    lr * (1 - k / iterations) ** power, where k is the iteration rounded down to a multiple of `lr_step`.
    """

    recipe: Annotated[
        Literal["deeplabv2-voc", "deeplabv2-coco", "small"],
        Field(description="Source of the values that are not given: DeepLabV2 for VOC or COCO, or a small network."),
    ] = "deeplabv2-voc"
    masks: Annotated[
        Path | None,
        Field(description="Folder of masks ID.png to train on; null takes the run's own. Relative to the file."),
    ] = None
    backbone: Annotated[
        str, Field(description='Feature network: "resnet101" is DeepLabV2\'s, any other name that of a backbone.')
    ] = "resnet101"
    weights: Annotated[
        str | None,
        Field(description='Initial weights: "imagenet", the path of a state dict, or null for random values.'),
    ] = "imagenet"
    iterations: Annotated[
        int, Field(ge=1, description="Optimizer steps; 1 or more, a multiple of `checkpoint_every`.")
    ] = 20_000
    checkpoint_every: Annotated[int, Field(ge=1, description="Iterations between two checkpoints; 1 or more.")] = 1_000
    batch: Batch = 5
    accumulate: Annotated[
        int, Field(ge=1, description="Batches whose gradients are summed for one iteration; 1 or more.")
    ] = 2
    crop: Crop = 321
    rescale: Annotated[
        tuple[Positive, ...],
        Field(min_length=1, description="Factors, one of which is drawn for each image and its mask; above 0."),
    ] = (0.5, 0.75, 1.0, 1.25, 1.5)
    scales: ExtraScales = (0.5, 0.75)
    lr: LearningRate = 2.5e-4
    momentum: Annotated[float, Field(ge=0, lt=1, description="Momentum of SGD, in [0, 1).")] = 0.9
    weight_decay: WeightDecay = 5e-4
    power: Power = 0.9
    lr_step: Annotated[
        int, Field(ge=1, description="Iterations between two changes of the learning rate; 1 or more.")
    ] = 10

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        recipe = values.get("recipe")
        return RECIPES.get(recipe, {}) | values if isinstance(recipe, str) else values

    @model_validator(mode="after")
    def _whole_rounds(self) -> "SegTraining":
        if self.iterations % self.checkpoint_every:
            raise ValueError(
                f"iterations is {self.iterations}, expected a multiple of checkpoint_every, {self.checkpoint_every}"
            )
        return self

    @property
    def epochs(self) -> int:
        """Rounds between checkpoints."""
        return self.iterations // self.checkpoint_every


class SegEvaluation(Section):
    """eval-seg: the network's softmax at full size, with and without CRF. The defaults are DeepLabV2's test."""

    data: Annotated[
        Data | None, Field(description="Data set to evaluate on; null takes the run's own, the training set.")
    ] = None
    options: Annotated[
        dict[str, Any], Field(description="Options of that set that differ for the evaluation, such as {ids: val}.")
    ] = {}
    scales: ExtraScales = (0.5, 0.75)
    flip: Annotated[
        bool, Field(description="Average with the horizontally flipped image; DeepLabV2's test does not.")
    ] = False
    window: Annotated[
        int | None,
        Field(
            ge=32,
            description="Side of overlapping square windows, 32 or more pixels; null takes the whole image at once.",
        ),
    ] = None
    crf: Annotated[bool, Field(description="Score the network with the dense CRF too.")] = True
    gaussian: Annotated[
        tuple[Positive, Positive],
        Field(description="Smoothness kernel of the dense CRF: sigma_xy in pixels, compatibility; both above 0."),
    ] = (1.0, 3.0)
    bilateral: Bilateral = (67.0, 3.0, 4.0)
    iterations: Annotated[int, Field(ge=1, description="Mean-field iterations of the dense CRF; 1 or more.")] = 10
    save_masks: Annotated[
        bool, Field(description="Write the masks in the layout of VOC's server; for COCO, with its category ids.")
    ] = False


class Inference(Section):
    """make-cam: scales of the image, each with its horizontal flip."""

    scales: Scales = (1.0, 0.5, 1.5, 2.0)


class AmnInference(Inference):
    """make-amn-cam: scales, and how AMN's logits become activations."""

    softmax: Annotated[
        Literal["all", "image"],
        Field(
            description="Channels of the softmax: all C + 1 (AMN's code), or background and the image's own classes."
        ),
    ] = "all"

    @model_validator(mode="before")
    @classmethod
    def _old_value(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("softmax") == "picture":
            return values | {"softmax": "image"}
        return values


class Seed(Section):
    """refine-seed: dense CRF on argmax([threshold, activations]) with a high and a low threshold."""

    fg: Annotated[
        Probability | Literal["auto"],
        Field(
            description="Activation above which a pixel is sure foreground, in [bg, 1]; auto chooses both thresholds"
            " without ground truth."
        ),
    ]
    bg: Annotated[
        Probability | Literal["auto"],
        Field(description="Activation below which a pixel is sure background, in [0, fg]; or auto, as `fg`."),
    ]
    bilateral: Bilateral = (50.0, 5.0, 10.0)

    @model_validator(mode="before")
    @classmethod
    def _from_auto(cls, values: Any) -> Any:
        if isinstance(values, str) and values != AUTO:
            raise ValueError(f"found {short(values)}, expected auto or settings such as fg and bg")
        return {"fg": AUTO, "bg": AUTO} if values == AUTO else values

    @model_validator(mode="after")
    def _ordered(self) -> "Seed":
        if (self.fg == AUTO) != (self.bg == AUTO):
            raise ValueError(f"fg is {self.fg} and bg is {self.bg}, expected two numbers or auto for both")
        if self.fg != AUTO and self.bg > self.fg:  # type: ignore[operator]
            raise ValueError(f"bg is {self.bg} and fg is {self.fg}, expected bg <= fg")
        return self

    @property
    def pair(self) -> tuple[float, float]:
        """Both thresholds.

        Raises:
            InputError: they are still to be chosen.
        """
        if isinstance(self.fg, str) or isinstance(self.bg, str):
            raise InputError("the thresholds of the seed are auto, expected numbers; see `pipeline.chosen`")
        return self.fg, self.bg


class EdgeInference(Section):
    """make-mask: the edge map of IRN."""

    pad: Annotated[
        int,
        Field(
            ge=0,
            description="Pad images with zeros to at least this side, 0 for none. IRN's code pads to 512, which the"
            " network's group norms see; mode `fixed` takes 0.",
        ),
    ] = 512


class Mask(Section):
    """make-mask: random walk over IRN's edges and a threshold, or a dense CRF."""

    kind: Annotated[
        Literal["walk", "crf"],
        Field(
            description="Propagate the activations over IRN's edges (walk), or refine them with a dense CRF (crf),"
            " which trains no network: IRN's stages are left out."
        ),
    ] = "walk"
    radius: Annotated[
        int,
        Field(
            ge=1, le=MAX_RADIUS, description=f"Radius of the random walk's affinities, at stride 4; 1..{MAX_RADIUS}."
        ),
    ] = 5
    beta: Annotated[float, Field(gt=0, description="Exponent of the affinities; above 0.")] = 10.0
    exp_times: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_EXP_TIMES["chebyshev"],
            description=f"The random walk takes 2 ** exp_times steps; 0..{MAX_EXP_TIMES['chebyshev']}.",
        ),
    ] = 8
    power: Annotated[float, Field(gt=0, description="Exponent of the activations before the walk; above 0.")] = 1.3
    background: Annotated[
        Probability | Literal["auto"],
        Field(
            description="Score below which a pixel is background, in [0, 1]. auto chooses it: of `kind: crf`, where the"
            " masks follow the images' regions and the activations, read as probabilities, promise a high IoU; of the"
            " walk, where the masks agree most with those of the linear heads that `cam_seed: auto` fits, or, where the"
            " seeds have fixed thresholds, where the scores promise the highest IoU."
        ),
    ] = 0.25
    maximum: Annotated[
        Literal["global", "class"],
        Field(description="Divide scores by the maximum over all classes (IRN's code) or by each class's own."),
    ] = "global"

    @property
    def threshold(self) -> float:
        """`background` as a number.

        Raises:
            InputError: it is still to be chosen.
        """
        if isinstance(self.background, str):
            raise InputError("mask.background is auto, expected a number; see `pipeline.chosen`")
        return self.background


SEED_DEFAULTS = {"cam_seed": {"fg": 0.30, "bg": 0.05}, "amn_seed": {"fg": 0.45, "bg": 0.15}}
"""A section that names one threshold keeps the other's default."""

MODES: dict[str, dict[str, dict[str, Any]]] = {
    "compat": SEED_DEFAULTS,
    "fixed": {
        **SEED_DEFAULTS,
        # With a momentum of .9 a gradient moves the weights ten times as far in all, so the rates are a tenth.
        "train_cam": {"momentum": 0.9, "lr": 0.01, "new_lr": 0.1},
        "amn": {"softmax": "image"},
        "train_irn": {"momentum": 0.9, "lr": 0.01, "new_lr": 0.1},
        "edge": {"pad": 0},
        "mask": {"maximum": "class"},
    },
}
"""Defaults that depend on the mode or on the section."""


class Config(Section):
    """One run."""

    name: Annotated[str, Field(description="Name of the run, shown in the report.")]
    mode: Annotated[
        Literal["compat", "fixed"],
        Field(
            description="Defaults: `compat` repeats the quirks of the reference implementations that change results,"
            " `fixed` does what they meant to do. A setting that is named wins over either."
        ),
    ] = "compat"
    data: Annotated[Data, Field(description="The data set.")]
    trusted: Annotated[
        Path | None,
        Field(
            description="Folder of trusted masks ID.png, for any of the images: each replaces the seed of its image in"
            " train-amn and train-irn and is its final mask; 255 stays unknown. Relative to the file."
        ),
    ] = None
    run: Annotated[
        Path, Field(description="Run folder, for everything that the run writes; relative to the configuration file.")
    ]
    seed: Annotated[
        int, Field(ge=0, lt=2**48, description="Random seed of all training; the same seed gives the same bytes.")
    ] = 0
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(description="Where networks run: cuda if there is a GPU (auto), or as named."),
    ] = "auto"
    backend: Annotated[
        Literal["auto", "reference", "cpu", "triton", "cuda"],
        Field(
            description="Implementation of the operations: the fastest that runs here (auto), or the named one without"
            " fallback. Results agree within rounding."
        ),
    ] = "auto"
    backbone: Annotated[
        str,
        Field(description="Feature network of CAM, AMN and IRN: resnet50 as published, efficientnet_lite0, or timm's."),
    ] = "resnet50"
    weights: Annotated[
        str | None,
        Field(description='Initial weights: "imagenet", the path of a state dict, or null for random values.'),
    ] = "imagenet"
    workers: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_WORKERS,
            description=f"Processes that load images during training, 0..{MAX_WORKERS}; results do not depend on it.",
        ),
    ] = 0
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        Field(
            description="Precision of the networks in inference. bfloat16 is faster on a GPU and on a CPU with AVX-512"
            " BF16 or AMX, slower on other CPUs; float16 runs on a GPU only."
        ),
    ] = "float32"
    store: Annotated[
        Literal["full", "minimal"],
        Field(
            description="Activations on disk: at stride 4 and at full size, or at stride 4 alone (minimal). Seeds and"
            " masks are the same. With minimal, seeds and masks by CRF are computed while the networks run, so changes"
            " of their settings run the networks again, and `evaluate` scores the activations at stride 4, upsampled."
        ),
    ] = "full"
    training_precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(
            description="Precision of training: bfloat16 on a GPU and float32 on a CPU (auto), or as named. Weights"
            " stay in float32."
        ),
    ] = "auto"
    segmentation: Annotated[
        bool, Field(description="Train and evaluate a segmentation network on the masks at the end of `amn-fast run`.")
    ] = False
    train_cam: Annotated[CamTraining, Field(description="Training of the classifier.")] = CamTraining()
    cam: Annotated[Inference, Field(description="Class activations.")] = Inference()
    cam_seed: Annotated[
        Seed,
        Field(
            description="Seeds from the class activations. `cam_seed: auto` chooses the thresholds without ground"
            " truth; it is the default of data sets of kind folder."
        ),
    ] = Seed.model_validate(SEED_DEFAULTS["cam_seed"])
    train_amn: Annotated[AmnTraining, Field(description="Training of the activation manipulation network.")] = (
        AmnTraining()
    )
    amn: Annotated[AmnInference, Field(description="AMN's activations.")] = AmnInference()
    amn_seed: Annotated[Seed, Field(description="Seeds from AMN's activations.")] = Seed.model_validate(
        SEED_DEFAULTS["amn_seed"]
    )
    train_irn: Annotated[IrnTraining, Field(description="Training of IRN's edges.")] = IrnTraining()
    edge: Annotated[EdgeInference, Field(description="Edge maps.")] = EdgeInference()
    mask: Annotated[Mask, Field(description="Random walk and threshold of the masks.")] = Mask()
    train_seg: Annotated[SegTraining, Field(description="Training of the segmentation network.")] = SegTraining()
    eval_seg: Annotated[SegEvaluation, Field(description="Evaluation of the segmentation network.")] = SegEvaluation()

    @model_validator(mode="before")
    @classmethod
    def _from_mode(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = _moved(values)
        mode, data = values.get("mode"), values.get("data")
        own = isinstance(data, dict) and data.get("kind") == "folder"
        for name, defaults in MODES.get(mode if isinstance(mode, str) else "compat", {}).items():
            given = filled.get(name, {})
            if isinstance(given, dict):
                auto = own and name == "cam_seed" and not given.keys() & {"fg", "bg"}
                filled[name] = (dict.fromkeys(defaults, AUTO) if auto else defaults) | given
        return filled


RENAMED = {"train_irn.pad": "edge.pad", "eval_seg.mirror": "eval_seg.flip"}
"""Old names of settings, which are still read."""


def _moved(values: dict[str, Any]) -> dict[str, Any]:
    """The values with settings under their present names."""
    moved = dict(values)
    for old, new in RENAMED.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        found, target = moved.get(section), moved.get(new_section, {})
        if not (isinstance(found, dict) and key in found and isinstance(target, dict)):
            continue
        if new_key in target:
            raise ValueError(f"{old} is the old name of {new}, and both are given, expected {new} alone")
        moved[section] = {name: value for name, value in found.items() if name != key}
        moved[new_section] = {new_key: found[key]} | moved.get(new_section, {})
    return moved


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in a YAML file, or the shipped one of that name ("demo", "fast", "voc12", ...).

    Args:
        path: a file, or the name of a shipped configuration. Relative paths in a file are relative to its folder.
        overrides: "section.key=value" settings that win over the file; values are YAML, relative paths in them
            relative to the working directory.

    Raises:
        InputError: no such file, no YAML, an unknown name or a wrong value; the sentence names it.
    """
    file, folder = Path(path), Path(path).parent
    if not file.is_file() and (SHIPPED / f"{path}.yaml").exists():
        file, folder = SHIPPED / f"{path}.yaml", Path()
    elif file.is_file() and file.resolve().parent == SHIPPED:
        folder = Path()
    if not file.is_file():
        expected = f"expected a YAML file or one of {', '.join(SHIPPED_NAMES)}"
        raise InputError(f"configuration {path} does not exist, {expected}")
    values = _read_yaml(file)
    if not isinstance(values, dict):
        raise InputError(f"configuration {file} holds {type(values).__name__}, expected names and values")
    values = _on_base(_with_paths(values, lambda value: str(folder / value)), file)
    for override in overrides:
        _override(values, override)
    for old, new in RENAMED.items():
        section, key = old.split(".")
        if isinstance(found := values.get(section), dict) and key in found:
            print(f"amn-fast: {old} is called {new} now; its value is used", file=sys.stderr)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(f"configuration {file}: {refusal(error, Config, values)}") from error


def read_shipped(name: str) -> dict[str, Any]:
    """What the file of a shipped configuration says."""
    values: dict[str, Any] = _read_yaml(SHIPPED / f"{name}.yaml")
    return values


def _on_base(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """The values over those of the shipped configuration that `base` names, section by section; `data` as a whole."""
    if "base" not in values:
        return values
    name = values.pop("base")
    if name not in SHIPPED_NAMES:
        raise InputError(f"configuration {file}: base is {short(name)}, expected one of {', '.join(SHIPPED_NAMES)}")
    base = read_shipped(name)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict) and key != "data"
        base[key] = base[key] | value if both else value
    return dict(base)


def to_yaml(config: Config, folder: Path | None = None) -> str:
    """The resolved configuration as YAML, in the order of its definition.

    Args:
        folder: where the text will lie as a file: paths inside that folder are written relative to it, others absolute.
    """
    values = config.model_dump(mode="json")
    if folder is not None:
        values = _with_paths(values, lambda value: _seen_from(folder, value))
    return yaml.safe_dump(values, sort_keys=False)


PATHS = ("run", "data.root", "trusted", "weights", "train_seg.masks", "train_seg.weights", "eval_seg.data.root")


def is_path(weights: str | None) -> bool:
    """Whether a value of `weights` names a file."""
    return weights not in (None, "imagenet")


def _with_paths(values: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A copy of `values` in which every path is changed."""
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for name in PATHS:
        *sections, key = name.split(".")
        place: Any = values
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if isinstance(place, dict) and isinstance(place.get(key), str) and (key != "weights" or is_path(place[key])):
            if sections == ["eval_seg", "data"]:
                place = values["eval_seg"]["data"] = dict(place)
            place[key] = change(place[key])
    return values


def _seen_from(folder: Path, value: str) -> str:
    path, folder = Path(value).absolute(), folder.absolute()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _read_yaml(file: Path) -> Any:
    if file.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"configuration {file} has {file.stat().st_size:,} bytes, expected at most {MAX_FILE_BYTES:,}")
    try:
        text = file.read_text(encoding="utf-8")
    except ValueError as error:
        raise InputError(f"configuration {file} is not UTF-8 text, expected YAML in UTF-8") from error
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise InputError(f"configuration {file} is not YAML: {error}") from error


def _override(values: dict[str, Any], override: str) -> None:
    name, found, value = override.partition("=")
    if not found:
        raise InputError(f"override {short(override)} has no '=', expected section.key=value")
    *sections, key = name.strip().split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise InputError(f"override {short(override)}: {section} is a value, not a section")
    try:
        place[key] = parse_yaml(value)
    except ValueError as error:
        raise InputError(f"override {short(override)} has a value that is not YAML: {error}") from error
