"""The errors that amn_fast raises on purpose. Each message is one sentence: what, found, expected."""


class InputError(ValueError):
    """A file, an argument or a configuration is not what it has to be."""


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run here."""


class MissingExtra(ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""
