"""`amn-fast crf`: folders in, masks out, resumed under the same settings and computed again under others."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from amn_fast import crf_folder
from amn_fast.crf_folder import PRESETS, Settings, find_pairs, read_probabilities, refine_folder
from amn_fast.data.image import read_mask
from amn_fast.data.masks import voc_palette, write_mask
from amn_fast.errors import InputError
from amn_fast.ops.dense_crf import DenseCRF, unary_from_labels, unary_from_softmax
from command_line import command, refusal

SIZES = {"a": (20, 31), "b.c": (33, 17), "0007": (1, 9), "d": (25, 25)}
H, W = SIZES["a"]


def photo(random, size):
    y, x = np.mgrid[: size[0], : size[1]]
    return np.clip(np.stack([90 + 70 * (x > size[1] // 2), 3 * y, 2 * x], -1) + random.randn(*size, 3), 0, 255).astype(
        "u1"
    )


def softmax(random, size, n=3):
    p = random.rand(n, *size) + 0.2
    return (p / p.sum(0)).astype(np.float32)


@pytest.fixture
def folders(tmp_path):
    """Four images with probabilities as NPY, NPZ, float16 NPY and a label map as PNG."""
    random = np.random.RandomState(5)
    images, given, out = tmp_path / "images", tmp_path / "given", tmp_path / "out"
    images.mkdir()
    given.mkdir()
    for id, size in SIZES.items():
        Image.fromarray(photo(random, size)).save(images / f"{id}.png")
    np.save(given / "a.npy", softmax(random, SIZES["a"]))
    np.savez(given / "b.c.npz", probabilities=softmax(random, SIZES["b.c"], 21))
    np.save(given / "0007.npy", softmax(random, SIZES["0007"]).astype(np.float16))
    labels = (photo(random, SIZES["d"])[..., 0] > 120) * np.uint8(15)
    labels[3:6, 3:6], labels[10] = 7, 255
    write_mask(given / "d.png", labels)
    return images, given, out


def refine(folders, settings=Settings(), **options):  # noqa: B008
    pairs, _ = find_pairs(*folders)
    return refine_folder(pairs, folders[2], settings, **options)


def masks(out):
    return {path.stem: path.read_bytes() for path in out.glob("*.png")}


def test_masks_are_the_argmax_of_the_dense_crf(folders):
    images, given, out = folders
    assert refine(folders) == 4
    for id in ("a", "b.c", "0007"):
        path = next(given.glob(f"{id}.np?"))
        loaded = np.load(path) if path.suffix == ".npy" else np.load(path)["probabilities"]
        image = np.array(Image.open(images / f"{id}.png"))
        expected = DenseCRF(image, gaussian=(3, 3), bilateral=(50, 5, 10)).labels(unary_from_softmax(loaded))
        assert np.array_equal(read_mask(out / f"{id}.png"), expected)
    mask = Image.open(out / "a.png")
    assert mask.mode == "P"
    assert np.array_equal(np.array(mask.getpalette()).reshape(-1, 3), voc_palette()[: len(mask.getpalette()) // 3])


def test_label_maps_compete_with_the_labels_that_occur_and_unknown_is_filled(folders):
    images, given, out = folders
    refine(folders)
    labels, image = read_mask(given / "d.png"), np.array(Image.open(images / "d.png"))
    rows = np.select([labels == 0, labels == 7, labels == 15], [0, 1, 2], 3)
    unary = unary_from_labels(rows, 3, 0.7, zero_unsure=False, ignore_label=3)
    expected = np.array([0, 7, 15])[DenseCRF(image).labels(unary)]
    refined = read_mask(out / "d.png")
    assert np.array_equal(refined, expected)
    assert (labels == 255).any()
    assert not (refined == 255).any()


def test_a_fixed_number_of_labels_and_another_unknown_label(folders):
    images, given, out = folders
    settings = Settings(labels=21, unknown=0, gt_prob=0.9, iterations=5)
    write_mask(given / "d.png", labels := np.where(read_mask(given / "d.png") == 255, 0, 3 * np.eye(25, dtype=int) + 1))
    refine(folders, settings)
    rows = np.where(labels == 0, 20, labels - 1)
    unary = unary_from_labels(rows, 20, 0.9, zero_unsure=False, ignore_label=20)
    image = np.array(Image.open(images / "d.png"))
    assert np.array_equal(read_mask(out / "d.png"), DenseCRF(image).labels(unary, 5) + 1)


def test_a_map_of_one_label_stays_as_it_is(folders):
    labels = np.full(SIZES["d"], 4, np.uint8)
    labels[2] = 255
    write_mask(folders[1] / "d.png", labels)
    refine(folders)
    assert (read_mask(folders[2] / "d.png") == 4).all()


def test_the_masks_do_not_depend_on_the_threads(folders):
    refine(folders, threads=1)
    one = masks(folders[2])
    (folders[2] / "crf.jsonl").unlink()
    for path in folders[2].glob("*.png"):
        path.unlink()
    refine(folders, threads=4)
    assert masks(folders[2]) == one


def test_masks_under_the_same_settings_are_skipped(folders, monkeypatch):
    ticks = []
    assert refine(folders, advance=lambda: ticks.append(1)) == 4
    first = masks(folders[2])
    monkeypatch.setattr(crf_folder, "read_image", lambda path: pytest.fail(f"{path} was read again"))
    assert refine(folders, advance=lambda: ticks.append(1)) == 0
    assert len(ticks) == 8
    assert masks(folders[2]) == first


def test_only_what_is_missing_changed_or_new_is_computed(folders):
    images, given, out = folders
    refine(folders)
    before = masks(out)
    (out / "a.png").unlink()
    assert refine(folders) == 1
    np.save(given / "a.npy", np.load(given / "a.npy")[::-1])
    assert refine(folders) == 1
    assert masks(out)["a"] != before["a"]
    Image.fromarray(255 - np.array(Image.open(images / "d.png"))).save(images / "d.png")
    Image.open(images / "d.png").save(images / "e.png")
    np.save(given / "e.npy", softmax(np.random.RandomState(1), SIZES["d"]))
    assert refine(folders) == 2


def test_one_folder_serves_one_set_of_settings(folders):
    refine(folders)
    before = {path: path.read_bytes() for path in folders[2].iterdir()}
    for settings in (
        Settings(gaussian=(1, 3)), Settings(bilateral=(80, 13, 10)), Settings(iterations=3), Settings(gt_prob=0.9),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"masks of other settings, 4 ids .*, or --overwrite to replace them"):
            refine(folders, settings)
        assert {path: path.read_bytes() for path in folders[2].iterdir()} == before
    assert refine(folders, settings, overwrite=True) == 4
    other = masks(folders[2])
    assert refine(folders, settings) == 0
    for path in folders[2].iterdir():
        path.unlink()
    refine(folders, settings)
    assert masks(folders[2]) == other
    code = (
        "import sys; from amn_fast.files import locked; from pathlib import Path\n"
        "with locked(Path(sys.argv[1])):\n print(1, flush=True); sys.stdin.read()"
    )
    lock = str(folders[2] / ".lock")
    with subprocess.Popen([sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(InputError, match="another amn-fast crf writes masks there"):
            refine(folders, settings)
        holder.kill()


def test_masks_that_are_not_as_written_are_computed_again(folders):
    refine(folders)
    first = masks(folders[2])
    (folders[2] / "a.png").write_bytes(b"")
    (folders[2] / "d.png").write_bytes(first["b.c"])
    (folders[2] / f".amn-fast-{'0' * 16}.tmp").write_bytes(b"left by a kill")
    (folders[2] / ".mine.abcdefgh").write_bytes(b"not ours")
    assert refine(folders) == 2
    assert masks(folders[2]) == first
    assert sorted(path.name for path in folders[2].glob(".*")) == [".lock", ".mine.abcdefgh"]


def test_a_run_that_was_killed_between_mask_and_record_leaves_no_wrong_entry(folders, monkeypatch):
    refine(folders)
    first = masks(folders[2])

    def killed(self, entry, append=crf_folder._Record.append):
        if "inputs" in entry:
            raise KeyboardInterrupt
        append(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(crf_folder._Record, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            refine(folders, Settings(iterations=0), threads=1, overwrite=True)
    with (folders[2] / "crf.jsonl").open("a") as file:  # lines that were cut off, or are garbage
        file.write('{"id": "d", "sett\n[]\n{"id": []}\n3\n' + "[" * 5000 + "\n" + "9" * 5000)
    assert refine(folders) >= 1
    assert masks(folders[2]) == first


def test_one_bad_file_costs_no_other_mask_and_is_named(folders):
    path = folders[1] / "a.npy"
    huge = b"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 4000000000, 4000000), }"
    for content in (
        b"\x93NUMPY",
        b"",
        b"\x93NUMPY\x01\x00v\x00" + huge.ljust(117) + b"\n",
        b"PK\x03\x04" + b"\xff" * 40,
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"1 of 4 images have no mask: .*a\.npy"):
            refine(folders)
        assert set(masks(folders[2])) == {"b.c", "0007", "d"}
    np.save(path, softmax(np.random.RandomState(1), SIZES["a"]))
    assert refine(folders) == 1


def test_another_size_names_both_files(folders):
    np.save(folders[1] / "a.npy", np.full((2, H, W + 1), 0.5))
    with pytest.raises(InputError, match=rf"a\.npy has shape \(2, {H}, {W + 1}\), but its image .*a\.png is {W} x {H}"):
        refine(folders)
    np.save(folders[1] / "a.npy", np.full((H, W, 3), 1 / 3))
    with pytest.raises(InputError, match=r"a\.png is"):
        refine(folders)


def test_a_label_beyond_the_number_is_named(folders):
    with pytest.raises(InputError, match=r"d\.png: holds label 15, expected 0\.\.9 or 255"):
        refine(folders, Settings(labels=10))
    write_mask(folders[1] / "d.png", np.full(SIZES["d"], 255))
    with pytest.raises(InputError, match=r"d\.png: every pixel is 255 \(unknown\)"):
        refine(folders, Settings(labels=10))


def test_binary_masks_of_0_and_255_are_refused_with_a_remedy_that_helps(folders):
    _, given, out = folders
    for path in given.iterdir():
        if path.stem != "d":
            path.unlink()
    square = np.zeros(SIZES["d"], np.uint8)
    square[: SIZES["d"][0] // 2] = 255
    write_mask(given / "d.png", square)
    with pytest.raises(InputError, match=r"given: all 1 masks hold only 0 and 255, .* such as --unknown 254"):
        refine(folders)
    assert refine(folders, Settings(unknown=254)) == 1
    assert np.unique(read_mask(out / "d.png")).tolist() == [0, 255]


def test_strays_twins_and_missing_folders_are_named(folders):
    images, given, out = folders
    Image.open(images / "a.png").save(images / "lonely.png")
    assert find_pairs(*folders)[1] == ["lonely"]
    np.save(given / "stray.npy", np.zeros((2, 3, 3)))
    with pytest.raises(InputError, match="1 id \\('stray'\\) without an image"):
        find_pairs(*folders)
    (given / "stray.npy").rename(given / "a.npz")
    with pytest.raises(InputError, match=r"a\.npz and a\.npy: two files have the id 'a'"):
        find_pairs(*folders)
    with pytest.raises(InputError, match="no such folder"):
        find_pairs(images, given / "none", out)
    with pytest.raises(InputError, match="expected another one"):
        find_pairs(images, given, given)
    (images / "empty").mkdir()
    with pytest.raises(InputError, match="holds no NPY, NPZ or PNG"):
        find_pairs(images, images / "empty", out)


def test_masks_of_unknown_origin_are_not_overwritten(folders):
    write_mask(folders[2] / "a.png", np.ones(SIZES["a"], np.uint8))
    with pytest.raises(InputError, match=r"1 id \('a'\) there already"):
        refine(folders)
    assert set(masks(folders[2])) == {"a"}


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_no_pickle_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npy").write_bytes(pickle.dumps(Bomb()))
    np.save(tmp_path / "b.npy", np.array([Bomb()], dtype=object))
    np.savez(tmp_path / "c.npz", np.array([Bomb()], dtype=object))
    for path in tmp_path.glob("*.np?"):
        with pytest.raises(InputError, match="cannot be read as an array of numbers"):
            read_probabilities(path)
    assert not (tmp_path / "exploded").exists()


def test_foreground_probabilities_become_two_labels(tmp_path):
    foreground = np.array([[0.25, 1.0]])
    for array in (foreground, foreground[None]):
        np.save(tmp_path / "x.npy", array)
        assert np.allclose(read_probabilities(tmp_path / "x.npy"), [[[0.75, 0]], [[0.25, 1]]])


def test_arrays_that_are_neither_are_named(tmp_path):
    for array, message in (
        (np.zeros(3), "has shape"),
        (np.zeros((2, 0, 3)), "has shape"),
        (np.zeros((1, 2, 3, 4)), "has shape"),
        (np.full((2, 3, 3), -4.0), "take the softmax first"),
        (np.full((2, 3, 3), 1.2), "take the softmax first"),
        (np.full((2, 3, 3), np.nan), "expected probabilities"),
        (np.zeros((2, 3, 3), int), "int64 of shape"),
        (np.zeros((2, 3), complex), "complex128"),
        (np.full((2, 3), 256), r"labels 256\.\.256"),
        (np.full((2, 3), -1), r"labels -1\.\.-1"),
        (np.zeros((300, 400, 3)), "move the labels to the front"),
    ):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(InputError, match=message) as caught:
            read_probabilities(tmp_path / "x.npy")
        assert "x.npy" in str(caught.value)


def test_archives_of_several_arrays_need_a_key(tmp_path):
    np.savez(tmp_path / "x.npz", p=np.full((2, 3, 3), 0.5), name=np.arange(3))
    with pytest.raises(InputError, match="holds the arrays p, name, expected one array, or its name as --key"):
        read_probabilities(tmp_path / "x.npz")
    with pytest.raises(InputError, match="expected one named q"):
        read_probabilities(tmp_path / "x.npz", "q")
    assert read_probabilities(tmp_path / "x.npz", "p").shape == (2, 3, 3)
    damaged = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(InputError, match="cannot be read as an array of numbers"):
        read_probabilities(tmp_path / "x.npz", "p")


def test_impossible_settings_are_named():
    for settings in (
        {"gaussian": (0, 3)}, {"bilateral": (50, -1, 10)}, {"bilateral": (float("nan"), 5, 10)}, {"gt_prob": 1},
        {"labels": 1}, {"labels": 256},
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"{next(iter(settings))} is"):
            Settings(**settings)


def test_no_torch_is_imported():
    code = "import sys, amn_fast.crf_folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_the_command_computes_then_skips(folders):
    pytest.importorskip("typer")
    Image.new("RGB", (4, 4)).save(folders[0] / "lonely.png")
    words = ("crf", *folders, "--preset", "psa", "--bilateral", 60, 9, 8, "--iterations", 4)
    status, output, errors = command(*words)
    assert status == 0, errors
    assert "1 id ('lonely') without probabilities" in output
    assert "4 computed, 0 skipped" in output
    header = json.loads((folders[2] / "crf.jsonl").read_text().splitlines()[0])["settings"]
    assert (header["gaussian"], header["bilateral"], header["iterations"]) == ([3, 3], [60, 9, 8], 4)
    assert "0 computed, 4 skipped" in command(*words)[1]
    assert "no such folder" in refusal("crf", folders[0], folders[1] / "none", folders[2])


def test_presets_are_the_published_ones():
    assert PRESETS == {
        "irn": ((3, 3), (50, 5, 10)),
        "psa": ((3, 3), (80, 13, 10)),
        "deeplab": ((1, 3), (67, 3, 4)),
    }
