"""TIFF files read by windows: those too large for memory."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

ROWS = 256
"""Read at a time of a file whose rows lie one behind the other, uncompressed."""

# Values of tags.
_PHOTOMETRICS = (1, 2)  # grey of which 0 is black; RGB
_CONTIGUOUS = 1  # the channels of a pixel are one beside the other
_ALPHA = 2  # an extra sample that is not a factor of the others already
_UPRIGHT = 1
_LOSSLESS = (1, 5, 8, 32773, 32946, 50000)  # none, LZW, deflate, PackBits, Zstandard


class TiffWindows:
    """An image in a TIFF file, as an array that is sliced but never held.

        image[0:512, 256:768]  # uint8 [512, 512, channels]

    What is held are the rows of the file's strips or tiles that the last slice touched,
    so that slices should move downwards.

    Attributes:
        shape: height, width, channels.
        dtype: uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, page, channels: int):
        """Takes what `open_windows` has found to be plain.

        Args:
            path: of the file.
            page: tifffile's.
            channels: 1 or 3, to convert to.
        """
        self.shape = (page.imagelength, page.imagewidth, channels)
        self._path, self._page = path, page
        self._flat = page.is_contiguous
        self._band_rows = ROWS if self._flat else page.chunks[0]
        self._bands: dict[int, np.ndarray] = {}

    @property
    def ndim(self) -> int:
        """Three."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    def __getitem__(self, where: tuple[slice, slice]) -> np.ndarray:
        rows, columns = where
        top, bottom, _ = rows.indices(self.shape[0])
        first, last = top // self._band_rows, (bottom - 1) // self._band_rows
        # Those that the last slice needed too are not decoded again.
        self._bands = {
            n: self._bands[n] if n in self._bands else self._read(n)
            for n in range(first, last + 1)
        }
        parts = []
        for n, band in self._bands.items():
            start = n * self._band_rows
            parts.append(band[max(0, top - start) : bottom - start, columns])
        return np.concatenate(parts)

    def _read(self, number: int) -> np.ndarray:
        """A row of the file's tiles, or a strip: uint8 [h, W, channels]."""
        try:
            with open(self._path, "rb") as file:
                read = self._rows if self._flat else self._segments
                band = read(file, number)
        except Exception as error:  # decoders raise anything on broken bytes
            raise ValueError(
                f"{self._path}: truncated or damaged ({error}); replace or remove it"
            ) from error
        band = band[..., 0] if band.shape[2] == 1 else band[..., :3]
        mode = "L" if self.shape[2] == 1 else "RGB"
        converted = np.asarray(Image.fromarray(band).convert(mode))
        return converted.reshape(*band.shape[:2], -1)

    def _rows(self, file: BinaryIO, number: int) -> np.ndarray:
        height, width = self.shape[:2]
        top = number * self._band_rows
        shape = (min(self._band_rows, height - top), width, self._page.samplesperpixel)
        row_bytes = width * shape[2]
        file.seek(self._page.dataoffsets[0] + top * row_bytes)
        data = file.read(shape[0] * row_bytes)
        return np.frombuffer(data, np.uint8).reshape(shape)

    def _segments(self, file: BinaryIO, number: int) -> np.ndarray:
        page = self._page
        across = -(-self.shape[1] // page.chunks[1])
        segments = []
        for i in range(number * across, (number + 1) * across):
            file.seek(page.dataoffsets[i])
            data = file.read(page.databytecounts[i])
            segment, _, (_, rows, columns, _) = page.decode(data, i)
            segments.append(segment[0, :rows, :columns])
        # The last tiles go on where the image has ended.
        below = self.shape[0] - number * self._band_rows
        return np.concatenate(segments, axis=1)[:below, : self.shape[1]]


def open_windows(path: Path, channels: int) -> TiffWindows | None:
    """Opens an image to be read by windows, where that gives what a viewer shows.

    Args:
        path: of any image.
        channels: 3 for RGB (grey is repeated), 1 for grey.

    Returns:
        The image; None for what is no upright TIFF of one page, grey or RGB of 8 bits,
        or is compressed in a way that cannot be undone here, or if tifffile is not
        installed: `read_image` reads it, or says what is wrong with it.
    """
    try:
        import tifffile
    except ImportError:
        return None
    try:
        with tifffile.TiffFile(path) as file:
            page, pages = file.pages.first, len(file.pages)
    except Exception:  # whatever is wrong, the strict reader finds words for it
        return None
    plain = (
        pages == 1
        and page.photometric in _PHOTOMETRICS
        and page.dtype == np.uint8
        and page.bitspersample == 8
        and page.planarconfig == _CONTIGUOUS
        and page.imagedepth == 1
        and all(sample == _ALPHA for sample in page.extrasamples)
        and page.tags.valueof("Orientation", default=_UPRIGHT) == _UPRIGHT
        and page.compression in _LOSSLESS
        and page.compression in tifffile.TIFF.DECOMPRESSORS
        and page.predictor in tifffile.TIFF.UNPREDICTORS
    )
    return TiffWindows(path, page, channels) if plain else None
