"""Pictures and masks from files: upright RGB and class ids, or an error that names the file."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn_fast.errors import InputError, MissingExtra

try:
    from PIL import ExifTags, Image
except ImportError as error:
    raise MissingExtra("reading pictures needs Pillow: pip install 'amn-fast[pipeline]'") from error

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"})

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSING = frozenset({5, 6, 7, 8})

# What Pillow's decoders raise on damaged files, beside OSError.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """The picture in `path` as upright RGB, (H, W, 3) uint8.

    Grey, palette and CMYK pictures are converted; of 16-bit grey the high byte is kept; transparency is dropped, not
    blended; the orientation in the EXIF data is applied; of an animation the first frame counts.

    Raises:
        InputError: the file is missing, truncated, damaged, or not a picture.
    """
    with _opened(path) as image:
        if image.format in ("JPEG", "MPO"):
            _require_jpeg_end(Path(path).read_bytes())
        image.load()
        orientation = _orientation(image)
        image = _to_rgb(image, path)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return np.array(image)


def image_size(path: Path | str) -> tuple[int, int]:
    """Height and width of the upright picture in `path`, from its header alone.

    Raises:
        InputError: the file is missing or not a picture.
    """
    with _opened(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in _TRANSPOSING else (height, width)


def read_mask(path: Path | str) -> NDArray[np.uint8]:
    """The class ids of a mask stored as palette or grey PNG, (H, W) uint8: palette indices or grey values.

    Raises:
        InputError: the file is missing, truncated, damaged, not a PNG, or has colours or values above 255.
    """
    with _opened(path) as image:
        if image.format != "PNG":
            raise InputError(f"{path}: is a {image.format} file, but a mask has to be a PNG with class ids")
        if image.mode not in ("P", "L", "1", "I;16", "I"):
            raise InputError(
                f"{path}: is a PNG of mode {image.mode}, but a mask has to be a palette or grey PNG with class ids; "
                "colours have to be turned into ids first"
            )
        raw_mode = str(image.tile[0][3]) if image.tile else ""  # type: ignore[attr-defined]
        image.load()
        values = np.array(image)
        if image.mode == "L" and raw_mode in ("L;2", "L;4"):  # Pillow spreads 2 and 4 bits of grey over 0..255
            values //= 255 // (2 ** int(raw_mode[-1]) - 1)
        if int(values.max()) > 255:
            raise InputError(f"{path}: holds the value {int(values.max())}, but class ids end at 255")
        return values.astype(np.uint8)


@contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image]:
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            yield image
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{path}: is not a picture that Pillow can read") from error
    except _DAMAGE as error:
        raise InputError(f"{path}: cannot be read as a picture: {error}") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or the EXIF block is damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return 1


def _require_jpeg_end(data: bytes) -> None:
    """Raise ValueError when no end marker follows the first scan.

    The decoder reports a file that is cut off, but makes grey pixels of one whose rest is zeros, as an interrupted
    download or a full disk leaves it.
    """
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        fill = data[position + 1 : position + 2] == b"\xff"
        position += 1 if fill else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if data.find(b"\xff\xd9", position) < 0:
        raise ValueError("the JPEG data has no end, it is truncated")


def _to_rgb(image: Image.Image, path: Path | str) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.array(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise InputError(f"{path}: has grey values {values.min()}..{values.max()}, expected 8 or 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise InputError(f"{path}: has floating-point pixels, expected 8 or 16 bits a channel")
    return image.convert("RGB")
