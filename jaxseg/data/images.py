"""Reading of image and mask files, and fast decoding of prepared ones.

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
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from jaxseg.utils.files import read_file

if TYPE_CHECKING:
    from jaxseg.data.tiff import TiffWindows

IGNORE = 255  # the label of void pixels
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")

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

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")  # JPEG includes MPO, which many phones write
_expected_px = 0  # the limit of `expect_large_images`, once it was called
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_BITS_PER_SAMPLE, _EXTRA_SAMPLES = 258, 338  # tags of TIFF
_UNSPECIFIED = 0  # an extra sample that is not alpha
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_SMALLER = "cut it into smaller images"
_PIL_MODE = {1: "L", 3: "RGB"}
_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B")


class ImageTooLargeError(ValueError):
    """An image with more pixels than are read at once; the message names it."""


def read_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """Reads an image file of any supported format, upright.

    Args:
        path: a PNG, JPEG, WebP or TIFF file with 8 bits per channel.
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
    image, data, _ = _open(Path(path), LARGEST_WHOLE_PX)
    return _to_array(_eight_bit(image, data, path), _PIL_MODE[channels])


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
    image, data, upright = _open(Path(path), LARGEST_RECORD_PX)
    if max(image.size) > LARGEST_RECORD_SIDE:
        raise ImageTooLargeError(
            f"{path}: a side has {max(image.size):,} pixels; the limit is "
            f"{LARGEST_RECORD_SIDE:,}; {_SMALLER}"
        )
    # Many phones write MPO: a JPEG followed by a second image.
    plain = image.format in ("PNG", "JPEG", "MPO") and image.mode in ("L", "RGB")
    image = _eight_bit(image, data, path)
    size = image.height, image.width
    if not (plain and upright and _can_decode(data, size)):
        gray = image.mode in ("1", "L", "LA")
        data = encode_png(_to_array(image, "L" if gray else "RGB"))
    return data, size


def read_mask(path: str | Path, *, colors: bool = False) -> np.ndarray:
    """Reads a mask file without interpreting it.

    Args:
        path: a PNG, WebP or TIFF file. JPEG is an error, since it changes labels.
        colors: whether to read single-channel and palette masks by the colors that
            they show, too.

    Returns:
        uint8 or int64 [H, W] for an index mask (the indices of a palette, not its
        colors), or uint8 [H, W, 3] for a color mask.

    Raises:
        ValueError: if the file cannot be decoded, is a JPEG, or contains floats.
    """
    path = Path(path)
    image, _, _ = _open(path, LARGEST_RECORD_PX)
    if image.format in ("JPEG", "MPO"):
        raise ValueError(
            f"{path}: JPEG does not preserve the labels of a mask; save masks as PNG"
        )
    if image.mode == "F":
        raise ValueError(
            f"{path}: the mask contains floating-point numbers; save it as 8-bit PNG"
        )
    if colors or image.mode not in _INDEX_MODES:
        return np.asarray(image.convert("RGB"))
    indices = np.asarray(image)
    return indices.astype(np.uint8 if indices.itemsize == 1 else np.int64)


def encode_png(array: np.ndarray) -> bytes:
    """Encodes uint8 [H, W], [H, W, 1] or [H, W, 3] (RGB) as PNG."""
    if array.ndim == 3 and array.shape[2] == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", array)
    assert done
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
    """Whether OpenCV reads the bytes too; it refuses some that PIL accepts."""
    try:
        decode_image(data, size=size)
    except ValueError:
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


def _open(path: Path, largest_px: int) -> tuple[Image.Image, bytes, bool]:
    """Reads and decodes a file: the upright image, the bytes, whether they are upright."""
    data = read_file(path, LARGEST_FILE)
    if not data:
        raise ValueError(f"{path}: the file is empty; replace or remove it")
    try:
        with warnings.catch_warnings():
            # Whatever matters is an error, handled below.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_size(path, image.size, max(largest_px, _expected_px))
            image.load()
            frames = getattr(image, "n_frames", 1)
            upright = image.getexif().get(_ORIENTATION, 1) == 1
            ImageOps.exif_transpose(image, in_place=True)
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
            f"{path}: not a PNG, JPEG, WebP or TIFF image; convert, replace or remove it"
        ) from error
    except Exception as error:  # decoders raise anything on broken bytes
        raise ValueError(
            f"{path}: truncated or damaged ({error}); replace or remove it"
        ) from error
    # The second image of an MPO is a smaller copy of the first.
    if image.format != "MPO" and frames > 1:
        raise ValueError(
            f"{path}: contains {frames} pages or frames; save each to its own file"
        )
    return image, data, upright


def _check_size(path: Path, size: tuple[int, int], largest_px: int) -> None:
    width, height = size
    if width * height > largest_px:
        raise ImageTooLargeError(
            f"{path}: too large ({height}x{width}, height x width, are "
            f"{width * height:,} pixels; the limit is {largest_px:,}); {_SMALLER}"
        )


def _eight_bit(image: Image.Image, data: bytes, path: str | Path) -> Image.Image:
    """The image; an error unless all channels have 8 bits and are known."""
    tiff = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits = max(tiff.get(_BITS_PER_SAMPLE, (8,)))
    if image.format == "PNG":
        bits = data[24]  # in the header; PIL drops the low byte of 16-bit colors
    if image.mode.startswith("I") or image.mode == "F" or bits > 8:
        raise ValueError(
            f"{path}: more than 8 bits per channel (mode {image.mode}); scale the range "
            "of values that matters to 8 bits"
        )
    if _UNSPECIFIED in tiff.get(_EXTRA_SAMPLES, ()):
        raise ValueError(
            f"{path}: has additional channels of unspecified meaning besides "
            f"{image.mode}; save the channels for the network to a separate file"
        )
    return image


def _to_array(image: Image.Image, mode: str) -> np.ndarray:
    # Converting an image to its own mode would copy it.
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[..., None] if array.ndim == 2 else array
