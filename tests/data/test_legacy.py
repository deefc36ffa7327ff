"""Pickled dictionaries of the published code are read; whatever else a pickle asks for is refused, not run."""

import collections
import contextlib
import os
import pickle
import pickletools

import numpy as np
import pytest

from amn_fast.data.legacy import read_legacy
from amn_fast.errors import InputError


def save(path, value, protocol=4):
    """`value` as `np.save` stores it, with a pickle protocol of choice."""
    array = np.empty((), object)
    array[()] = value
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(array, file, protocol=protocol)
    return path


def save_stream(path, stream):
    """A pickle given as bytes, behind the header of an object array."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(stream)
    return path


def same(read, expected):
    assert type(read) is type(expected)
    if isinstance(expected, np.ndarray):
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)
    elif isinstance(expected, dict):
        assert list(read) == list(expected)
        for key in expected:
            same(read[key], expected[key])
    else:
        assert read == expected


LABELS = {2007000032: np.array([1, 0, 1], np.float32), 2007000039: np.zeros(3, np.float32)}


def test_what_np_save_writes(tmp_path):
    np.save(tmp_path / "a.npy", LABELS)
    same(read_legacy(tmp_path / "a.npy"), LABELS)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(tmp_path, protocol):
    value = {
        "ints": np.arange(6).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10, dtype=np.int16)[::3],
        "big-endian": np.arange(3, dtype=">f4"),
        "bools": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float16),
        "scalar": np.float64(0.1),
        "plain": [1, (2.5, "x", None), {"y": b"bytes"}],
        "nested": np.array([np.arange(2), "text"], object),
    }
    read = read_legacy(save(tmp_path / "a.npy", value, protocol))
    nested, expected = read.pop("nested"), value.pop("nested")
    same(read, value)
    same(nested[0], expected[0])
    assert nested[1] == "text"


def test_keys_that_are_numpy_numbers(tmp_path):
    read = read_legacy(save(tmp_path / "a.npy", {np.int32(2007000032): np.ones(2, np.float32)}))
    assert [str(key) for key in read] == ["2007000032"]


def test_files_written_under_numpy_1(tmp_path):
    stream = pickle.dumps(np.array(LABELS, object), protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in stream
    same(read_legacy(save_stream(tmp_path / "a.npy", stream)), LABELS)


def test_tensors_come_back_as_arrays(tmp_path):
    torch = pytest.importorskip("torch")
    maps = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    value = {
        "keys": torch.tensor([3, 7]),
        "cam": maps,
        "strided": maps[1:, ::2].transpose(1, 2),
        "half": maps.half(),
        "empty": torch.zeros(0, 3),
        "high_res": maps.numpy(),
    }
    np.save(tmp_path / "a.npy", value)
    same(read_legacy(tmp_path / "a.npy"), {key: np.asarray(item) for key, item in value.items()})


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_a_tensor_outside_its_storage_is_refused(tmp_path):
    torch = pytest.importorskip("torch")

    class Beyond:
        def __reduce__(self):
            storage = torch.storage.TypedStorage(wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32)
            return torch._utils._rebuild_tensor_v2, (storage, 2, (3,), (1,), False, collections.OrderedDict())

    with pytest.raises(InputError, match="larger than its storage"):
        read_legacy(save(tmp_path / "a.npy", {"cam": Beyond()}))


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


@pytest.mark.parametrize("function", [os.system, eval, exec, open, getattr, __import__, np.load, np.frombuffer])
def test_calls_are_refused_by_name_and_not_made(tmp_path, function):
    target = tmp_path / "made"
    argument = {os.system: f"touch {target}", eval: f"open({str(target)!r}, 'w')"}.get(function, str(target))
    arguments = (argument, "w") if function is open else (argument,)
    for value in (Call(function, *arguments), {"keys": [Call(function, *arguments)]}):
        with pytest.raises(InputError, match=rf"a\.npy.*{function.__name__}.*refused"):
            read_legacy(save(tmp_path / "a.npy", value))
    assert not target.exists()


def test_only_exact_names_pass(tmp_path):
    # A dotted name would reach through an admitted one.
    stream = pickle.PROTO + b"\x04" + b"\x8c\x05numpy" + b"\x8c\x0dndarray.dtype" + b"\x93."
    with pytest.raises(InputError, match="refused"):
        read_legacy(save_stream(tmp_path / "a.npy", stream))


def test_an_admitted_name_alone_is_no_data(tmp_path):
    with pytest.raises(InputError):
        read_legacy(save_stream(tmp_path / "a.npy", pickle.dumps({"a": np.ndarray})))


def test_types_that_hold_pointers_are_refused(tmp_path):
    structured = np.zeros(2, [("a", "i4"), ("b", object)])
    with pytest.raises(InputError):
        read_legacy(save(tmp_path / "a.npy", {"x": structured}))


def test_persistent_ids_are_refused(tmp_path):
    with pytest.raises(InputError):
        read_legacy(save_stream(tmp_path / "a.npy", b"Pmodule\n."))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_truncation_is_an_error(tmp_path, protocol):
    path = save(tmp_path / "a.npy", LABELS, protocol)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"a\.npy"):
            read_legacy(path)


def test_flipped_bytes_never_crash(tmp_path):
    path = save(tmp_path / "a.npy", LABELS)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data), 400):
        damaged = bytearray(data)
        damaged[position] ^= int(rng.integers(1, 256))
        if huge_memo(damaged):
            continue
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            read_legacy(path)


def huge_memo(data):
    """Whether the damage asks the interpreter itself for gigabytes of memo, which says nothing about the reader."""
    header = 128
    try:
        return any(op.name == "LONG_BINPUT" and arg > 10**6 for op, arg, _ in pickletools.genops(bytes(data[header:])))
    except ValueError:
        return False


def test_other_files(tmp_path):
    np.save(tmp_path / "plain.npy", np.zeros(3))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(LABELS))
    for name in ("plain.npy", "text.npy", "raw.npy", "absent.npy"):
        with pytest.raises(InputError, match=name):
            read_legacy(tmp_path / name)
