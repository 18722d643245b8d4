"""Reading of image files, and fast decoding of prepared ones.

Every file is read as a viewer shows it: a rotation in its EXIF data is applied, an
alpha channel is dropped, CMYK is converted without a color profile. Files that are
ambiguous (16-bit images, channels of unknown meaning, several pages or frames) raise an
error that names the cure.

The content of a file, not its name, decides how it is decoded. Only the formats below are
decoded, since Pillow has decoders for many others, some of which start programs.
"""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from absl import logging
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from jaxseg.utils.files import read_file

if TYPE_CHECKING:
    from jaxseg.data.tiff import TiffWindows

IGNORE = 255  # the label of void pixels
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"
)  # fmt: skip

LARGEST_WHOLE_PX = 2**26
"""Pixels of the largest image that `read_image` reads by default. A network that scores
it whole needs many times the 10 bytes per pixel of decoding."""

LARGEST_RECORD_PX = 178_956_970
"""Pixels of the largest image or mask of a data set: Pillow's own limit."""

LARGEST_RECORD_SIDE = 1_000_000
"""Longest side of an image of a data set: the limit of libpng."""

LARGEST_PX = 2**30
"""Pixels of the largest image that can be read after `expect_large_images`."""

LARGEST_FILE = 2**31
"""Bytes of the largest image file that is read whole."""

# JPEG includes MPO, which many phones write.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
_expected_px = 0  # the limit of `expect_large_images`, once it was called
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _EXTRA_SAMPLES = 258, 338  # tags of TIFF
_UNSPECIFIED = 0  # an extra sample that is not alpha
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_SMALLER = "cut it into smaller images"
_PIL_MODE = {1: "L", 3: "RGB"}


class ImageTooLargeError(ValueError):
    """An image with more pixels than are read at once; the message names it."""


def read_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """Reads an image file of any supported format, upright.

    Args:
        path: a PNG, JPEG, WebP, TIFF, BMP or GIF file with 8 bits per channel.
        channels: 3 for RGB (gray is repeated), 1 for gray (the luma of colors).

    Returns:
        uint8 [H, W, channels].

    Raises:
        ImageTooLargeError: if the image has more than `LARGEST_WHOLE_PX` pixels; see
            `expect_large_images`.
        ValueError: if the file is empty, truncated or not an image, has more than 8
            bits per channel, channels of unknown meaning or several pages; names the
            file.
    """
    file = open_file(Path(path), LARGEST_WHOLE_PX)
    if channels not in _PIL_MODE:
        raise ValueError(
            f"{path}: images are read with 1 or 3 channels, and the network has {channels}"
        )
    return _to_array(check_eight_bit(file, path), _PIL_MODE[channels], path)


def expect_large_images() -> None:
    """Raises the limits on the size of images to `LARGEST_PX`, for the whole process.

    The lower limits protect against small files that decompress to more than fits into
    memory.
    """
    global _expected_px
    _expected_px = LARGEST_PX
    # PIL raises an error above twice this value, and warns above the value.
    Image.MAX_IMAGE_PIXELS = LARGEST_PX // 2


def check_image(image: "np.ndarray | TiffWindows", channels: int) -> None:
    """Raises a ValueError unless an image is uint8 [H, W, channels] and not empty."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        raise ValueError(
            f"The image is {image.dtype} {list(image.shape)}, but the network expects "
            f"uint8 [H, W, {channels}]; read files with "
            f"jaxseg.data.read_image(path, {channels})."
        )
    if not image.size:
        raise ValueError(f"The image is empty: {list(image.shape)}.")


def read_encoded_image(path: str | Path) -> tuple[bytes, tuple[int, int]]:
    """Reads an image file as bytes for `decode_image`.

    Upright 8-bit PNG and JPEG files are returned byte for byte; other files, and those
    that `decode_image` cannot read, are encoded again as PNG, without loss.

    Args:
        path: see `read_image`.

    Returns:
        The encoded image and its (height, width).

    Raises:
        ValueError: see `read_image`; the limits are `LARGEST_RECORD_PX` and
            `LARGEST_RECORD_SIDE`.
    """
    file = open_file(Path(path), LARGEST_RECORD_PX)
    image, data = file.image, file.data
    if max(image.size) > LARGEST_RECORD_SIDE:
        raise ImageTooLargeError(
            f"{path}: a side has {max(image.size):,} pixels; the limit is "
            f"{LARGEST_RECORD_SIDE:,}; {_SMALLER}"
        )
    # Many phones write MPO: a JPEG followed by a second image.
    kept = file.header.format in ("PNG", "JPEG", "MPO") and image.mode in ("L", "RGB")
    check_eight_bit(file, path)
    size = image.height, image.width
    if not kept or file.orientation != 1 or not _can_decode(data, size):
        gray = image.mode in ("1", "L", "LA")
        data = encode_png(_to_array(image, "L" if gray else "RGB", path))
    return data, size


def is_turned(path: str | Path) -> bool:
    """Whether the EXIF data of an image exchange its height and width."""
    return open_file(Path(path), LARGEST_RECORD_PX).orientation >= 5


def encode_png(array: np.ndarray) -> bytes:
    """Encodes uint8 [H, W], [H, W, 1] or [H, W, 3] (RGB) as PNG."""
    if array.ndim == 3 and array.shape[2] == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", array)
    if not done:
        raise ValueError(f"an image of {array.shape} cannot be encoded as PNG")
    return data.tobytes()


def decode_image(
    data: bytes, channels: int = 3, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Decodes PNG or JPEG bytes to uint8 [H, W, channels], RGB for three channels.

    Args:
        data: the bytes.
        channels: 1 or 3.
        size: the expected (height, width); None for any.

    Raises:
        ValueError: if the bytes are damaged, or the image has another size.
    """
    if channels == 1:
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
        return _decode(data, flags, size)[..., None]
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = _decode(data, flags, size)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def decode_label(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes the PNG bytes of a label map to uint8 [H, W]; see `decode_image`."""
    return _decode(data, cv2.IMREAD_GRAYSCALE, size)


def _can_decode(data: bytes, size: tuple[int, int]) -> bool:
    """Whether `decode_image` reads the bytes, and without a warning."""
    # OpenCV refuses some files that PIL accepts.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            decode_image(data, size=size)
        except (ValueError, Warning):
            return False
    return True


def _decode(data: bytes, flags: int, size: tuple[int, int] | None) -> np.ndarray:
    # OpenCV too has decoders of many formats, and allocates what a header asks for.
    readers = {_PNG: PngImageFile, _JPEG: JpegImageFile}
    reader = next((r for start, r in readers.items() if data.startswith(start)), None)
    if reader is None:
        raise ValueError("an image is neither PNG nor JPEG")
    if size is not None and (found := reader(io.BytesIO(data)).size[::-1]) != size:
        raise ValueError(f"an image has the size {found} instead of {size}")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError("an image cannot be decoded")
    return image


class OpenedFile(NamedTuple):
    """A decoded file: its header, the upright image, its bytes, its EXIF orientation."""

    header: Image.Image
    image: Image.Image
    data: bytes
    orientation: int


def open_file(path: Path, largest_px: int) -> OpenedFile:
    """Reads and decodes a file.

    Args:
        path: of the file.
        largest_px: limit of its pixels, unless `expect_large_images` was called.

    Raises:
        ImageTooLargeError: if it has more pixels.
        ValueError: if it is of another format, damaged, or has several pages; names it.
    """
    data = read_file(path, LARGEST_FILE)
    if not data:
        raise ValueError(f"{path}: the file is empty; replace or remove it")
    try:
        with warnings.catch_warnings():
            # Whatever matters is an error, handled below.
            warnings.simplefilter("ignore")
            header = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_size(path, header.size, max(largest_px, _expected_px))
            header.load()
            frames = getattr(header, "n_frames", 1)
            orientation = _orientation(header, path)
            turn = _TURNS.get(orientation)
            image = header if turn is None else header.transpose(turn)
    except (MemoryError, ImageTooLargeError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{path}: too large ({error}); {_SMALLER}") from error
    except UnidentifiedImageError as error:
        if data.startswith(_TIFF):
            raise ValueError(
                f"{path}: unsupported kind of TIFF, such as one with many channels or "
                "with floats; save its red, green and blue channels as 8-bit PNG or "
                "TIFF"
            ) from error
        raise ValueError(
            f"{path}: not a PNG, JPEG, WebP, TIFF, BMP or GIF image; convert, replace or "
            "remove it"
        ) from error
    except Exception as error:  # decoders raise anything on broken bytes
        raise ValueError(
            f"{path}: truncated or damaged ({error}); replace or remove it"
        ) from error
    if header.format == "BMP" and bits_per_channel(header, data) != {
        "1": 1,
        "L": 8,
    }.get(
        header.mode, bits_per_channel(header, data)
    ):  # Pillow takes the bits from the number of colors
        raise ValueError(
            f"{path}: a BMP with fewer gray levels than its bits allow cannot be decoded; "
            "convert it to PNG"
        )
    # The second image of an MPO is a smaller copy of the first.
    if header.format != "MPO" and frames > 1:
        raise ValueError(
            f"{path}: contains {frames} pages or frames; save each to its own file"
        )
    return OpenedFile(header, image, data, orientation)


def _orientation(image: Image.Image, path: Path) -> int:
    """The orientation in the EXIF data; 1, upright, if there is none.

    Broken EXIF data say nothing about the pixels, so the image is read as it is stored.
    """
    reason: object = None
    orientation: Any = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # Opening a JPEG has read them already, and ignored what is wrong.
            Image.Exif().load(image.info.get("exif", b""))
            orientation = image.getexif().get(_ORIENTATION)
        except Exception as error:  # it raises anything on broken bytes
            reason = error
    if reason is None and caught and orientation not in range(1, 9):
        reason = caught[0].message
    if reason is not None:
        logging.warning(
            "%s: its EXIF data are damaged (%s), so it is read as stored; if it is shown "
            "turned, save it again",
            path,
            str(reason).strip(),
        )
    return int(orientation) if orientation in range(1, 9) else 1


def tiff_tags(image: Image.Image) -> dict:
    """The tags of a TIFF by number; none for other formats."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def bits_per_channel(image: Image.Image, data: bytes) -> int:
    """Bits per channel of a file; Pillow's modes do not tell 2 and 4 from 8."""
    if image.format == "PNG":
        return data[24]  # in the header
    if image.format == "BMP":
        old = int.from_bytes(data[14:18], "little") < 16  # the header of OS/2
        return int.from_bytes((data[24:26] if old else data[28:30]), "little")
    return max(tiff_tags(image).get(_BITS_PER_SAMPLE, (8,)))


def _check_size(path: Path, size: tuple[int, int], largest_px: int) -> None:
    width, height = size
    if width * height > largest_px:
        raise ImageTooLargeError(
            f"{path}: too large ({height}x{width}, height x width, are "
            f"{width * height:,} pixels; the limit is {largest_px:,}); {_SMALLER}"
        )


def check_eight_bit(file: OpenedFile, path: str | Path) -> Image.Image:
    """The image; an error unless all channels have at most 8 bits and are known."""
    image = file.image
    # Pillow drops the low byte of 16-bit colors.
    bits = (
        8 if file.header.format == "BMP" else bits_per_channel(file.header, file.data)
    )
    if image.mode.startswith("I") or image.mode == "F" or bits > 8:
        raise ValueError(
            f"{path}: more than 8 bits per channel (mode {image.mode}); scale the range "
            "of values that matters to 8 bits"
        )
    if _UNSPECIFIED in tiff_tags(file.header).get(_EXTRA_SAMPLES, ()):
        raise ValueError(
            f"{path}: has additional channels of unspecified meaning besides "
            f"{image.mode}; save the channels for the network to a separate file"
        )
    return image


def _to_array(image: Image.Image, mode: str, path: str | Path) -> np.ndarray:
    try:
        # Converting an image to its own mode would copy it.
        array = np.asarray(image if image.mode == mode else image.convert(mode))
    except (AssertionError, ValueError) as error:  # of a palette or its transparency
        raise ValueError(
            f"{path}: its colors are damaged ({error}); replace or remove it"
        ) from error
    return array[..., None] if array.ndim == 2 else array
