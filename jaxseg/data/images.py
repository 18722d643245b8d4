"""Image and mask files: read strictly once, decoded fast ever after.

Every file is read the way a viewer shows it: a rotation in its EXIF data is applied,
an alpha channel is dropped. What cannot be read without a guess (16-bit images, files
of several pages) is refused with the cure.
"""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IGNORE = 255  # the label of void pixels
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_PIL_MODE = {1: "L", 3: "RGB"}
_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B")

# Threads belong to the input pipeline, one sample each; OpenCV's own would only add
# to them.
cv2.setNumThreads(0)


def read_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """Reads an image file of any supported format, upright.

    Args:
        path: a png, jpg, webp or tif file of 8 bits a channel.
        channels: 3 for RGB (grey is repeated), 1 for grey (colours are averaged by
            luma).

    Returns:
        uint8 [H, W, channels].

    Raises:
        ValueError: if the file is empty, truncated, not an image, of more than 8 bits
            or of several pages.
    """
    image, _ = _open(Path(path))
    return _to_array(_eight_bit(image, path).convert(_PIL_MODE[channels]))


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
    if not plain or image.getexif().get(_ORIENTATION, 1) != 1:
        image = _eight_bit(image, path)
        grey = image.mode in ("1", "L", "LA")
        data = encode_png(_to_array(image.convert("L" if grey else "RGB")))
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
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image; replace or remove it") from error
    except Exception as error:  # decoders raise anything on broken bytes
        raise ValueError(
            f"{path}: truncated or damaged ({error}); replace or remove it"
        ) from error
    if image.format in ("TIFF", "WEBP", "PNG") and getattr(image, "n_frames", 1) > 1:
        raise ValueError(
            f"{path}: holds {image.n_frames} pages; save each as a file of its own"
        )
    return image, data


def _eight_bit(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(
            f"{path}: more than 8 bits a channel (mode {image.mode}); scale it to 8 "
            "bits first, for which range of values matters only its owner knows"
        )
    return ImageOps.exif_transpose(image)


def _to_array(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
