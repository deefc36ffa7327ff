"""The thresholds that a run has chosen, for the stages behind the choice and for labelling new images."""

import json
from pathlib import Path

from amn_fast.config import AUTO, Config, Mask, Seed
from amn_fast.errors import InputError

FOLDER = "thresholds"


def choice_file(root: Path, section: str) -> Path:
    """Where the choice for a section of the configuration (cam_seed, amn_seed, mask) lies in a run folder."""
    return root / FOLDER / f"{section}.json"


def heads_file(root: Path, section: str, id: str) -> Path:
    """Where the activations of the chosen pair's head lie, of an image that the choice was made from."""
    return choice_file(root, section).with_suffix("") / "heads" / f"{id}.npz"


def read_choice(path: Path, key: str) -> list[float]:
    """The chosen thresholds, from what `amn_fast.pipeline.choosing` wrote.

    Args:
        path: of the choice.
        key: "pair" or "background".

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[key]
        values = [float(value) for value in (found if isinstance(found, list) else [found])]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist, expected the thresholds that the run has chosen") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} cannot be read, expected the thresholds that the run has chosen: {error}") from error
    if len(values) != (2 if key == "pair" else 1) or not 0 <= min(values) <= max(values) == values[0] <= 1:
        raise InputError(f"{path}: {key} is {found}, expected {'0 <= bg <= fg <= 1' if key == 'pair' else '0..1'}")
    return values


def chosen_seed(config: Config, section: str) -> Seed:
    """The settings of seeds, with the chosen thresholds in place of auto.

    Args:
        config: of the run.
        section: "cam_seed" or "amn_seed".

    Raises:
        InputError: the thresholds are auto, and the run has not chosen them.
    """
    settings: Seed = getattr(config, section)
    if settings.fg != AUTO:
        return settings
    fg, bg = read_choice(choice_file(config.run, section), "pair")
    return Seed(fg=fg, bg=bg, bilateral=settings.bilateral)


def chosen_mask(config: Config) -> Mask:
    """The settings of masks, with the chosen threshold in place of auto.

    Raises:
        InputError: the threshold is auto, and the run has not chosen it.
    """
    if config.mask.background != AUTO:
        return config.mask
    (background,) = read_choice(choice_file(config.run, "mask"), "background")
    return config.mask.model_copy(update={"background": background})


def neighbours(pair: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """A looser and a stricter pair, to show beside the chosen one."""
    fg, bg = pair
    looser = (round(0.6 * fg, 3), round(0.5 * bg, 3))
    stricter = (round(1 - 0.6 * (1 - fg), 3), round(1 - 0.8 * (1 - bg), 3))
    return {"looser": looser, "chosen": pair, "stricter": stricter}
