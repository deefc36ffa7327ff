"""Activation dictionaries of IRN's and AMN's code: read, written, converted to the store and back."""

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")
typer_testing = pytest.importorskip("typer.testing")

from PIL import Image  # noqa: E402

from amn_fast.cli import app  # noqa: E402
from amn_fast.data.published import read_published, sizes_in, to_published, to_store, write_published  # noqa: E402
from amn_fast.data.store import Activations, read_activations  # noqa: E402
from amn_fast.errors import InputError  # noqa: E402
from amn_fast.ops.mask import upsample  # noqa: E402


def dictionary(classes=(3, 14), size=(9, 14), background=False, seed=0):
    """What IRN's and AMN's code saves: classes from 0, perhaps the background's channel first."""
    rng = np.random.default_rng(seed)
    channels = len(classes) + background
    return {
        "keys": torch.tensor(classes, dtype=torch.int64),
        "cam": torch.from_numpy(rng.random((channels, (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1), np.float32)),
        "high_res": rng.random((channels, *size), np.float32),
    }


def saved(path, entries):
    np.save(path, entries)
    return path


def as_numpy(entries):
    return {name: np.asarray(value) for name, value in entries.items()}


def test_classes_count_from_one_and_the_background_is_dropped(tmp_path):
    for background in [False, True]:
        for classes in ((3, 14), (0,), (79,)):
            entries = dictionary(classes, background=background)
            found = read_published(saved(tmp_path / "a.npy", entries), labels=np.isin(np.arange(80), classes))
            assert found.keys.dtype == np.uint8
            assert found.keys.tolist() == [k + 1 for k in classes]
            np.testing.assert_array_equal(found.strided, entries["cam"].numpy()[int(background) :])
            np.testing.assert_array_equal(found.full, entries["high_res"][int(background) :])
        for wrong in ((0, 3), (), (78,)):
            with pytest.raises(
                InputError, match=r"a\.npy: keys are \[79\], expected \[.*\], the classes of the image's labels"
            ):
                read_published(tmp_path / "a.npy", labels=np.isin(np.arange(80), wrong))


def test_the_recorded_activations_of_amn(tmp_path):
    golden = np.load(os.path.join(os.path.dirname(__file__), "..", "golden", "amn", "merge_amn.npz"))
    entries = {"keys": torch.from_numpy(golden["valid"]), "cam": torch.from_numpy(golden["strided"])}
    found = read_published(saved(tmp_path / "a.npy", {**entries, "high_res": golden["high_res"]}))
    assert found.keys.tolist() == (golden["valid"] + 1).tolist()
    np.testing.assert_array_equal(found.strided, golden["strided"][1:])


def test_an_image_without_class(tmp_path):
    for background in (False, True):  # the VOC variant
        found = read_published(saved(tmp_path / "a.npy", dictionary((), background=background)))
        assert (found.keys.shape, found.strided.shape, found.full.shape) == ((0,), (0, 3, 4), (0, 9, 14))
    path = saved(tmp_path / "COCO_train2014_000000000009.npy", {"keys": torch.zeros(0, dtype=torch.int64)})
    with pytest.raises(InputError, match=r"0009\.npy: has no class .* name the images too"):
        read_published(path)
    sizes = {"COCO_train2014_000000000009": (10, 6)}
    found = read_published(path, sizes.__getitem__)
    assert (found.strided.shape, found.full.shape) == ((0, 3, 2), (0, 10, 6))


def test_written_as_the_published_code_does(tmp_path):
    """Read here by NumPy's own reader, as IRN's code reads it."""
    for background in [False, True]:
        before = read_published(saved(tmp_path / "a.npy", dictionary()))
        write_published(tmp_path / "b.npy", before, background=background)
        entries = np.load(tmp_path / "b.npy", allow_pickle=True).item()
        assert list(entries) == ["keys", "cam", "high_res"]
        assert (entries["keys"].dtype, entries["keys"].tolist()) == (torch.int64, [3, 14])
        assert (entries["cam"].dtype, entries["high_res"].dtype) == (torch.float32, np.float32)
        np.testing.assert_array_equal(entries["cam"].numpy()[int(background) :], before.strided)
        np.testing.assert_array_equal(entries["high_res"][int(background) :], before.full)
        if background:
            np.testing.assert_array_equal(entries["high_res"][0], 1 - before.full.max(0))
        after = read_published(tmp_path / "b.npy")
        np.testing.assert_array_equal(after.full, before.full)


def test_an_image_without_class_is_written_as_keys_alone(tmp_path):
    empty = Activations(np.zeros(0, np.uint8), np.zeros((0, 3, 4), np.float32), np.zeros((0, 9, 14), np.float32))
    write_published(tmp_path / "a.npy", empty, background=True)
    assert list(np.load(tmp_path / "a.npy", allow_pickle=True).item()) == ["keys"]
    assert read_published(tmp_path / "a.npy", lambda id: (9, 14)).full.shape == (0, 9, 14)


MISFITS = (
    ({"keys": None}, "holds no dictionary with keys, cam and high_res"),
    ({"cam": None}, "lacks cam, expected keys, cam and high_res"),
    ({"cam": None, "high_res": None}, "lacks cam and high_res"),
    ({"keys": torch.tensor([14, 3])}, r"keys are \[14, 3\], expected ascending classes within 0\.\.253"),
    ({"keys": torch.tensor([3, 254])}, r"keys are \[3, 254\], expected"),
    ({"keys": torch.tensor([-1, 3])}, r"keys are \[-1, 3\], expected"),
    ({"keys": torch.tensor([0.5, 3])}, r"keys are float32 .* expected integers"),
    ({"keys": "text"}, "keys are no array, expected integers"),
    ({"high_res": [[1]]}, "cam or high_res is no array"),
    ({"keys": torch.tensor([3])}, None),  # two channels, one class: the first is the background
    ({"keys": torch.tensor([3, 4, 5])}, "3 keys, cam .* do not belong together"),
    ({"cam": torch.zeros(2, 3, 5)}, "do not belong together"),
    ({"high_res": np.zeros((2, 9), np.float32)}, "do not belong together"),
    ({"high_res": np.full((2, 9, 14), np.nan, np.float32)}, "expected finite floating-point numbers"),
    ({"cam": torch.zeros(2, 3, 4, dtype=torch.int64)}, "cam is int64, high_res float32, expected finite"),
)


def test_what_does_not_fit_is_named(tmp_path):
    for changes, complaint in MISFITS:
        entries = {name: value for name, value in {**dictionary(), **changes}.items() if value is not None}
        path = saved(tmp_path / "a.npy", entries)
        if complaint is None:
            assert read_published(path).keys.tolist() == [4]
            continue
        with pytest.raises(InputError, match=rf"a\.npy: .*{complaint}"):
            read_published(path)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "amn_cam"
    made.mkdir()
    saved(made / "x.npy", dictionary(background=True))
    saved(made / "y.npy", dictionary((5,), (4, 33), background=True, seed=1))
    return made


def test_full_files_of_the_store_keep_both_maps_in_half_precision(folder, tmp_path):
    assert to_store(folder, tmp_path / "run" / "amn", compact=False) == 2
    for id in "xy":
        entries, found = (
            np.load(folder / f"{id}.npy", allow_pickle=True).item(),
            read_activations(tmp_path / f"run/amn/{id}.npz"),
        )
        np.testing.assert_allclose(found.strided, entries["cam"].numpy()[1:], rtol=0, atol=2.5e-4)
        np.testing.assert_allclose(found.full, entries["high_res"][1:], rtol=0, atol=2.5e-4)


def test_compact_files_keep_the_strided_map_alone(folder, tmp_path):
    to_store(folder, tmp_path / "compact")
    to_store(folder, tmp_path / "full", compact=False)
    for id in "xy":
        compact, full = (read_activations(tmp_path / form / f"{id}.npz") for form in ("compact", "full"))
        np.testing.assert_array_equal(compact.strided, full.strided)
        np.testing.assert_array_equal(compact.full, upsample(full.strided, full.full.shape[1:]))


def test_there_and_back(folder, tmp_path):
    to_store(folder, tmp_path / "ours", compact=False)
    assert to_published(tmp_path / "ours", tmp_path / "theirs", background=True) == 2
    for id in "xy":
        before, after = (read_published(place / f"{id}.npy") for place in (folder, tmp_path / "theirs"))
        assert before.keys.tolist() == after.keys.tolist()
        np.testing.assert_allclose(after.full, before.full, rtol=0, atol=2.5e-4)


def test_a_folder_without_activations(tmp_path):
    with pytest.raises(InputError, match=r"holds no activation file \*\.npy"):
        to_store(tmp_path, tmp_path / "out")


def test_sizes_come_from_the_images(tmp_path):
    Image.fromarray(np.zeros((5, 8, 3), np.uint8)).save(tmp_path / "z.png")
    size_of = sizes_in(tmp_path)
    assert size_of("z") == (5, 8)
    with pytest.raises(InputError, match="holds no image 'w'"):
        size_of("w")


def test_the_command_converts_both_ways(folder, tmp_path):
    saved(folder / "z.npy", {"keys": torch.zeros(0, dtype=torch.int64)})
    Image.fromarray(np.zeros((5, 8, 3), np.uint8)).save(tmp_path / "z.png")
    run = typer_testing.CliRunner().invoke
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    result = run(app, ["convert-activations", str(folder), ours, "--to", "store"])
    assert isinstance(result.exception, InputError)
    result = run(app, ["convert-activations", str(folder), ours, "--to", "store", "--full", "--images", str(tmp_path)])
    assert (result.exit_code, "3 images" in result.output) == (0, True)
    result = run(app, ["convert-activations", ours, theirs, "--to", "published", "--background"])
    assert result.exit_code == 0
    assert read_published(tmp_path / "theirs" / "y.npy").keys.tolist() == [6]
