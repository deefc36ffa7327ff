"""Activation files come back as they were, are the same bytes each time, and are refused when damaged."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from amn_fast.data.store import Activations, read_activations, read_strided, write_activations
from amn_fast.errors import InputError
from amn_fast.ops.mask import upsample


def activations(keys=(2, 5), size=(9, 14), seed=0):
    rng = np.random.default_rng(seed)
    strided = ((size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)
    return Activations(
        np.array(keys, np.uint8),
        rng.random((len(keys), *strided), np.float32),
        rng.random((len(keys), *size), np.float32),
    )


@pytest.mark.parametrize("keys", [(), (7,), (1, 2, 80)])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (33, 65)])
def test_round_trip(tmp_path, keys, size):
    before = activations(keys, size)
    write_activations(tmp_path / "deep" / "a.npz", before)
    after = read_activations(tmp_path / "deep" / "a.npz")
    assert after.keys.dtype == np.uint8
    assert after.strided.dtype == after.full.dtype == np.float32
    np.testing.assert_array_equal(after.keys, before.keys)
    for name in ("strided", "full"):
        assert getattr(after, name).shape == getattr(before, name).shape
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=0, atol=2.5e-4)


def test_zero_and_one_are_exact(tmp_path):
    ends = np.array([[[0, 1]]], np.float32)
    write_activations(tmp_path / "a.npz", Activations(np.ones(1, np.uint8), ends[..., 1:], ends))
    assert read_activations(tmp_path / "a.npz").strided.tolist() == [[[1]]]
    assert read_activations(tmp_path / "a.npz").full.tolist() == [[[0, 1]]]


def test_the_same_activations_are_the_same_bytes(tmp_path):
    write_activations(tmp_path / "a.npz", activations())
    write_activations(tmp_path / "b.npz", activations())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # not the time of writing
    write_activations(tmp_path / "a.npz", activations(seed=1))
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["strided", "full"])
def test_values_that_are_not_finite_are_refused(tmp_path, value, where):
    bad = activations()
    getattr(bad, where)[1, 0, 0] = value
    with pytest.raises(InputError, match=rf"a\.npz: {where} holds NaN or infinity, expected finite values"):
        write_activations(tmp_path / "a.npz", bad)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"activation file .*gone\.npz does not exist"):
        read_activations(tmp_path / "gone.npz")


def test_no_cut_and_no_flipped_byte_passes_as_another_error(tmp_path):
    write_activations(tmp_path / "good.npz", activations((3,), (2, 5)))
    whole = read_activations(tmp_path / "good.npz")
    good, bad = (tmp_path / "good.npz").read_bytes(), tmp_path / "bad.npz"
    refused = 0
    damaged = [good[:end] for end in range(0, len(good), 7)]
    damaged += [good[:i] + bytes([good[i] ^ mask]) + good[i + 1 :] for i in range(len(good)) for mask in (0x01, 0xFF)]
    for data in damaged:
        bad.write_bytes(data)
        sentence = ""
        try:
            found = read_activations(bad)
        except InputError as error:
            sentence = str(error)
            refused += 1
        if sentence:
            assert sentence.startswith(f"activation file {bad} cannot be read: ")
            assert "\n" not in sentence
        else:  # a byte that nothing depends on, such as a time of day
            for name in ("keys", "strided", "full"):
                np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert refused > len(damaged) // 2


@pytest.mark.parametrize(
    "arrays",
    [
        {"keys": np.ones(1, np.uint8), "strided": np.zeros((1, 1, 1))},
        {"keys": np.ones(2, np.uint8), "strided": np.zeros((1, 1, 1)), "full": np.zeros((1, 4, 4))},
        {"keys": np.ones(1, np.uint8), "strided": np.zeros((1, 1, 1)), "full": np.zeros((4, 4))},
        {"keys": np.ones(1, np.uint8), "strided": np.zeros((1, 2, 2)), "full": np.zeros((1, 4, 4))},
        {"keys": np.ones(1, np.uint8), "strided": np.zeros((1, 1, 1)), "full": np.full((1, 4, 4), np.nan)},
        {"keys": np.array(["cat"]), "strided": np.zeros((1, 1, 1)), "full": np.zeros((1, 4, 4))},
    ],
    ids=["without a part", "keys for other channels", "no channels", "not a quarter", "NaN", "names for keys"],
)
def test_files_of_another_form_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=r"activation file .*a\.npz"):
        read_activations(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["npy", "pickle", "object array"])
def test_other_files_are_refused_and_nothing_in_them_is_executed(tmp_path, kind):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    bomb = np.empty(1, object)
    bomb[0] = Bomb()
    if kind == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(3))
        (tmp_path / "a.npz").write_bytes(buffer.getvalue())
    elif kind == "pickle":
        (tmp_path / "a.npz").write_bytes(pickle.dumps(Bomb()))
    else:
        np.savez(tmp_path / "a.npz", keys=bomb, strided=np.zeros((1, 1, 1)), full=np.zeros((1, 1, 1)))
    with pytest.raises(InputError, match=r"activation file .*a\.npz cannot be read"):
        read_activations(tmp_path / "a.npz")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (33, 65)])
@pytest.mark.parametrize("keys", [(), (2, 5)])
def test_compact_files_hold_the_size_and_upsample_the_strided_map(tmp_path, keys, size):
    before = activations(keys, size)
    write_activations(tmp_path / "a.npz", before, compact=True)
    with np.load(tmp_path / "a.npz") as file:
        assert sorted(file) == ["keys", "size", "strided"]
    after = read_activations(tmp_path / "a.npz")
    np.testing.assert_allclose(after.strided, before.strided, rtol=0, atol=2.5e-4)
    np.testing.assert_array_equal(after.full, upsample(after.strided, size))
    with pytest.raises(InputError, match=r"a\.npz cannot be read: it is compact"):
        read_activations(tmp_path / "a.npz", upsampled=False)
    write_activations(tmp_path / "a.npz", before)
    np.testing.assert_allclose(
        read_activations(tmp_path / "a.npz", upsampled=False).full, before.full, rtol=0, atol=2.5e-4
    )


@pytest.mark.parametrize("size", [(9, 17), (0, 0), (-3, 14), (9,)])
def test_a_compact_file_of_another_size_is_refused(tmp_path, size):
    np.savez(tmp_path / "a.npz", keys=np.ones(1, np.uint8), strided=np.zeros((1, 3, 4), np.float16), size=size)
    with pytest.raises(InputError, match=r"a\.npz cannot be read"):
        read_activations(tmp_path / "a.npz")


def test_the_strided_maps_and_the_size_are_read_alone(tmp_path):
    """Of whole files, compact ones, and those of earlier versions, which did not hold the size."""
    before = activations((2, 5), (33, 65))
    write_activations(tmp_path / "whole.npz", before)
    write_activations(tmp_path / "compact.npz", before, compact=True)
    with np.load(tmp_path / "whole.npz") as file:
        np.savez_compressed(tmp_path / "old.npz", **{name: file[name] for name in ("keys", "strided", "full")})
    expected = read_activations(tmp_path / "whole.npz")
    for path in tmp_path.iterdir():
        found = read_strided(path)
        np.testing.assert_array_equal(found.keys, expected.keys)
        np.testing.assert_array_equal(found.strided, expected.strided)
        assert found.size == expected.size == read_activations(path).size == (33, 65)
