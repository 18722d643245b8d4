"""Reading TIFF files by windows, for images that do not fit into memory."""

import logging
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from jaxseg.data.images import LARGEST_PX
from jaxseg.utils.rounding import divide_up

ROWS = 256
"""Number of rows read at a time from an uncompressed file with contiguous rows."""

_LARGEST_WINDOWED_PX = 2**34

# Values of tags.
_PHOTOMETRICS = (1, 2)  # gray where 0 is black; RGB
_CONTIGUOUS = 1  # the channels of a pixel are stored together
_ALPHA = 2  # an extra sample: alpha that the others are not multiplied with
_UPRIGHT = 1
_LOSSLESS = (1, 5, 8, 32773, 32946, 50000)  # none, LZW, deflate, PackBits, Zstandard


class TiffWindows:
    """An image in a TIFF file, as an array that can be sliced without loading it.

        image[0:512, 256:768]  # uint8 [512, 512, channels]

    Only the strips or rows of tiles that the last slice touched are in memory, so read
    slices from top to bottom.

    Attributes:
        shape: height, width, channels.
        dtype: uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, page, channels: int):
        """Use `open_windows`, which checks that the file is supported.

        Args:
            path: of the file.
            page: the page, a `tifffile.TiffPage`.
            channels: of the result, 1 or 3.
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

    @property
    def band_px(self) -> int:
        """Number of pixels that are decoded at a time."""
        # A tile may be wider than the image.
        columns = 0 if self._flat else self._page.chunks[1]
        return self._band_rows * max(self.shape[1], columns)

    def __getitem__(self, where: tuple[slice, slice]) -> np.ndarray:
        rows, columns = where
        top, bottom, _ = rows.indices(self.shape[0])
        first, last = top // self._band_rows, (bottom - 1) // self._band_rows
        # Bands of the last slice are reused.
        self._bands = {
            n: self._bands[n] if n in self._bands else self._read(n)
            for n in range(first, last + 1)
        }
        pieces = []
        for n, band in self._bands.items():
            start = n * self._band_rows
            pieces.append(band[max(0, top - start) : bottom - start, columns])
        return np.concatenate(pieces)

    def _read(self, number: int) -> np.ndarray:
        """A band, that is a strip or a row of tiles: uint8 [h, W, channels]."""
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
        across = divide_up(self.shape[1], page.chunks[1])
        segments = []
        for i in range(number * across, (number + 1) * across):
            file.seek(page.dataoffsets[i])
            data = file.read(page.databytecounts[i])
            segment, _, (_, rows, columns, _) = page.decode(data, i)
            segments.append(segment[0, :rows, :columns])
        # The last tiles extend beyond the image.
        below = self.shape[0] - number * self._band_rows
        return np.concatenate(segments, axis=1)[:below, : self.shape[1]]


def open_windows(path: Path, channels: int) -> TiffWindows | None:
    """Opens an image for reading by windows, if it is a TIFF that allows this.

    Args:
        path: of any image.
        channels: 3 for RGB (gray is repeated), 1 for gray.

    Returns:
        The image, or None if it is not an upright TIFF of one page, gray or RGB, with 8
        bits per channel and a supported compression, if it has more than 2**34 pixels
        or 2**30 in a strip or a row of tiles, or if tifffile is not installed.
        Then use `read_image`, which reads the file or explains what is wrong with it.
    """
    try:
        import tifffile
    except ImportError:
        return None
    if not path.is_file():  # a pipe would wait
        return None
    log = logging.getLogger("tifffile")
    log.disabled = True  # it prints lines about what is damaged
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            sides = (page.imagelength, page.imagewidth, *page.chunks)
            plain = (
                len(file.pages) == 1
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
                and all(isinstance(side, int) and side > 0 for side in sides)
                and page.imagelength * page.imagewidth <= _LARGEST_WINDOWED_PX
            )
            windows = TiffWindows(path, page, channels)
            return windows if plain and windows.band_px <= LARGEST_PX else None
    except Exception:  # `read_image` explains what is wrong
        return None
    finally:
        log.disabled = False
