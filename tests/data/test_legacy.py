"""Pickled dictionaries of IRN's and AMN's code are read; whatever else a pickle asks for is refused, not run."""

import collections
import contextlib
import os
import pickle
import resource
import struct
import time

import numpy as np
import pytest

from amn_fast.data.legacy import read_legacy
from amn_fast.errors import InputError


def save(path, value, protocol=4):
    """`value` as `np.save` stores it, with a pickle protocol of choice."""
    array = np.empty((), object)
    array[()] = value
    return save_stream(path, pickle.dumps(array, protocol=protocol))


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
    keyed = read_legacy(save(tmp_path / "a.npy", {np.int32(2007000032): np.ones(2, np.float32)}, protocol))
    assert [str(key) for key in keyed] == ["2007000032"]


def test_what_np_save_writes_now_and_under_numpy_1(tmp_path):
    np.save(tmp_path / "a.npy", LABELS)
    same(read_legacy(tmp_path / "a.npy"), LABELS)
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
def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    """A stride of 0 would make gigabytes of a few numbers."""
    torch = pytest.importorskip("torch")
    storage = torch.storage.TypedStorage(wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32)

    class Beyond:
        def __init__(self, *how):
            self.how = how

        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage, *self.how, False, collections.OrderedDict())

    for how in (
        (2, (3,), (1,)),
        (0, (10**10,), (0,)),
        (0, (5,), (0,)),
        (-1, (1,), (1,)),
        (0, (1,), (-1,)),
        (0, (1,), ()),
    ):
        with pytest.raises(InputError, match=r"a\.npy: holds a tensor (larger than its|with negative|without) s"):
            read_legacy(save(tmp_path / "a.npy", {"cam": Beyond(*how)}))


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


def test_calls_are_refused_by_name_and_not_made(tmp_path):
    target = tmp_path / "made"
    for function in (os.system, eval, exec, open, getattr, __import__, np.load, np.frombuffer):
        argument = {os.system: f"touch {target}", eval: f"open({str(target)!r}, 'w')"}.get(function, str(target))
        arguments = (argument, "w") if function is open else (argument,)
        for value in (Call(function, *arguments), {"keys": [Call(function, *arguments)]}):
            with pytest.raises(InputError, match=rf"a\.npy.*{function.__name__}.*refused"):
                read_legacy(save(tmp_path / "a.npy", value))
    assert not target.exists()


HOSTILE = {
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dtype\x93.",  # would reach through an admitted one
    "bare type": pickle.dumps({"a": np.ndarray}),
    "pointers": pickle.dumps({"x": np.zeros(2, [("a", "i4"), ("b", object)])}),
    "persistent id": b"Pmodule\n.",
    "huge memo": b"\x80\x02Nr\xff\xff\xff\x7f\x8f.",
    "huge string": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
    "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b".",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b".",
    "nested key": b"\x80\x04}" + b")" + b"\x85" * 300_000 + b"Ns.",
    "nested value": b"\x80\x04}K\x01" + b")" + b"\x85" * 300_000 + b"s.",
    "self": b"\x80\x04]\x94h\x00a.",
    "set of tuples": b"\x80\x04\x8f(" + b")" + b"\x85" * 100 + b"\x90.",
    "changes a function": b"\x80\x04\x8c\x07_codecs\x8c\x06encode\x93}\x8c\x01xK\x01sb.",
    "changes a type": b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93N}\x8c\x04makeK\x01s\x86b.",
    "new object": b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93)\x81.",
    "dictionary of arguments": b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93](K\x01K\x02\x86e\x85R.",
}


def test_hostile_pickles_end_in_one_sentence_in_bounded_time_and_memory(tmp_path):
    for name, stream in HOSTILE.items():
        begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        path = save_stream(tmp_path / f"{name}.npy", stream)
        with pytest.raises(InputError, match=rf"^[^\n]*{name}\.npy[^\n]*$"):
            read_legacy(path)
        assert time.process_time() - begin < 10, name
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19, name  # 0.5 GB


def test_what_is_referred_to_many_times_is_made_once(tmp_path):
    stream = b"\x80\x04]\x94" + b"".join(b"]\x94(h" + bytes([k]) + b"h" + bytes([k]) + b"e" for k in range(60)) + b"."
    assert len(stream) < 500
    value = read_legacy(save_stream(tmp_path / "a.npy", stream))
    assert value[0] is value[1]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_damage_is_an_error_and_never_a_crash(tmp_path, protocol):
    path = save(tmp_path / "a.npy", LABELS, protocol)
    data = path.read_bytes()
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"a\.npy"):
            read_legacy(path)
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data), 300):
        damaged = bytearray(data)
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            read_legacy(path)


def test_other_files(tmp_path):
    np.save(tmp_path / "plain.npy", np.zeros(3))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(LABELS))
    for name, message in (
        ("plain.npy", "holds a plain array of float64, expected a pickled dictionary"),
        ("text.npy", "is text that begins with 'hello', expected a pickled"),
        ("raw.npy", "is a Python pickle, expected a pickled .npy"),
        ("absent.npy", "there is no such file"),
    ):
        with pytest.raises(InputError, match=f"{name}: {message}"):
            read_legacy(tmp_path / name)
