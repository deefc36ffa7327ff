"""Images and masks from files: upright RGB and class ids, or an error that names the file.

Pillow is kept to the formats of `names.IMAGE_SUFFIXES`: what calls itself `.jpg` and is PostScript would start another
program.
"""

import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from amn_fast.data.names import IMAGE_SUFFIXES
from amn_fast.data.text import describe_content, read_bytes
from amn_fast.errors import InputError, MissingExtra

try:
    from PIL import ExifTags, Image, ImageOps
except ImportError as error:
    raise MissingExtra("reading images needs Pillow: pip install 'amn-fast[pipeline]'") from error

logging.getLogger("PIL").addHandler(logging.NullHandler())  # its remarks about damaged files, unless they are asked for

__all__ = ["IMAGE_SUFFIXES", "PICTURE_SUFFIXES", "ImageBytes", "image_size", "read_image", "read_mask"]

PICTURE_SUFFIXES = IMAGE_SUFFIXES
"""The former name of `IMAGE_SUFFIXES`."""

MOST_PIXELS = 2 * int(Image.MAX_IMAGE_PIXELS or 89_478_485)
"""The largest image that is read, about 179 million pixels: Pillow's bound against decompression bombs."""

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
_TRANSPOSING = frozenset({5, 6, 7, 8})


class ImageBytes(NamedTuple):
    """The content of an image file that is not on disk, and its name for messages."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


Source = Path | str | ImageBytes


def read_image(path: Source) -> NDArray[np.uint8]:
    """Read an image as upright RGB.

    Grey, palette and CMYK images are converted; transparency is dropped, not blended; the EXIF orientation is applied;
    of an animation the first frame counts. Values of more than 8 bits, grey or colour, are scaled by the image's own
    depth: the smallest of 8, 10, 12, 14 and 16 bits that holds its largest value, because cameras and scanners store 12
    bits, and tools store 8, in files of 16 or 32.

    Args:
        path: a file in one of the formats of `IMAGE_SUFFIXES`, or its content, of at most `MOST_PIXELS` pixels.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: the file is missing, truncated, damaged, not such an image, or has floating-point, negative or more
            than 16-bit values.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> path = tempfile.mkdtemp() + "/example.png"
        >>> Image.new("L", (4, 3)).save(path)
        >>> read_image(path).shape
        (3, 4, 3)
    """
    with _opened(path) as image:
        if image.format in ("JPEG", "MPO"):
            _require_jpeg_end(path)
        deep_colour = image.mode in ("RGB", "RGBA", "LA") and ";16" in _raw_mode(image)
        orientation = image.info.get("exif")
        image.load()
        if deep_colour:
            rgb = _from_deep(_decode_deep_colour(path), path)
        elif image.mode.startswith("I"):
            rgb = _from_deep(np.array(image), path)
        elif image.mode == "F":
            raise InputError(f"{path}: has floating-point pixels, expected integers of 8 to 16 bits")
        else:
            rgb = image.convert("RGB")
        if orientation and "exif" not in rgb.info:
            rgb.info["exif"] = orientation
        return np.array(_upright(rgb))


def image_size(path: Path | str) -> tuple[int, int]:
    """Height and width of the upright image in `path`, from its header alone.

    Raises:
        InputError: the file is missing or not an image.
    """
    with _opened(path) as image:
        width, height = image.size
        # Pillow turns the size of a TIFF, and later its pixels, by itself.
        swapped = image.format != "TIFF" and _orientation(image) in _TRANSPOSING
        return (width, height) if swapped else (height, width)


def read_mask(path: Path | str, foreground: int | None = None) -> NDArray[np.uint8]:
    """Read the class ids of a mask, a palette or grey PNG: its palette indices or grey values.

    Args:
        path: the PNG file.
        foreground: read a mask of one class whose foreground has this value, usually 255, as most tools write binary
            masks: it becomes 1, 0 stays background, and 255 is unknown if it is not the foreground.

    Returns:
        (H, W) uint8.

    Raises:
        InputError: the file is missing, truncated, damaged, not a PNG, or has colours or values above 255; or, with
            `foreground`, other values.
    """
    with _opened(path) as image:
        if image.format != "PNG":
            raise InputError(f"{path}: is a {image.format} file, but a mask has to be a PNG with class ids")
        if image.mode not in ("P", "L", "1", "I;16", "I"):
            raise InputError(_colour_complaint(path, image))
        raw_mode = _raw_mode(image)
        image.load()
        values = np.array(_upright(image))
        if image.mode == "L" and raw_mode in ("L;2", "L;4"):  # Pillow spreads 2 and 4 bits of grey over 0..255
            values //= 255 // (2 ** int(raw_mode[-1]) - 1)
        if int(values.max()) > 255:
            raise InputError(f"{path}: holds the value {int(values.max())}, but class ids end at 255")
        values = values.astype(np.uint8)
    return values if foreground is None else _foreground_ids(path, values, foreground)


def _foreground_ids(path: Path | str, values: NDArray[np.uint8], foreground: int) -> NDArray[np.uint8]:
    if not 1 <= foreground <= 255:
        raise InputError(f"foreground is {foreground}, expected 1..255")
    others = np.setdiff1d(values, (0, foreground, 255))
    if others.size:
        found = ", ".join(map(str, others[:10]))
        raise InputError(f"{path}: holds the values {found} beside the foreground {foreground}, expected 0 or 255")
    ids = np.where(values == 255, np.uint8(255), np.uint8(0))
    ids[values == foreground] = 1
    return ids


def _colour_complaint(path: Path | str, image: Image.Image) -> str:
    """Say what to do with a mask in colours: grey ones need other channels dropped, the others a list of colours."""
    image.load()
    channels = np.asarray(image.convert("RGB"))
    if (channels == channels[..., :1]).all():
        remedy = "its channels are equal: save it as grey, with Pillow's image.convert('L')"
    else:
        count = len(np.unique(channels.reshape(-1, 3), axis=0))
        remedy = f"its {count} colours have to be turned into class ids first"
    return f"{path}: is a PNG of mode {image.mode}, but a mask has to be a palette or grey PNG with class ids; {remedy}"


class _Bounded(io.BufferedReader):
    """A file whose number of reads is bounded by its size: a header of millions of fill bytes or tiny chunks ends."""

    def __init__(self, path: Source) -> None:
        raw: Any = io.BytesIO(path.data) if isinstance(path, ImageBytes) else io.FileIO(path)
        super().__init__(raw)
        size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        self._reads_left = 50_000 + size // 64

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise OSError("too many small parts")
        return super().read(size)


@contextmanager
def _opened(path: Source) -> Iterator[Image.Image]:
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: is not a file name")
    try:
        with _Bounded(path) as file, Image.open(file, formats=_FORMATS) as image:
            if math.prod(image.size) > MOST_PIXELS or not all(image.size):
                raise InputError(f"{path}: has {image.size[0]} x {image.size[1]} pixels, expected 1 to {MOST_PIXELS}")
            yield image
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder, expected an image file") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: has more than {MOST_PIXELS} pixels, which is refused") from error
    except MemoryError as error:
        raise InputError(f"{path}: the image needs more memory than there is") from error
    except Exception as error:  # a damaged image may fail in any way; Pillow's and Python's words help nobody
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not Pillow's
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        found = describe_content(_head(path))
        if found in ("a JPEG image", "a PNG image", "a BMP image", "a TIFF image", "a WebP image", "a GIF image"):
            raise InputError(f"{path}: is {found} that is truncated or damaged") from error
        names = ", ".join(_FORMATS)
        raise InputError(f"{path}: is {found}, expected an image in one of the formats {names}") from error


def _content(path: Source) -> bytes:
    return path.data if isinstance(path, ImageBytes) else read_bytes(path)


def _head(path: Source) -> bytes:
    if isinstance(path, ImageBytes):
        return path.data[:512]
    try:
        with open(path, "rb") as file:
            return file.read(512)
    except (OSError, ValueError):
        return b""


def _raw_mode(image: Image.Image) -> str:
    """How the file stores its pixels, in Pillow's words."""
    tiles: Any = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or the EXIF block is damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged block may fail in any way, and does not cost the image
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image by its EXIF orientation, if that can be read."""
    if _orientation(image) in range(2, 9):
        return ImageOps.exif_transpose(image)
    return image


def _require_jpeg_end(path: Source) -> None:
    """Raise ValueError when no end marker follows the first scan.

    The decoder reports a file that is cut off, but makes grey pixels of one whose rest is zeros, as an interrupted
    download or a full disk leaves it.
    """
    data = _content(path)
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        fill = data[position + 1 : position + 2] == b"\xff"
        position += 1 if fill else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if data.find(b"\xff\xd9", position) < 0:
        raise ValueError("no end marker")


def _decode_deep_colour(path: Source) -> NDArray[Any]:
    """16-bit colour, (H, W, 3): Pillow keeps the high bytes alone, which are black where the values have 12 bits."""
    values = cv2.imdecode(np.frombuffer(_content(path), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise InputError(f"{path}: has 16-bit colours in a form that is not read; convert it to 8 bits")
    return values[..., 2::-1]


def _from_deep(values: NDArray[Any], path: Source) -> Image.Image:
    """Scale integers of more than 8 bits to 8; see `read_image`."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise InputError(f"{path}: has values {low}..{high}, expected 0..65535")
    depth = next(bits for bits in (8, 10, 12, 14, 16) if high < 1 << bits)
    return Image.fromarray(np.ascontiguousarray(values >> (depth - 8), np.uint8)).convert("RGB")
