"""Reading of image and mask files, and fast decoding of prepared ones.

Every file is read as a viewer shows it: a rotation in its EXIF data is applied, an
alpha channel is dropped, CMYK is converted without a color profile. Files that are
ambiguous (16-bit images, channels of unknown meaning, several pages or frames) raise an
error that names the cure.
"""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from jaxseg.data.tiff import TiffWindows

IGNORE = 255  # the label of void pixels
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")

LARGEST_PX = 2**30
"""Pixels of the largest image that can be read after `expect_large_images`. Decoding
needs 10 bytes per pixel."""

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_BITS_PER_SAMPLE, _EXTRA_SAMPLES = 258, 338  # tags of TIFF
_UNSPECIFIED = 0  # an extra sample that is not alpha
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PIL_MODE = {1: "L", 3: "RGB"}
_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B")


def read_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """Reads an image file of any supported format, upright.

    Args:
        path: a PNG, JPEG, WebP or TIFF file with 8 bits per channel.
        channels: 3 for RGB (gray is repeated), 1 for gray (the luma of colors).

    Returns:
        uint8 [H, W, channels].

    Raises:
        ValueError: if the file is empty, truncated or not an image, has more than 8
            bits per channel, channels of unknown meaning or several pages, or is too
            large (see `expect_large_images`); names the file.
    """
    image, data = _open(Path(path))
    return _to_array(_eight_bit(image, data, path), _PIL_MODE[channels])


def expect_large_images() -> None:
    """Raises the limit on the size of images to `LARGEST_PX`, for the whole process.

    By default PIL's limit applies, 179 million pixels. It protects against small files
    that decompress to more than fits into memory.
    """
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

    Upright 8-bit PNG and JPEG files are returned byte for byte; other files are encoded
    again as PNG, without loss.

    Args:
        path: see `read_image`.

    Returns:
        The encoded image and its (height, width).

    Raises:
        ValueError: see `read_image`.
    """
    image, data = _open(Path(path))
    # Many phones write MPO: a JPEG followed by a second image.
    plain = image.format in ("PNG", "JPEG", "MPO") and image.mode in ("L", "RGB")
    upright = image.getexif().get(_ORIENTATION, 1) == 1
    image = _eight_bit(image, data, path)
    if not (plain and upright):
        gray = image.mode in ("1", "L", "LA")
        data = encode_png(_to_array(image, "L" if gray else "RGB"))
    return data, (image.height, image.width)


def read_mask(path: str | Path, *, colors: bool = False) -> np.ndarray:
    """Reads a mask file without interpreting it.

    Args:
        path: a PNG, WebP or TIFF file. JPEG is an error, since it changes labels.
        colors: whether to read single-channel and palette masks by the colors that
            they show, too.

    Returns:
        Integers [H, W] for an index mask (the indices of a palette, not its colors), or
        uint8 [H, W, 3] for a color mask.

    Raises:
        ValueError: if the file cannot be decoded, is a JPEG, or contains floats.
    """
    path = Path(path)
    image, _ = _open(path)
    if image.format in ("JPEG", "MPO"):
        raise ValueError(
            f"{path}: JPEG does not preserve the labels of a mask; save masks as PNG"
        )
    if image.mode == "F":
        raise ValueError(
            f"{path}: the mask contains floating-point numbers; save it as 8-bit PNG"
        )
    image = ImageOps.exif_transpose(image)
    if colors or image.mode not in _INDEX_MODES:
        return np.asarray(image.convert("RGB"))
    return np.asarray(image).astype(np.int64)


def encode_png(array: np.ndarray) -> bytes:
    """Encodes uint8 [H, W], [H, W, 1] or [H, W, 3] (RGB) as PNG."""
    if array.ndim == 3 and array.shape[2] == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", array)
    assert done
    return data.tobytes()


def decode_image(data: bytes, channels: int = 3) -> np.ndarray:
    """Decodes PNG or JPEG bytes to uint8 [H, W, channels], RGB for three channels."""
    if channels == 1:
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
        return _decode(data, flags)[..., None]
    image = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def decode_label(data: bytes) -> np.ndarray:
    """Decodes the PNG bytes of a label map to uint8 [H, W]."""
    return _decode(data, cv2.IMREAD_GRAYSCALE)


def _decode(data: bytes, flags: int) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError("the stored image is damaged; prepare the data set again")
    return image


def _open(path: Path) -> tuple[Image.Image, bytes]:
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{path}: the file is empty; replace or remove it")
    try:
        with warnings.catch_warnings():
            # Whatever matters is an error, handled below.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            image.load()
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path}: the image is too large ({error}); cut it into smaller images, or "
            f"predict it in tiles, which allows {LARGEST_PX // 10**6} million pixels"
        ) from error
    except UnidentifiedImageError as error:
        if data.startswith(_TIFF):
            raise ValueError(
                f"{path}: unsupported kind of TIFF, such as one with many channels or "
                "with floats; save its red, green and blue channels as 8-bit PNG or "
                "TIFF"
            ) from error
        raise ValueError(f"{path}: not an image; replace or remove it") from error
    except Exception as error:  # decoders raise anything on broken bytes
        raise ValueError(
            f"{path}: truncated or damaged ({error}); replace or remove it"
        ) from error
    # The second image of an MPO is a smaller copy of the first.
    frames = getattr(image, "n_frames", 1)
    if image.format != "MPO" and frames > 1:
        raise ValueError(
            f"{path}: contains {frames} pages or frames; save each to its own file"
        )
    return image, data


def _eight_bit(image: Image.Image, data: bytes, path: str | Path) -> Image.Image:
    """The image, upright; an error unless all channels have 8 bits and are known."""
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
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_array(image: Image.Image, mode: str) -> np.ndarray:
    # Converting an image to its own mode would copy it.
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[..., None] if array.ndim == 2 else array
