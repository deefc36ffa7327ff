"""Pictures of every kind become upright RGB; damaged ones are errors that name the file."""

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from amn_fast.data.image import image_size, read_image, read_mask
from amn_fast.errors import InputError


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 60, 3), np.uint8)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def test_rgb_is_read_as_stored(scene, tmp_path):
    read = read_image(saved(Image.fromarray(scene), tmp_path / "a.png"))
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, scene)


def test_grey_becomes_three_equal_channels(scene, tmp_path):
    read = read_image(saved(Image.fromarray(scene[..., 0]), tmp_path / "a.png"))
    np.testing.assert_array_equal(read, np.repeat(scene[..., :1], 3, 2))


def test_transparency_is_dropped(scene, tmp_path):
    rgba = np.dstack([scene, scene[..., 0]])
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(rgba), tmp_path / "a.png")), scene)
    grey = Image.fromarray(rgba).convert("LA")
    assert read_image(saved(grey, tmp_path / "b.png")).shape == (40, 60, 3)


def test_palette_becomes_its_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    read = read_image(saved(image, tmp_path / "a.png"))
    np.testing.assert_array_equal(read[0], [[10, 20, 30], [40, 50, 60]])


def test_palette_with_transparency_keeps_its_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    read = read_image(saved(image, tmp_path / "a.png", transparency=0))
    np.testing.assert_array_equal(read, [[[10, 20, 30], [40, 50, 60]]])


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red ink
    read = read_image(saved(cmyk, tmp_path / "a.jpg", quality=95))
    assert read.shape == (16, 16, 3)
    assert read[..., 0].min() > 240
    assert read[..., 1:].max() < 15


def test_sixteen_bits_keep_the_high_byte(tmp_path):
    values = np.array([[0, 255, 256, 1145], [0x8000, 0x80FF, 0xFF00, 0xFFFF]], np.uint16)
    read = read_image(saved(Image.fromarray(values), tmp_path / "a.png"))
    np.testing.assert_array_equal(read[..., 0], values >> 8)
    np.testing.assert_array_equal(read[..., 2], values >> 8)


def test_one_bit_becomes_black_and_white(tmp_path):
    read = read_image(saved(Image.fromarray(np.array([[True, False]])), tmp_path / "a.png"))
    np.testing.assert_array_equal(read, [[[255] * 3, [0] * 3]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(scene, tmp_path, orientation):
    # How a camera stores an upright picture so that a viewer has to apply the orientation (EXIF 2.3, table of tag 274).
    stored = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.transpose(1, 0, 2),
        6: np.rot90(scene),
        7: scene[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(scene, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(path), scene)
    assert image_size(path) == scene.shape[:2]


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_ignored(scene, tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(Image.fromarray(scene), tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(path), scene)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_cost_the_picture(scene, tmp_path):
    path = saved(Image.fromarray(scene), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff" + b"\xff" * 20)
    assert read_image(path).shape == (40, 60, 3)


@pytest.mark.parametrize("size", [(1, 1), (20, 3000), (3000, 20), (1, 7)])
def test_extreme_sizes(tmp_path, size):
    picture = np.full((*size, 3), 7, np.uint8)
    path = saved(Image.fromarray(picture), tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path), picture)
    assert image_size(path) == size


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_picture_is_an_error_that_names_it(tmp_path, suffix, share):
    rng = np.random.default_rng(1)
    path = saved(Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8)), tmp_path / f"cut.{suffix}")
    data = path.read_bytes()
    assert read_image(path).shape == (120, 160, 3)
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=f"cut.{suffix}"):
        read_image(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_rest_is_zeros_is_an_error(scene, tmp_path, progressive):
    # An embedded thumbnail has an end of its own, which does not count.
    exif = Image.Exif()
    exif[270] = "\u00ff\u00d9" * 4
    path = saved(
        Image.fromarray(scene), tmp_path / "cut.jpg", progressive=progressive, exif=exif.tobytes() + b"\xff\xd9"
    )
    assert read_image(path).shape == scene.shape
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(len(data) - half))
    with pytest.raises(InputError, match=r"cut\.jpg"):
        read_image(path)


def test_bytes_after_the_end_of_a_jpeg_are_no_error(scene, tmp_path):
    path = saved(Image.fromarray(scene), tmp_path / "a.jpg")
    before = read_image(path)
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    np.testing.assert_array_equal(read_image(path), before)


def test_progressive_jpeg_truncated_in_the_middle_is_an_error(scene, tmp_path):
    path = saved(Image.fromarray(scene), tmp_path / "cut.jpg", progressive=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cut\.jpg"):
        read_image(path)


def test_a_png_with_a_flipped_byte_is_an_error(scene, tmp_path):
    path = saved(Image.fromarray(scene), tmp_path / "bad.png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"bad\.png"):
        read_image(path)


def test_no_picture_at_all(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    for name in ("text.jpg", "absent.jpg"):
        for read in (read_image, image_size, read_mask):
            with pytest.raises(InputError, match=name):
                read(tmp_path / name)
    with pytest.raises(InputError):
        read_image(tmp_path)


def test_floating_point_pixels_are_refused(tmp_path):
    path = saved(Image.fromarray(np.zeros((2, 2), np.float32)), tmp_path / "a.tif")
    with pytest.raises(InputError, match="floating-point"):
        read_image(path)


def test_masks_give_palette_indices_and_grey_values(tmp_path):
    ids = np.array([[0, 1, 20, 255], [3, 3, 254, 0]], np.uint8)
    grey = Image.fromarray(ids)
    palette = grey.copy()
    palette.putpalette(list(range(255, -1, -1)) * 3)
    for name, image in (("grey.png", grey), ("palette.png", palette)):
        read = read_mask(saved(image, tmp_path / name))
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, ids)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_keep_their_ids(tmp_path, bits):
    cv2 = pytest.importorskip("cv2")
    ids = (np.arange(60).reshape(6, 10) % 2**bits).astype(np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] * 4)
    np.testing.assert_array_equal(read_mask(saved(palette, tmp_path / "p.png", bits=bits)), ids)
    if bits == 1:
        assert cv2.imwrite(str(tmp_path / "g.png"), ids * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
    else:
        write_grey_png(tmp_path / "g.png", ids, bits)
    np.testing.assert_array_equal(read_mask(tmp_path / "g.png"), ids)


def write_grey_png(path, ids, bits):
    """A grey PNG of 2 or 4 bits, which Pillow does not write."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = ids.shape
    rows = b""
    for row in ids:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text = text.ljust(-(-len(text) // 8) * 8, "0")
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_sixteen_bit_masks_count_while_their_ids_fit(tmp_path):
    good = saved(Image.fromarray(np.array([[0, 255]], np.uint16)), tmp_path / "good.png")
    np.testing.assert_array_equal(read_mask(good), [[0, 255]])
    bad = saved(Image.fromarray(np.array([[0, 256]], np.uint16)), tmp_path / "bad.png")
    with pytest.raises(InputError, match=r"bad\.png.*256"):
        read_mask(bad)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_masks_in_colours_are_refused(tmp_path, mode):
    path = saved(Image.new(mode, (4, 4)), tmp_path / "m.png")
    with pytest.raises(InputError, match=rf"m\.png.*{mode}.*palette or grey"):
        read_mask(path)


def test_masks_stored_with_loss_are_refused(tmp_path):
    path = saved(Image.new("L", (4, 4)), tmp_path / "m.jpg")
    with pytest.raises(InputError, match=r"m\.jpg.*JPEG"):
        read_mask(path)


def test_a_truncated_mask_is_an_error(tmp_path):
    rng = np.random.default_rng(2)
    path = saved(Image.fromarray(rng.integers(0, 5, (200, 200), np.uint8)), tmp_path / "m.png")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"m\.png"):
        read_mask(path)
