"""Read the pickled `.npy` dictionaries of the published code without executing anything in them; and write some.

A pickle is a program that may call any function. Here its every call ends in a stand-in defined in this file, which
keeps plain data and makes NumPy arrays from it afterwards; any other name is refused.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn_fast.errors import InputError, MissingExtra
from amn_fast.files import write_atomically

_ITEM_KINDS = "biuf"
_MOST_DIMENSIONS = 32


def read_legacy(path: Path | str) -> Any:
    """The object that `np.save` pickled into `path`: containers, numbers, strings and NumPy arrays.

    Tensors, as the published code saved them, come back as arrays; reading one needs PyTorch.

    Raises:
        InputError: the file is missing, truncated, no pickled `.npy`, or names anything but arrays, tensors and plain
            containers.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        stream = _after_header(io.BytesIO(data))
        value = _Reader(stream).load()
        if isinstance(value, _Array) and value.shape == ():  # np.save wraps an object into an array of no dimension
            value = value.items[0]
        return _plain(value)
    except MissingExtra:
        raise
    except _Refused as error:
        raise InputError(f"{path}: the pickle asks for {error}, which is refused: only arrays are read") from error
    except Exception as error:  # a damaged pickle may fail in any way
        raise InputError(f"{path}: is truncated or not a pickled .npy dictionary: {error}") from error


def write_legacy(path: Path | str, value: dict[Any, Any]) -> None:
    """Pickle a dictionary of arrays or tensors into a `.npy` file, atomically: `np.load(...).item()` gives it back."""
    array = np.empty((), object)
    array[()] = value
    write_atomically(path, lambda file: np.save(file, array, allow_pickle=True))


class _Refused(Exception):
    """A name outside the list."""


def _after_header(stream: io.BytesIO) -> io.BytesIO:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read(stream)
    if dtype != np.dtype(object):
        raise ValueError(f"it holds an array of {dtype}")
    return stream


class _Type:
    """Stands for a NumPy dtype."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"|": "=", "<": "<", ">": ">", "=": "="}[state[1]]

    @property
    def is_object(self) -> bool:
        return self.code in ("O", "O8", "O4")

    def make(self) -> np.dtype[Any]:
        dtype = np.dtype(self.code)
        if dtype.kind not in _ITEM_KINDS:
            raise ValueError(f"an array of {dtype}")
        return dtype.newbyteorder(self.order)  # type: ignore[arg-type]


class _Array:
    """Stands for a NumPy array: bytes or items, laid out only when the whole pickle has been read."""

    __slots__ = ("dtype", "fortran", "items", "raw", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype, self.fortran, self.raw = _Type("u1"), False, b""
        self.items: list[Any] = []

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, content = state
        if self.dtype.is_object:
            self.items = list(content)
        else:
            self.raw = content

    def make(self) -> NDArray[Any]:
        order = "F" if self.fortran else "C"
        if self.dtype.is_object:
            array = np.empty(len(self.items), object)
            array[:] = [_plain(item) for item in self.items]
            return array.reshape(self.shape, order=order)  # type: ignore[call-overload]
        return np.frombuffer(self.raw, self.dtype.make()).reshape(self.shape, order=order).copy()  # type: ignore


class _Class:
    """Stands for a class that is only named, as `numpy.ndarray` is in a call of `_reconstruct`."""

    __slots__ = ()


def _reconstruct(_class: Any, _shape: Any, _code: Any) -> _Array:
    return _Array()


def _from_buffer(buffer: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.shape, array.dtype, array.fortran, array.raw = shape, dtype, order == "F", bytes(buffer)
    return array


def _scalar(dtype: _Type, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.make())[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _empty() -> bytes:
    """How protocol 2 spells b""."""
    return b""


def _storage(raw: bytes) -> NDArray[Any]:
    """The numbers of a tensor storage, which PyTorch reads as weights only."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("reading tensors needs PyTorch: pip install 'amn-fast[pipeline]'") from error
    storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    return torch.tensor([], dtype=storage.dtype).set_(storage).numpy()


def _tensor(storage: NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Array:
    """The array that a tensor's storage, offset, size and strides describe, after a check that it lies inside."""
    if not isinstance(storage, np.ndarray) or len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise ValueError("a tensor without storage, size or strides")
    if offset < 0 or min((*size, *stride, 0)) < 0:
        raise ValueError("a tensor with negative sizes")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.size:
        raise ValueError("a tensor larger than its storage")
    array = _Array()
    if 0 not in size:
        steps = tuple(step * storage.itemsize for step in stride)
        array.raw = np.lib.stride_tricks.as_strided(storage[offset:], size, steps).tobytes()
    array.shape, array.dtype = tuple(size), _Type(storage.dtype.str)
    return array


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Class,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _empty,
    ("__builtin__", "bytes"): _empty,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def _plain(value: Any) -> Any:
    """`value` with every stand-in made into what it stands for."""
    if isinstance(value, _Array):
        return value.make()
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, _Type | _Class | type) or callable(value):
        raise ValueError(f"a bare {value}")
    return value
