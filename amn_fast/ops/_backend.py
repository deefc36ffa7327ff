"""The choice of a backend, the same for every operation."""

import logging
from collections.abc import Mapping

from amn_fast.errors import BackendError, InputError

log = logging.getLogger("amn_fast")
_said: set[str] = set()


def choose(backend: str, operation: str, obstacles: Mapping[str, str]) -> str:
    """The backend to run `operation` on.

    `obstacles` maps the operation's backends, best first, to the reason why each cannot run here ("" when it can).
    "auto" takes the first that can and logs once why a better one did not; a backend asked for by name never falls
    back.

    Raises:
        InputError: the operation has no backend of that name.
        BackendError: the backend asked for cannot run here.
    """
    if backend == "auto":
        for name, obstacle in obstacles.items():
            if not obstacle:
                return name
            message = f"{operation}: not using backend '{name}': {obstacle}"
            if message not in _said:
                _said.add(message)
                log.info(message)
        raise BackendError(f"{operation}: no backend can run here: {dict(obstacles)}")
    if backend not in obstacles:
        raise InputError(f"{operation}: backend is {backend!r}, expected 'auto' or one of {', '.join(obstacles)}")
    if obstacles[backend]:
        raise BackendError(f"{operation}: backend '{backend}' cannot run here: {obstacles[backend]}")
    return backend
