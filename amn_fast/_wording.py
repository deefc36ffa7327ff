"""Settings in words: what values a setting takes, and what is wrong with the values that were given."""

import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_NOUNS = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", dict: "mapping"}
_SIGNS = {annotated_types.Ge: ">= ", annotated_types.Gt: "> ", annotated_types.Le: "<= ", annotated_types.Lt: "< "}
_SHOWN = 3
"""Faults that one sentence names."""


def values_in_words(annotation: Any, field: FieldInfo | None = None, limits: tuple[Any, ...] = ()) -> str:
    """Type and range of a setting, "integer >= 1"."""
    limits = (*limits, *(field.metadata if field is not None else ()))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [part for limit in arguments[1:] for part in getattr(limit, "metadata", [limit])]
        return values_in_words(arguments[0], None, (*limits, *inner))
    if origin is Literal:
        return ", ".join(str(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        words = [values_in_words(one, None, limits) for one in arguments if one is not type(None)]
        return " or ".join(words + ["null"] * (type(None) in arguments))
    if origin is tuple:
        least = next((limit.min_length for limit in limits if isinstance(limit, annotated_types.MinLen)), 0)
        some = f"list of {least} or more" if least else "list"
        count = some if arguments[-1] is Ellipsis else f"{len(arguments)} values"
        return f"{count}, each {values_in_words(arguments[0])}"
    if section_of(annotation) is not None:
        return "section of the same form"
    return _NOUNS.get(origin or annotation, "value") + _range(limits)


def _range(limits: tuple[Any, ...]) -> str:
    parts = [
        f"{sign}{getattr(limit, kind.__name__.lower())}"
        for limit in limits
        for kind, sign in _SIGNS.items()
        if isinstance(limit, kind)
    ]
    return f" {' and '.join(parts)}" if parts else ""


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a setting is, alone or or-ed with null."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def short(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def refusal(error: ValidationError, model: type[BaseModel], values: Any) -> str:
    """One sentence that names each faulty setting, the value found, and the values expected.

    Args:
        error: what validating `values` as `model` raised.
    """
    said: dict[str, str] = {}
    for problem in error.errors():
        place, sentence = _fault(problem, model, values)
        said.setdefault(place, sentence)
    sentences = [*said.values()]
    rest = [f"{len(sentences) - _SHOWN} more"] if len(sentences) > _SHOWN else []
    return "; ".join(sentences[:_SHOWN] + rest)


def _fault(problem: Any, model: type[BaseModel], values: Any) -> tuple[str, str]:
    """The name of a faulty setting, and what is wrong with it."""
    names: list[str] = []
    field: FieldInfo | None = None
    section: type[BaseModel] | None = model
    for step in problem["loc"]:
        if section is None or step not in section.model_fields:
            break
        field = section.model_fields[step]
        names.append(step)
        section = section_of(field.annotation)
    place = ".".join(names)
    if problem["type"] == "value_error":
        return place, f"{place}: {problem['ctx']['error']}" if place else str(problem["ctx"]["error"])
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        key = str(problem["loc"][-1])
        name = short(".".join((*names, key)))[1:-1]
        return name, f"{name} is not a setting, expected {_known(key, place, section or model)}"
    assert field is not None  # only the settings as a whole have none, and they are a mapping
    if section is not None:
        expected = f"a section of settings such as {place}.{next(iter(section.model_fields))}"
        expected += " or null" * (type(None) in get_args(field.annotation))
    elif get_origin(field.annotation) is Literal:
        expected = f"one of {values_in_words(field.annotation)}"
    else:
        expected = _with_article(values_in_words(field.annotation, field))
    if problem["type"] == "missing" and len(names) == len(problem["loc"]):  # otherwise a part of a list
        return place, f"{place} is missing, expected {expected}"
    found = values
    for name in names:
        found = found.get(name, problem["input"]) if isinstance(found, Mapping) else problem["input"]
    return place, f"{place} is {short(found)}, expected {expected}"


def _known(key: str, place: str, section: type[BaseModel]) -> str:
    """The settings of a section: those whose names are close to `key`, or else all."""
    close = difflib.get_close_matches(key, section.model_fields, cutoff=0.7)
    prefix = f"{place}." if place else ""
    return " or ".join(prefix + name for name in close) or f"one of {', '.join(section.model_fields)}"


def _with_article(words: str) -> str:
    first = words.split()[0]
    return words if first in ("true", "3", "2") else f"{'an' if first == 'integer' else 'a'} {words}"
