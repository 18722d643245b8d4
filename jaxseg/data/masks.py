"""Reading of mask files: what is stored, and what a viewer shows."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxseg.data.images import (
    LARGEST_RECORD_PX,
    bits_per_channel,
    check_eight_bit,
    open_file,
    tiff_tags,
)

_COMPRESSION = 259  # a tag of TIFF
# None, CCITT, LZW, deflate, PackBits, LZMA, Zstandard.
_LOSSLESS_TIFF = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000)
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L")
_COLOR_MODES = ("RGB", "RGBA", "RGBX")
_RGB_WEIGHTS = np.array([1 << 16, 1 << 8, 1], np.int32)


class Mask(NamedTuple):
    """A mask as stored, and what a viewer shows.

    Attributes:
        kind: "gray" for gray levels of 8 bits, "few bits" for 1, 2 or 4 bits, "palette"
            for indices of a palette, "colors" for red, green and blue, "wide" for
            numbers of 16 or 32 bits.
        values: integers [H, W]. Gray levels of 8 bits are 0..255, of `b` bits
            0..2**b - 1; indices of a palette; colors packed into 24 bits.
        shown: uint8 [N, 3], the color that a viewer shows for each value; None if the
            values are colors or have more than 8 bits.
    """

    kind: str
    values: np.ndarray
    shown: np.ndarray | None = None


def read_mask(path: str | Path) -> Mask:
    """Reads a mask file without interpreting it.

    Args:
        path: a file of a lossless format: PNG, TIFF, BMP, GIF or lossless WebP.

    Returns:
        The values of the pixels, and the colors that a viewer shows.

    Raises:
        ValueError: if the file cannot be decoded, was compressed with loss, or contains
            floats, colors of more than 8 bits or channels of unknown meaning.
    """
    file = open_file(Path(path), LARGEST_RECORD_PX)
    image = file.image
    if lossy := _lossy(file.header, file.data):
        raise ValueError(
            f"{path}: {lossy} does not preserve the labels of a mask; save masks as PNG "
            "from their source, since the labels in this file may already be wrong"
        )
    if image.mode == "F":
        raise ValueError(
            f"{path}: the mask contains floating-point numbers; save it as 8-bit PNG"
        )
    if image.mode in _WIDE_MODES:
        return Mask("wide", np.asarray(image).astype(np.int64))
    bits = bits_per_channel(file.header, file.data)
    if image.mode in ("P", "PA"):
        indices = np.asarray(image.getchannel(0) if image.mode == "PA" else image)
        colors = np.array(image.getpalette("RGB") or (), np.uint8).reshape(-1, 3)
        shown = np.zeros((256, 3), np.uint8)
        shown[: len(colors)] = colors
        return Mask("palette", indices, shown)
    check_eight_bit(file, path)
    if image.mode == "1" or (image.mode == "L" and bits < 8):
        bits = 1 if image.mode == "1" else bits
        if bits not in (1, 2, 4):
            raise ValueError(
                f"{path}: its header is damaged ({bits} bits per pixel); replace or "
                "remove it"
            )
        largest = 2**bits - 1
        # Pillow stretches what is stored to 0..255.
        step = 1 if image.mode == "1" else 255 // largest
        levels = np.linspace(0, 255, largest + 1).astype(np.uint8)
        values = np.asarray(image).astype(np.uint8) // step
        return Mask("few bits", values, levels[:, None].repeat(3, axis=1))
    if image.mode in ("L", "LA"):
        return gray_mask(np.asarray(image.getchannel(0)))
    if image.mode not in _COLOR_MODES:
        raise ValueError(
            f"{path}: a mask in {image.mode} has no exact colors; save it as a PNG of "
            "class numbers, or of red, green and blue"
        )
    return Mask("colors", pack_colors(np.asarray(image.convert("RGB"))))


def gray_mask(levels: np.ndarray) -> Mask:
    """A mask of 8-bit gray levels, [H, W]."""
    return Mask("gray", levels, np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1))


def pack_colors(colors: np.ndarray) -> np.ndarray:
    """Packs RGB `[..., 3]` of 0..255 into integers of 24 bits."""
    # In place; a matrix product of integers takes several times the memory and time.
    colors = np.asarray(colors)
    packed = colors[..., 0].astype(np.int32)
    for channel in (1, 2):
        packed <<= 8
        packed |= colors[..., channel]
    return packed


def unpack_colors(packed: np.ndarray) -> np.ndarray:
    """Unpacks what `pack_colors` returns: uint8 `[..., 3]`."""
    return (np.asarray(packed)[..., None] // _RGB_WEIGHTS % 256).astype(np.uint8)


def _lossy(image: Image.Image, data: bytes) -> str | None:
    """The name of the lossy compression of a file, or None."""
    if image.format in ("JPEG", "MPO"):
        return "JPEG"
    if image.format == "TIFF":
        method = tiff_tags(image).get(_COMPRESSION, 1)
        return None if method in _LOSSLESS_TIFF else f"TIFF with compression {method}"
    if image.format == "WEBP":
        return "lossy WebP" if b"VP8 " in _webp_chunks(data) else None
    return None


def _webp_chunks(data: bytes) -> set[bytes]:
    """The names of the chunks of a WebP file, and of those inside its frames."""
    names, at = set(), 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        names.add(name)
        # In a frame (ANMF), 16 bytes of its header come before its chunks.
        at += 8 + (16 if name == b"ANMF" else size + size % 2)
    return names
