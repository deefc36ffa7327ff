"""One test over a table of cases."""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Test = Callable[..., None]


def each(axes: Mapping[str, Sequence[Any]]) -> Callable[[Test], Test]:
    """Runs the test on every combination of the axes, as one test; a failure names its combination.

    Args:
        axes: from an argument of the test to its values, or from "several, arguments" to rows of values.
    """
    names = [name.strip() for axis in axes for name in axis.split(",")]

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def run(*instance: Any, **fixtures: Any) -> None:
            for combination in itertools.product(*axes.values()):
                rows = [row if "," in axis else [row] for axis, row in zip(axes, combination, strict=True)]
                case = dict(zip(names, itertools.chain(*rows), strict=True))
                try:
                    test(*instance, **case, **fixtures)
                except BaseException as error:
                    error.add_note(f"case: {case}")
                    raise

        signature = inspect.signature(test)
        fixtures = [parameter for name, parameter in signature.parameters.items() if name not in names]
        run.__signature__ = signature.replace(parameters=fixtures)  # type: ignore[attr-defined]
        return run

    return decorate
