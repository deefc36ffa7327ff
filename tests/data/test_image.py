"""Images of every kind become upright RGB, masks become class ids; damaged and hostile files are named."""

import itertools
import struct
import time
import zlib

import numpy as np
import pytest

pytest.importorskip("PIL")
import cv2
from PIL import Image

from amn_fast.data.image import MOST_PIXELS, image_size, read_image, read_mask
from amn_fast.errors import InputError

RNG = np.random.default_rng(0)
SCENE = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def saved(image, path, **options):
    image = Image.fromarray(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    image.save(path, **options)
    return path


def palette_image():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    return image


COLOURS = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
KINDS = {  # what is stored, and the RGB values expected
    "RGB": (SCENE, {}, SCENE),
    "grey": (SCENE[..., 0], {}, np.repeat(SCENE[..., :1], 3, 2)),
    "transparent": (np.dstack([SCENE, SCENE[..., 0]]), {}, SCENE),
    "palette": (palette_image(), {}, COLOURS),
    "transparent palette": (palette_image(), {"transparency": 0}, COLOURS),
    "one bit": (np.array([[True, False]]), {}, [[[255] * 3, [0] * 3]]),
    "one pixel": (SCENE[:1, :1], {}, SCENE[:1, :1]),
    "one column": (np.repeat(SCENE[:, :1], 60, 0), {}, np.repeat(SCENE[:, :1], 60, 0)),
}  # fmt: skip


def test_every_kind_becomes_rgb(tmp_path):
    for kind, (stored, options, expected) in KINDS.items():
        path = saved(stored, tmp_path / "a.png", **options)
        read = read_image(path)
        assert read.dtype == np.uint8
        assert read.flags.writeable
        np.testing.assert_array_equal(read, expected, err_msg=kind)
        assert image_size(path) == read.shape[:2], kind


def test_cmyk_and_grey_with_alpha(tmp_path):
    read = read_image(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=95))  # red ink
    assert read[..., 0].min() > 240
    assert read[..., 1:].max() < 15
    assert read_image(saved(Image.new("LA", (3, 2)), tmp_path / "b.png")).shape == (2, 3, 3)


def test_deep_values_are_scaled_by_the_depth_of_the_largest(tmp_path):
    """Grey and colour alike: 12 bits, or 8, in a container of 16 or 32 do not become black."""
    for bits in [8, 10, 12, 14, 16]:
        high = np.linspace(0, 2**bits - 1, 600).astype(np.uint16).reshape(20, 30)
        expected = high >> (bits - 8)
        for name, values in (("g16.png", high), ("g16.tif", high), ("g32.tif", high.astype(np.int32)),
                             ("big.tif", high.astype(">u2"))):  # fmt: skip
            read = read_image(saved(values, tmp_path / name))
            np.testing.assert_array_equal(read, np.repeat(expected[..., None], 3, 2), err_msg=name)
        colour = np.dstack([high, high // 2, high // 4])
        for name in ("c16.png", "c16.tif"):
            assert cv2.imwrite(str(tmp_path / name), colour[..., ::-1])
            np.testing.assert_array_equal(read_image(tmp_path / name), colour >> (bits - 8), err_msg=name)


def test_exif_orientation_is_undone_and_the_size_agrees(tmp_path):
    # How a camera stores an upright image so that a viewer has to apply the orientation (EXIF 2.3, table of tag 274).
    deep = SCENE[..., 0].astype(np.uint16) * 257
    forms = (("a.png", SCENE), ("a.tif", SCENE), ("a.webp", SCENE), ("d.png", deep), ("d.tif", deep))
    for orientation, (name, image) in itertools.product(range(10), forms):
        stored = {
            2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1], 5: np.swapaxes(image, 0, 1), 6: np.rot90(image),
            7: np.swapaxes(image[::-1, ::-1], 0, 1), 8: np.rot90(image, -1),
        }.get(orientation, image)  # fmt: skip
        exif = Image.Exif()
        exif[274] = orientation
        options = {"lossless": True} if name == "a.webp" else {}
        path = saved(stored, tmp_path / name, exif=exif, **options)
        expected = image if image.ndim == 3 else np.repeat(SCENE[..., :1], 3, 2)
        np.testing.assert_array_equal(read_image(path), expected, err_msg=name)
        assert image_size(path) == (40, 60), name


def tiff16(colour, orientation):
    """A TIFF of 16-bit colours with an orientation, which neither Pillow nor OpenCV writes."""
    (height, width, _), data = colour.shape, colour.astype("<u2").tobytes()
    start = 8 + len(data)
    entries = [(256, width), (257, height), (258, None), (259, 1), (262, 2), (273, 8), (274, orientation), (277, 3)]
    entries += [(278, height), (279, len(data)), (284, 1)]
    directory = struct.pack("<H", len(entries))
    for tag, value in entries:
        place = start + 2 + 12 * len(entries) + 4
        directory += struct.pack("<HHII", tag, 3, 3, place) if value is None else struct.pack("<HHII", tag, 4, 1, value)
    return b"II*\0" + struct.pack("<I", start) + data + directory + struct.pack("<I3H", 0, 16, 16, 16)


def test_the_orientation_of_deep_colours(tmp_path):
    colour = RNG.integers(0, 65536, (4, 6, 3))
    for orientation, upright in (
        (1, colour),
        (3, colour[::-1, ::-1]),
        (6, np.rot90(colour, -1)),
        (8, np.rot90(colour)),
    ):
        (tmp_path / "a.tif").write_bytes(tiff16(colour, orientation))
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), upright >> 8)
        assert image_size(tmp_path / "a.tif") == upright.shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_cost_the_image(tmp_path):
    path = saved(SCENE, tmp_path / "a.jpg", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff" + b"\xff" * 20)
    assert read_image(path).shape == (40, 60, 3)


def test_a_truncated_image_is_an_error_that_names_it(tmp_path):
    for name in ["a.jpg", "progressive.jpg", "a.png", "a.bmp", "a.tif", "a.webp", "a.gif"]:
        options = {"progressive": True} if "progressive" in name else {}
        path = saved(RNG.integers(0, 256, (120, 160, 3), np.uint8), tmp_path / name, **options)
        data = path.read_bytes()
        assert read_image(path).shape == (120, 160, 3)
        for share in (0.0, 0.02, 0.5, 0.9):
            path.write_bytes(data[: int(len(data) * share)])
            with pytest.raises(InputError, match=rf"{name}: is (a \w+ image that is truncated|an empty file|binary)"):
                read_image(path)


def test_a_jpeg_whose_rest_is_zeros_is_an_error_and_bytes_behind_its_end_are_not(tmp_path):
    for progressive in [False, True]:
        exif = Image.Exif()
        exif[270] = "\u00ff\u00d9" * 4  # an embedded thumbnail has an end of its own, which does not count
        path = saved(SCENE, tmp_path / "cut.jpg", progressive=progressive, exif=exif.tobytes() + b"\xff\xd9")
        data, before = path.read_bytes(), read_image(path)
        path.write_bytes(data + b"\0" * 100)
        np.testing.assert_array_equal(read_image(path), before)
        path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
        with pytest.raises(InputError, match=r"cut\.jpg: is a JPEG image that is truncated"):
            read_image(path)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, bits, colour, *chunks):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


HOSTILE = {
    "a.jpg": (b"%!PS-Adobe-3.0\n(%pipe%touch /tmp/owned) (w) file\nshowpage\n", "a PostScript document"),
    "b.jpg": (b"<html><body>404</body></html>", "an HTML page"),
    "c.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "d.jpg": (b"\0\5\26\7\0\2\0\0Mac OS X", "a macOS resource file"),
    "e.jpg": (b"\0\0\0\x18ftypheic", "image or video of type 'heic'"),
    "f.jpg": (b"\0" * 5000, "a file of zeros"),
    "g.jpg": (b"\xff\xd8\xff" + b"\xff" * 20_000_000, "a JPEG image that is truncated or damaged"),
    "h.png": (png(9, 9, 8, 0, *[chunk(b"teXt", b"")] * 500_000), "a PNG image that is truncated or damaged"),
    "i.png": (png(60_000, 60_000, 1, 0, chunk(b"IDAT", zlib.compress(bytes(10**6)))), "pixels"),
    "j.png": (png(13_000, 13_000, 16, 6, chunk(b"IDAT", zlib.compress(bytes(100)))), "a PNG image that is truncated"),
    "k.png": (b"hello", "text that begins with 'hello'"),
    "l.png": (b"P6 3 3 255 " + bytes(27), "binary data"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_files_are_named_in_bounded_time(tmp_path):
    for name, (data, found) in HOSTILE.items():
        (tmp_path / name).write_bytes(data)
        begin = time.process_time()
        for read in (read_image, read_mask):
            with pytest.raises(InputError, match=name) as caught:
                read(tmp_path / name)
            assert found in str(caught.value) or "mask has to be" in str(caught.value)
            assert "\n" not in str(caught.value)
        assert time.process_time() - begin < 20, name


def test_no_image_at_all(tmp_path):
    for read in (read_image, image_size, read_mask):
        with pytest.raises(InputError, match="absent: there is no such file"):
            read(tmp_path / "absent")
        with pytest.raises(InputError, match="is a folder"):
            read(tmp_path)
        with pytest.raises(InputError, match=r"x{300}\.png: cannot be read: File name too long"):
            read(tmp_path / f"{'x' * 300}.png")
        with pytest.raises(InputError, match=r"is not a file name"):
            read("a\0b.png")
    with pytest.raises(InputError, match="floating-point"):
        read_image(saved(np.zeros((2, 2), np.float32), tmp_path / "a.tif"))
    with pytest.raises(InputError, match=r"has values -5\.\.70000, expected 0\.\.65535"):
        read_image(saved(np.array([[-5, 70000]], np.int32), tmp_path / "b.tif"))
    assert MOST_PIXELS > 10**8


def write_grey_png(path, ids, bits):
    """A grey PNG of 1, 2 or 4 bits, which Pillow does not write."""
    rows = b""
    for row in ids:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text = text.ljust(-(-len(text) // 8) * 8, "0")
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    path.write_bytes(png(ids.shape[1], ids.shape[0], bits, 0, chunk(b"IDAT", zlib.compress(rows))))
    return path


def test_masks_give_palette_indices_and_grey_values(tmp_path):
    for bits in (1, 2, 4, 8, 16):
        ids = (np.arange(60).reshape(6, 10) % min(2**bits, 256)).astype(np.uint8)
        grey = Image.fromarray(ids.astype(np.uint16) if bits == 16 else ids)
        paths = [write_grey_png(tmp_path / "g.png", ids, bits) if bits < 8 else saved(grey, tmp_path / "g.png")]
        if bits <= 8:
            palette = Image.fromarray(ids)
            palette.putpalette(list(range(255, -1, -1)) * 3)
            paths.append(saved(palette, tmp_path / "p.png", **({"bits": bits} if bits < 8 else {})))
        for path in paths:
            read = read_mask(path)
            assert read.dtype == np.uint8
            np.testing.assert_array_equal(read, ids)
    exif = Image.Exif()
    exif[274] = 6
    turned = read_mask(saved(np.rot90(ids).astype(np.uint8), tmp_path / "t.png", exif=exif))
    np.testing.assert_array_equal(turned, ids)


def test_the_foreground_of_binary_masks(tmp_path):
    for values, foreground, expected in [
        ([0, 255], 255, [0, 1]),
        ([0, 1], 1, [0, 1]),
        ([0, 128, 255], 128, [0, 1, 255]),
        ([0, 7, 255], 255, r"holds the values 7 beside the foreground 255, expected 0 or 255"),
        ([0, 255], 0, r"foreground is 0, expected 1\.\.255"),
    ]:
        path = saved(np.array([values], np.uint8), tmp_path / "m.png")
        if isinstance(expected, list):
            assert read_mask(path, foreground).tolist() == [expected]
            continue
        with pytest.raises(InputError, match=expected):
            read_mask(path, foreground)


def test_what_is_no_mask_is_refused_and_the_hints_help(tmp_path):
    grey = Image.fromarray(np.array([[0, 1, 255]], np.uint8))
    for mode in ("RGB", "RGBA", "LA"):
        path = saved(grey.convert(mode), tmp_path / "m.png")
        with pytest.raises(InputError, match=rf"m\.png.*mode {mode}.*channels are equal: .*image\.convert\('L'\)"):
            read_mask(path)
        with Image.open(path) as image:
            assert read_mask(saved(image.convert("L"), tmp_path / "hint.png")).tolist() == [[0, 1, 255]]
    with pytest.raises(InputError, match="its 2 colours have to be turned into class ids"):
        read_mask(saved(np.array([[[0, 0, 0], [128, 0, 0]]], np.uint8), tmp_path / "c.png"))
    with pytest.raises(InputError, match=r"m\.jpg: is a JPEG file, but a mask has to be a PNG"):
        read_mask(saved(grey, tmp_path / "m.jpg"))
    with pytest.raises(InputError, match=r"h\.png: holds the value 256, but class ids end at 255"):
        read_mask(saved(np.array([[0, 256]], np.uint16), tmp_path / "h.png"))
