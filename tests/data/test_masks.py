"""Masks are written with their ids unchanged, and the checker finds every wrong one."""

import errno

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from amn_fast.data.image import read_mask
from amn_fast.data.masks import check_labels, check_mask, check_masks, voc_palette, write_mask
from amn_fast.errors import InputError


class Images:
    """The least of a data set: black images of given sizes."""

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


def test_ids_survive_the_round_trip(tmp_path):
    path = tmp_path / "new" / "m.png"
    for size, dtype in (((1, 1), np.uint8), ((1, 300), np.int64), ((37, 53), np.int32), ((2, 3), np.uint16)):
        mask = (np.arange(size[0] * size[1]) % 256).reshape(size).astype(dtype)
        write_mask(path, mask)
        read = read_mask(path)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, mask)
        with Image.open(path) as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.reshape(image.getpalette(), (256, 3)), voc_palette())
    write_mask(path, mask, palette=False)
    with Image.open(path) as image:
        assert image.mode == "L"
    mask = (np.arange(24) % 5).astype(np.uint8).reshape(4, 6)
    mask.flags.writeable = False
    for view in (mask, mask.T, mask[:, ::-1], mask[::2, ::3]):
        write_mask(path, view)
        np.testing.assert_array_equal(read_mask(path), view)


def test_what_is_no_mask_is_refused_and_nothing_written(tmp_path):
    for mask in (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), np.zeros((0, 4), np.uint8), np.full((2, 2), 256),
                 np.full((2, 2), -1)):  # fmt: skip
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
    write_mask(tmp_path / "b.png", np.zeros((5, 4), np.uint8))  # an image without any class
    check_masks(tmp_path, Images(a=(2, 3), b=(5, 4)))


def test_each_wrong_mask_is_refused(tmp_path):
    path = tmp_path / "m.png"
    write_mask(path, np.zeros((2, 3), np.uint8))
    with pytest.raises(InputError, match=r"m\.png: 3 x 2 pixels, but its image is 2 x 3"):
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
        check_masks(tmp_path, Images(**sizes))
    message = str(caught.value)
    assert "2 ids ('gone', 'lost') without a mask" in message
    assert "4 ids ('small', 'void', 'alien', 'broken') with a wrong mask" in message
    assert "'good'" not in message


def test_masks_of_0_and_255_alone_are_refused_with_a_remedy_that_helps(tmp_path):
    for id in "ab":
        write_mask(tmp_path / f"{id}.png", np.array([[0, 255]]))
    images = Images(a=(1, 2), b=(1, 2))
    with pytest.raises(
        InputError, match=r"all 2 masks hold only 0 and 255, .* \(the first: a\.png\); expected class ids"
    ):
        check_masks(tmp_path, images)
    images.classes = ("cat",)
    with pytest.raises(InputError, match=r"if 255 is the foreground, set foreground to 255"):
        check_masks(tmp_path, images)
    check_masks(tmp_path, images, foreground=255)
    write_mask(tmp_path / "b.png", np.array([[1, 255]]))  # one mask with a class, and 255 is unknown
    check_masks(tmp_path, images)
    with pytest.raises(InputError, match=r"b\.png: holds the values 1 beside the foreground 255"):
        check_masks(tmp_path, images, foreground=255)


def test_labels_that_a_mask_contradicts(tmp_path):
    mask, classes = np.array([[0, 1, 2, 255]], np.uint8), ("cat", "cup")
    check_labels("m.png", mask, np.array([True, True]), classes)
    with pytest.raises(InputError, match=r"m\.png: shows cup, but the labels of its image are cat"):
        check_labels("m.png", mask, np.array([True, False]), classes)
