"""Image and mask files: read strictly once, decoded fast ever after.

Every file is read the way a viewer shows it: a rotation in its EXIF data is applied,
an alpha channel is dropped, CMYK is converted without a colour profile. What cannot be
read without a guess (16-bit images, channels of unknown meaning, files of several pages
or frames) is refused with the cure.
"""

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IGNORE = 255  # the label of void pixels
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")

LARGEST_PX = 2**30
"""Pixels of the largest image that is read where large ones are expected; it takes
10 bytes a pixel while it is decoded."""

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_BITS_PER_SAMPLE, _EXTRA_SAMPLES = 258, 338  # tags of TIFF
_UNSPECIFIED = 0  # an extra sample that is not alpha
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PIL_MODE = {1: "L", 3: "RGB"}
_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B")


def read_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """Reads an image file of any supported format, upright.

    Args:
        path: a png, jpg, webp or tif file of 8 bits a channel.
        channels: 3 for RGB (grey is repeated), 1 for grey (colours are averaged by
            luma).

    Returns:
        uint8 [H, W, channels].

    Raises:
        ValueError: if the file is empty, truncated, not an image, of more than 8 bits,
            of channels of unknown meaning, of several pages, or of more pixels than
            `expect_large_images` says; the message names the file.
    """
    image, data = _open(Path(path))
    return _to_array(_eight_bit(image, data, path), _PIL_MODE[channels])


def expect_large_images() -> None:
    """Reads images of up to `LARGEST_PX` pixels from here on, in all of this process.

    Without it PIL's own limit holds, 179 million pixels: a small file can claim to be
    an image that no memory holds.
    """
    # PIL refuses from twice the limit on, and warns from the limit on.
    Image.MAX_IMAGE_PIXELS = LARGEST_PX // 2


def check_image(image: np.ndarray, channels: int) -> None:
    """Raises a ValueError for what is no image, uint8 [H, W, channels], or is empty."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        raise ValueError(
            f"The network takes images uint8 [H, W, {channels}], not {image.dtype} "
            f"{list(image.shape)}; jaxseg.data.read_image(path, {channels}) reads a "
            "file so."
        )
    if not image.size:
        raise ValueError(f"An image of {image.shape[:2]} pixels is empty.")


def read_encoded_image(path: str | Path) -> tuple[bytes, tuple[int, int]]:
    """Reads an image file as bytes that `decode_image` reads back unchanged.

    Upright 8-bit PNG and JPEG files are passed on byte for byte; everything else is
    written anew as PNG, without loss.

    Args:
        path: as for `read_image`.

    Returns:
        The encoded image and its (height, width).

    Raises:
        ValueError: as `read_image`.
    """
    image, data = _open(Path(path))
    # MPO is what many phones write: a JPEG with a second picture after it.
    plain = image.format in ("PNG", "JPEG", "MPO") and image.mode in ("L", "RGB")
    upright = image.getexif().get(_ORIENTATION, 1) == 1
    image = _eight_bit(image, data, path)
    if not (plain and upright):
        grey = image.mode in ("1", "L", "LA")
        data = encode_png(_to_array(image, "L" if grey else "RGB"))
    return data, (image.height, image.width)


def read_mask(path: str | Path, *, colours: bool = False) -> np.ndarray:
    """Reads a mask file without interpreting it.

    Args:
        path: a png, webp or tif file. JPEG is refused, since its loss changes labels.
        colours: read single-channel and palette files too as the colours they show.

    Returns:
        integers [H, W] of an index mask (a palette's indices, not its colours), or
        uint8 [H, W, 3] of a mask in colours.

    Raises:
        ValueError: if the file cannot be decoded, is a JPEG, or holds fractions.
    """
    path = Path(path)
    image, _ = _open(path)
    if image.format in ("JPEG", "MPO"):
        raise ValueError(
            f"{path}: a mask in JPEG has lost its exact labels; save masks as PNG"
        )
    if image.mode == "F":
        raise ValueError(
            f"{path}: a mask of floating-point numbers; save it as 8-bit PNG"
        )
    image = ImageOps.exif_transpose(image)
    if colours or image.mode not in _INDEX_MODES:
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
    buffer = np.frombuffer(data, np.uint8)
    if channels == 1:
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
        return cv2.imdecode(buffer, flags)[..., None]
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(buffer, flags)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def decode_label(data: bytes) -> np.ndarray:
    """Decodes the PNG bytes of a label map to uint8 [H, W]."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def _open(path: Path) -> tuple[Image.Image, bytes]:
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{path}: the file is empty; replace or remove it")
    try:
        with warnings.catch_warnings():
            # What is wrong enough is an error, and is said so below.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            image.load()
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path}: too large to be taken for a photograph ({error}); predict it by "
            f"--tile HxW, which takes up to {LARGEST_PX // 10**6} million pixels, or "
            "cut it into parts"
        ) from error
    except UnidentifiedImageError as error:
        if data.startswith(_TIFF):
            raise ValueError(
                f"{path}: a TIFF of a kind that is not read, as of channels or numbers "
                "that are no 8-bit image; save its red, green and blue channels as "
                "8-bit PNG or TIFF"
            ) from error
        raise ValueError(f"{path}: not an image; replace or remove it") from error
    except Exception as error:  # decoders raise anything on broken bytes
        raise ValueError(
            f"{path}: truncated or damaged ({error}); replace or remove it"
        ) from error
    # The second picture of an MPO is a smaller one of the same.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ValueError(
            f"{path}: holds {image.n_frames} pages or frames; save each as a file of "
            "its own"
        )
    return image, data


def _eight_bit(image: Image.Image, data: bytes, path: str | Path) -> Image.Image:
    """The image upright; refused where a channel is not 8 bits of a known meaning."""
    tiff = image.tag_v2 if image.format == "TIFF" else {}
    bits = max(tiff.get(_BITS_PER_SAMPLE, (8,)))
    if image.format == "PNG":
        bits = data[24]  # of the header; PIL would drop the lower 8 of 16 in colours
    if image.mode.startswith("I") or image.mode == "F" or bits > 8:
        raise ValueError(
            f"{path}: more than 8 bits a channel (mode {image.mode}); scale it to 8 "
            "bits first, for which range of values matters only its owner knows"
        )
    if _UNSPECIFIED in tiff.get(_EXTRA_SAMPLES, ()):
        raise ValueError(
            f"{path}: has channels beside {image.mode}, of no stated meaning; save "
            "those that the network takes in a file of their own"
        )
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_array(image: Image.Image, mode: str) -> np.ndarray:
    # One that is of the mode needs no copy, which large images would feel.
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[..., None] if array.ndim == 2 else array
