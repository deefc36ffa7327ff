"""The errors that amn_fast raises on purpose. Each message is one sentence: what was found and what was expected."""


class InputError(ValueError):
    """A file, an argument or a configuration is not valid; the message names it."""


class BackendError(RuntimeError):
    """A backend that was requested by name, by argument, configuration or environment, cannot run here."""


class MissingExtra(ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""
