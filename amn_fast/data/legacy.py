"""Read the pickled `.npy` dictionaries of IRN's and AMN's code without executing anything in them; and write some.

A pickle is a program that may call any function. Here its every call ends in a stand-in defined in this file, which
keeps plain data and makes NumPy arrays from it afterwards; any other name is refused. Python's own unpickler, the one
written in Python, runs the few instructions that such files use: its memory is bounded by the file's size.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from amn_fast.data.text import describe_content, read_bytes
from amn_fast.errors import InputError, MissingExtra
from amn_fast.files import retried, write_atomically

_ITEM_KINDS = "biuf"
_MOST_DIMENSIONS = 32


def read_legacy(path: Path | str) -> Any:
    """Read the object that `np.save` pickled into `path`: containers, numbers, strings and NumPy arrays.

    Tensors, as IRN's and AMN's code saved them, come back as arrays; reading one needs PyTorch.

    Raises:
        InputError: the file is missing, truncated, no pickled `.npy`, or names anything but arrays, tensors and plain
            containers.
    """
    data = read_bytes(path)
    try:
        stream = retried(lambda: _after_header(io.BytesIO(data)))
        value = _Reader(stream).load()
        if isinstance(value, _Array) and value.shape == ():  # np.save wraps an object into an array of no dimension
            value = value.items[0]
        return _plain(value, {})
    except MissingExtra:
        raise
    except _Refused as error:
        raise InputError(f"{path}: the pickle asks for {error}, which is refused: only arrays are read") from error
    except _Damaged as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle may fail in any way; Python's words about it help nobody
        found = describe_content(data[:512])
        if found != "a NumPy array":
            raise InputError(f"{path}: is {found}, expected a pickled .npy dictionary") from error
        raise InputError(f"{path}: is truncated or damaged, expected a pickled .npy dictionary") from error


def write_legacy(path: Path | str, value: dict[Any, Any]) -> None:
    """Pickle a dictionary of arrays or tensors into a `.npy` file, atomically: `np.load(...).item()` gives it back."""
    array = np.empty((), object)
    array[()] = value
    write_atomically(path, lambda file: np.save(file, array, allow_pickle=True))


class _Refused(Exception):
    """A name outside the list."""


class _Damaged(Exception):
    """What is wrong, for a message after the file's name."""


def _after_header(stream: io.BytesIO) -> io.BytesIO:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read(stream)
    if dtype != np.dtype(object):
        raise _Damaged(f"holds a plain array of {dtype}, expected a pickled dictionary")
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
            raise _Damaged(f"holds an array of {dtype}, expected numbers")
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

    def make(self, made: dict[int, Any]) -> NDArray[Any]:
        order = "F" if self.fortran else "C"
        if self.dtype.is_object:
            array = np.empty(len(self.items), object)
            for place, item in enumerate(self.items):
                array[place] = _plain(item, made)
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
        raise _Damaged(f"holds bytes in the encoding {encoding[:20]!r}")
    return text.encode("latin1")


def _dict() -> dict[Any, Any]:
    """Stands for `OrderedDict`, which tensors hold empty."""
    return {}


def _empty() -> bytes:
    """How protocol 2 spells b""."""
    return b""


def _storage(raw: bytes) -> NDArray[Any]:
    """The numbers of a tensor storage, which PyTorch reads as weights only."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("reading tensors needs PyTorch: pip install 'amn-fast[pipeline]'") from error
    try:
        storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        return torch.tensor([], dtype=storage.dtype).set_(storage).numpy()
    except Exception as error:  # of damaged storages there are many kinds; PyTorch's advice would execute them
        raise _Damaged("holds a damaged tensor") from error


def _tensor(storage: NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Array:
    """The array that a tensor's storage, offset, size and strides describe, after a check that it lies inside."""
    if not isinstance(storage, np.ndarray) or len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise _Damaged("holds a tensor without storage, size or strides")
    if offset < 0 or min((*size, *stride, 0)) < 0:
        raise _Damaged("holds a tensor with negative sizes")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last >= storage.size or math.prod(size) > storage.size):  # a stride of 0 repeats numbers
        raise _Damaged("holds a tensor larger than its storage")
    array = _Array()
    if 0 not in size:
        steps = tuple(step * storage.itemsize for step in stride)
        array.raw = np.lib.stride_tricks.as_strided(storage[offset:], size, steps).tobytes()
    array.shape, array.dtype = tuple(size), _Type(storage.dtype.str)
    return array


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Class,
    ("collections", "OrderedDict"): _dict,
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


_PythonUnpickler: Any = pickle._Unpickler  # the stubs say that it is the one in C
_UNUSED = frozenset(
    (
        pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID,
        pickle.BINPERSID, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.NEXT_BUFFER,
        pickle.READONLY_BUFFER,
    )
)  # fmt: skip
"""Instructions that no such file has."""


class _Reader(_PythonUnpickler):
    """The unpickler in Python, kept to the instructions of plain data, `np.save` and `torch.save`.

    Its table of memorised objects is a dictionary, where the one in C takes gigabytes for a large index. No instruction
    hashes a nest of tuples, and none changes anything but the stand-ins.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: run for code, run in _PythonUnpickler.dispatch.items() if bytes([code]) not in _UNUSED
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module[:80]}.{name[:80]}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Damaged("holds a persistent id")

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _Type):
            raise _Damaged("changes something other than an array")
        self.stack[-1].__setstate__(state)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        content = self.read(size)  # before the room for it is made
        if len(content) != size:
            raise EOFError
        self.stack.append(bytearray(content))

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._set(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise _Damaged("sets an item of something other than a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int | float | np.generic):
                raise _Damaged("has a dictionary key that is neither text nor a number")
            target[key] = value

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def _plain(value: Any, made: dict[int, Any]) -> Any:
    """Make every stand-in into what it stands for; `made` holds what is made already, by identity, so that nothing that
    is referred to many times is made many times."""
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, _Array):
        result: Any = value.make(made)
    elif isinstance(value, dict):
        result = {key: _plain(item, made) for key, item in value.items()}
    elif isinstance(value, list):
        result = [_plain(item, made) for item in value]
    elif isinstance(value, tuple):
        result = tuple(_plain(item, made) for item in value)
    elif isinstance(value, _Type | _Class | type) or callable(value):
        raise _Damaged("holds a bare type, expected arrays")
    else:
        return value
    made[id(value)] = result
    return result
