"""The classes of a run's masks, written beside them: names for programs, colours for people."""

from collections.abc import Sequence
from pathlib import Path

from amn_fast.data.masks import voc_palette
from amn_fast.files import write_text

CLASSES = "classes.txt"
COLOURS = "colours.txt"


def class_names(classes: Sequence[str]) -> str:
    """The text of classes.txt: a class a line, in the order of the labels 1..C, as `data.options.classes` takes it.

    Examples:
        >>> class_names(["cat", "dog"])
        'cat\\ndog\\n'
    """
    return "".join(f"{name}\n" for name in classes)


def colour_map(classes: Sequence[str]) -> str:
    r"""The text of colours.txt: label, colour and name of each class, separated by tabs.

    Examples:
        >>> colour_map(["cat"]).splitlines()[1]
        '1\t#800000\tcat'
    """
    labels = [*enumerate(["background", *classes]), (255, "unknown")]
    return "".join(f"{label}\t{css_colour(label)}\t{name}\n" for label, name in labels)


def css_colour(label: int) -> str:
    """The colour of a label in masks, "#800000"."""
    return "#{:02x}{:02x}{:02x}".format(*voc_palette()[label])


def write_legend(folder: Path, classes: Sequence[str]) -> None:
    """Write classes.txt and colours.txt to a run folder."""
    write_text(folder / CLASSES, class_names(classes))
    write_text(folder / COLOURS, colour_map(classes))
