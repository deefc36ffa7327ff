"""YAML from users: bounded in depth, without aliases and duplicate names, and refused in a sentence of our own."""

from typing import Any

import yaml

MAX_DEPTH = 20


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it is not YAML, is nested too deep, uses aliases (a few lines of them can stand for billions of
            values) or gives a name twice; the message says where.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it refers to *{event.anchor}, expected every value written out")
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark is not None else 0
        lines = text.splitlines() or [""]
        shown = lines[min(line, len(lines) - 1)].strip()
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        expected = "a name once" if isinstance(error, _Duplicate) else "lines such as name: value, indented by spaces"
        raise ValueError(f"line {line + 1} is {shown!r}, expected {expected}") from error
    except yaml.YAMLError as error:
        raise ValueError("it holds characters that are not text, expected UTF-8 text") from error


class _Duplicate(yaml.MarkedYAMLError):
    """A mapping gives a name twice."""


class _Loader(yaml.SafeLoader):
    """A SafeLoader that says where a value is that cannot be read, and that refuses duplicate names."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:  # 5,000 digits, month 13
            raise yaml.MarkedYAMLError(problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in keys[:number]:
                raise _Duplicate(problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)
