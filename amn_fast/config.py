"""The configuration of a run: checked, complete, and the same on every machine.

A YAML file names what differs from the defaults; `Config` holds everything, and `config.yaml` in the run folder is the
resolved form. The defaults are the published ones for VOC 2012.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from amn_fast._extras import require
from amn_fast.errors import InputError

require("pydantic", "pipeline")
require("yaml", "pipeline")

import yaml  # noqa: E402  (after the check, so that its sentence is what a user sees)
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator  # noqa: E402

SHIPPED = Path(__file__).parent / "configs"

# Constraints sit in the types: a subclass that gives a field another default keeps them.
Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=32)]
Pixels = Annotated[int, Field(ge=0)]
Radius = Annotated[int, Field(ge=2)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the configuration; an unknown name in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """Where the pictures and their labels are."""

    kind: Literal["demo", "folder", "voc", "coco"]
    root: Path = Path("data")
    options: dict[str, Any] = {}
    """Passed to the data set's constructor: list file, label file, folder names."""


class Training(Section):
    """What all three trainings share. Learning rates follow lr * (1 - step / steps) ** power."""

    epochs: Count
    batch: Count
    crop: Side
    lr: Positive
    new_lr: Positive
    """Learning rate of the layers without pretrained values."""
    weight_decay: NotNegative = 1e-4
    power: NotNegative = 0.9


class CamTraining(Training):
    """train-cam: SGD on the multi-label soft-margin loss."""

    epochs: Count = 5
    batch: Count = 16
    crop: Side = 512
    lr: Positive = 0.1
    new_lr: Positive = 1.0
    momentum: BelowOne = 1e-4
    """The published code passes the weight decay where the momentum belongs; .9 is what one would want."""
    long_side: tuple[Count, Count] = (320, 640)

    @model_validator(mode="after")
    def _long_side_ordered(self) -> "CamTraining":
        if self.long_side[0] > self.long_side[1]:
            raise ValueError(f"long_side {self.long_side}, expected shortest <= longest")
        return self


class SeedTraining(Training):
    """What trainings on seeds share: pictures and seeds are rescaled by a random factor from a range."""

    rescale: tuple[Positive, Positive] = (0.5, 1.5)

    @model_validator(mode="after")
    def _rescale_ordered(self) -> "SeedTraining":
        if self.rescale[0] > self.rescale[1]:
            raise ValueError(f"rescale {self.rescale}, expected smallest <= largest")
        return self


class AmnTraining(SeedTraining):
    """train-amn: Adam on the balanced per-pixel loss."""

    epochs: Count = 5
    batch: Count = 16
    crop: Side = 512
    lr: Positive = 5e-6
    new_lr: Positive = 1e-4
    eps: BelowOne = 0.4
    """Label smoothing: 1 - eps on the label, eps shared by the other channels."""


class IrnTraining(SeedTraining):
    """train-irn: SGD on the pair losses."""

    epochs: Count = 3
    batch: Count = 32
    crop: Side = 512
    lr: Positive = 0.1
    new_lr: Positive = 1.0
    """Learning rate of the displacement branch."""
    momentum: BelowOne = 1e-4
    radius: Radius = 10
    displacement: bool = True
    """Train the displacement branch too. Semantic masks do not use it."""
    pad: Pixels = 512
    """Inference fills pictures with zeros to at least this side; the network's group norms see them."""

    @model_validator(mode="after")
    def _room_for_pairs(self) -> "IrnTraining":
        if self.crop < 8 * self.radius:
            raise ValueError(
                f"crop {self.crop} leaves no room for pairs of radius {self.radius}, expected {8 * self.radius} or more"
            )
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

    recipe: Literal["deeplabv2-voc", "deeplabv2-coco", "small"] = "deeplabv2-voc"
    """Where the values come from that are not given."""
    masks: Path | None = None
    """The folder of masks ID.png to learn from; without it the run's own, from make-mask."""
    backbone: str = "resnet101"
    """"resnet101" is the published network; any other name is that of a backbone."""
    weights: str | None = "imagenet"
    iterations: Count = 20_000
    checkpoint_every: Count = 1_000
    """Iterations from one checkpoint to the next."""
    batch: Count = 5
    accumulate: Count = 2
    """Batches whose gradients make one iteration."""
    crop: Side = 321
    rescale: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.5, 0.75, 1.0, 1.25, 1.5)
    """Factors, one of which is drawn for each picture."""
    scales: tuple[Positive, ...] = (0.5, 0.75)
    """Scales of the network's input beside 1."""
    lr: Positive = 2.5e-4
    momentum: BelowOne = 0.9
    weight_decay: NotNegative = 5e-4
    power: NotNegative = 0.9
    lr_step: Count = 10

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
    """eval-seg: the network's softmax at full size, with and without CRF. The defaults are the published test."""

    data: Data | None = None
    """The set to evaluate on; without it the run's own, which the network was trained on."""
    options: dict[str, Any] = {}
    """Options of that set that are other ones for the evaluation, such as {ids: val}."""
    scales: tuple[Positive, ...] = (0.5, 0.75)
    """Scales of the network's input beside 1."""
    mirror: bool = False
    """Also look at the mirror image; the published test does not."""
    window: Side | None = None
    """Look through square windows of that side, two thirds of it apart at most; without it at the whole picture."""
    crf: bool = True
    gaussian: tuple[Positive, Positive] = (1.0, 3.0)
    """sxy in pixels, compatibility."""
    bilateral: tuple[Positive, Positive, Positive] = (67.0, 3.0, 4.0)
    """sxy in pixels, srgb in grey levels, compatibility."""
    iterations: Count = 10
    save_masks: bool = False
    """Write masks as VOC's server takes them; for COCO, with COCO's category ids."""


class Inference(Section):
    """Scales of the picture, each with its mirror image."""

    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0, 0.5, 1.5, 2.0)


class AmnInference(Inference):
    """make-amn-cam: what becomes of AMN's logits."""

    softmax: Literal["all", "picture"] = "all"
    """Over which channels: all C + 1 (published), or the background's and the picture's own classes."""


class Seed(Section):
    """refine-seed: dense CRF on argmax([threshold, activations]) with a high and a low threshold."""

    fg: Probability
    bg: Probability
    bilateral: tuple[Positive, Positive, Positive] = (50.0, 5.0, 10.0)
    """sxy in pixels, srgb in grey levels, compatibility."""

    @model_validator(mode="after")
    def _ordered(self) -> "Seed":
        if self.bg > self.fg:
            raise ValueError(f"bg threshold {self.bg} is above fg threshold {self.fg}, expected bg <= fg")
        return self


class Mask(Section):
    """make-mask: random walk over the edges, then a threshold."""

    radius: Radius = 5
    beta: Positive = 10.0
    exp_times: Annotated[int, Field(ge=0)] = 8
    power: Positive = 1.3
    background: Probability = 0.25
    maximum: Literal["global", "class"] = "global"
    """Divide scores by the maximum over all classes (published) or by each class's own."""


MODES: dict[str, dict[str, dict[str, Any]]] = {
    "compat": {},  # the sections' defaults
    "fixed": {
        # With a momentum of .9 a gradient moves the weights ten times as far in all, so the rates are a tenth.
        "train_cam": {"momentum": 0.9, "lr": 0.01, "new_lr": 0.1},
        "amn": {"softmax": "picture"},
        "train_irn": {"momentum": 0.9, "lr": 0.01, "new_lr": 0.1, "pad": 0},
        "mask": {"maximum": "class"},
    },
}
"""What the modes set where the configuration says nothing."""


class Config(Section):
    """One run."""

    name: str
    mode: Literal["compat", "fixed"] = "compat"
    """"compat" repeats the slips of the published code that change its results; "fixed" does what it meant to do.

    Either gives defaults: a setting that the configuration names is as it says. docs/explanation/fidelity.md lists them.
    """
    data: Data
    run: Path
    """The run folder: everything that the run makes."""
    seed: Annotated[int, Field(ge=0, lt=2**48)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backbone: str = "resnet50"
    weights: str | None = "imagenet"
    """"imagenet", the path of a state dict, or null for random values."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load pictures during training; the results do not depend on it."""
    segmentation: bool = False
    """Whether `amn-fast run` goes on to train-seg and eval-seg when the masks are made."""
    train_cam: CamTraining = CamTraining()
    cam: Inference = Inference()
    cam_seed: Seed = Seed(fg=0.30, bg=0.05)
    train_amn: AmnTraining = AmnTraining()
    amn: AmnInference = AmnInference()
    amn_seed: Seed = Seed(fg=0.45, bg=0.15)
    train_irn: IrnTraining = IrnTraining()
    mask: Mask = Mask()
    train_seg: SegTraining = SegTraining()
    eval_seg: SegEvaluation = SegEvaluation()

    @model_validator(mode="before")
    @classmethod
    def _from_mode(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        mode = values.get("mode")
        filled = dict(values)
        for name, defaults in MODES.get(mode if isinstance(mode, str) else "compat", {}).items():
            given = filled.get(name, {})
            if isinstance(given, dict):
                filled[name] = defaults | given
        return filled


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in a YAML file, or the shipped one of that name ("demo", "voc12", "coco14", "msrc").

    Args:
        path: a file, or the name of a shipped configuration.
        overrides: "section.key=value" settings that win over the file; values are YAML.

    Raises:
        InputError: no such file, no YAML, an unknown name or a wrong value; the sentence names it.
    """
    file = Path(path)
    if not file.is_file() and (SHIPPED / f"{path}.yaml").exists():
        file = SHIPPED / f"{path}.yaml"
    if not file.is_file():
        shipped = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
        raise InputError(f"configuration {path} does not exist, expected a YAML file or one of {shipped}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"configuration {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"configuration {file} holds {type(values).__name__}, expected names and values")
    for override in overrides:
        _override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(f"configuration {file}: {_sentence(error)}") from error


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, in the order of its definition."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _override(values: dict[str, Any], override: str) -> None:
    name, found, value = override.partition("=")
    if not found:
        raise InputError(f"override {override!r} has no '=', expected section.key=value")
    *sections, key = name.strip().split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise InputError(f"override {override!r}: {section} is a value, not a section")
    try:
        place[key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"override {override!r} has a value that is not YAML") from error


def _sentence(error: ValidationError) -> str:
    parts = []
    for problem in error.errors()[:3]:
        place = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            parts.append(f"{place} is not a known name")
        elif problem["type"] == "missing":
            parts.append(f"{place} is missing")
        else:
            text = problem["msg"].removeprefix("Value error, ")
            parts.append(
                f"{place} is {problem['input']!r}: {text}" if problem["type"] != "value_error" else f"{place}: {text}"
            )
    return "; ".join(parts)
