"""Masks are written with their ids unchanged, and the checker finds every wrong one."""

import errno

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from amn_fast.data.image import read_mask
from amn_fast.data.masks import check_mask, check_masks, voc_palette, write_mask
from amn_fast.errors import InputError


class Pictures:
    """The least of a data set: black pictures of given sizes."""

    name, classes = "toy", ("cat", "cup")

    def __init__(self, **sizes):
        self.ids = tuple(sizes)
        self._sizes = sizes

    def image(self, id):
        return np.zeros((*self._sizes[id], 3), np.uint8)


def test_the_palette_is_vocs():
    palette = voc_palette()
    assert palette[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert palette[20].tolist() == [0, 64, 128]
    assert palette[255].tolist() == [224, 224, 192]
    assert len({tuple(colour) for colour in palette.tolist()}) == 256


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (37, 53)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int32])
def test_ids_survive_the_round_trip(tmp_path, size, dtype):
    mask = (np.arange(size[0] * size[1]) % 256).reshape(size).astype(dtype)
    path = tmp_path / "new" / "m.png"
    write_mask(path, mask)
    read = read_mask(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, mask)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.reshape(image.getpalette(), (256, 3)), voc_palette())


def test_views_and_read_only_masks(tmp_path):
    mask = (np.arange(24) % 5).astype(np.uint8).reshape(4, 6)
    mask.flags.writeable = False
    for view in (mask, mask.T, mask[:, ::-1], mask[::2, ::3]):
        write_mask(tmp_path / "m.png", view)
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), view)


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((2, 2, 3), np.uint8),
        np.zeros((2, 2)),
        np.zeros((0, 4), np.uint8),
        np.full((2, 2), 256),
        np.full((2, 2), -1),
    ],
    ids=["colours", "floats", "empty", "too large", "negative"],
)
def test_what_is_no_mask_is_refused_and_nothing_written(tmp_path, mask):
    with pytest.raises(InputError, match=r"m\.png"):
        write_mask(tmp_path / "m.png", mask)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_mask(tmp_path, monkeypatch):
    path = tmp_path / "m.png"
    write_mask(path, np.ones((3, 3), np.uint8))
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("amn_fast.files.os.fsync", full)
    with pytest.raises(OSError, match=r"m\.png"):
        write_mask(path, np.zeros((3, 3), np.uint8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_good_masks_pass(tmp_path):
    write_mask(tmp_path / "a.png", np.array([[0, 1, 2], [255, 255, 0]]))
    check_mask(tmp_path / "a.png", (2, 3), 2)
    write_mask(tmp_path / "b.png", np.zeros((5, 4), np.uint8))  # a picture without any class
    check_masks(tmp_path, Pictures(a=(2, 3), b=(5, 4)))


def test_each_wrong_mask_is_refused(tmp_path):
    path = tmp_path / "m.png"
    write_mask(path, np.zeros((2, 3), np.uint8))
    with pytest.raises(InputError, match=r"m\.png: 3 x 2 pixels, but its picture is 2 x 3"):
        check_mask(path, (3, 2), 2)
    write_mask(path, np.array([[0, 3, 7]]))
    with pytest.raises(InputError, match=r"m\.png: holds the unknown ids 3, 7, expected 0\.\.2 or 255"):
        check_mask(path, (1, 3), 2)
    write_mask(path, np.full((2, 2), 255))
    with pytest.raises(InputError, match=r"m\.png: every pixel is 255"):
        check_mask(path, (2, 2), 2)
    with pytest.raises(InputError, match=r"n\.png: there is no such file"):
        check_mask(tmp_path / "n.png", (2, 2), 2)


def test_the_folder_check_lists_every_id(tmp_path):
    write_mask(tmp_path / "good.png", np.zeros((2, 2), np.uint8))
    write_mask(tmp_path / "small.png", np.zeros((1, 2), np.uint8))
    write_mask(tmp_path / "void.png", np.full((2, 2), 255))
    write_mask(tmp_path / "alien.png", np.full((2, 2), 9))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    sizes = dict.fromkeys(["good", "small", "void", "alien", "broken", "gone", "lost"], (2, 2))
    with pytest.raises(InputError) as caught:
        check_masks(tmp_path, Pictures(**sizes))
    message = str(caught.value)
    assert "2 ids ('gone', 'lost') without a mask" in message
    assert "4 ids ('small', 'void', 'alien', 'broken') with a wrong mask" in message
    assert "'good'" not in message
