"""Pictures of label maps: index PNGs, overlays, legends, panels.

Numpy and PIL only; images are uint8 `[H, W, C]`, label maps integers `[H, W]`.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxseg.utils.files import atomic_path
from jaxseg.utils.rounding import divide_up

VOID = 255
VOID_COLOR = (224, 224, 192)  # PASCAL VOC's
Palette = Sequence[tuple[int, int, int]]

_TEXT = 12  # pixels; smaller is not legible in PIL's own font
_LINE = 16
_SPACE = 6
_PAPER, _INK = (255, 255, 255), (0, 0, 0)


def index_png(path: str | os.PathLike, prediction: np.ndarray, palette: Palette):
    """Writes class numbers as a PNG with palette: numbers to read, colors to see.

    The file appears whole or not at all: it is written aside, then renamed.

    Args:
        path: of the file; its folder must exist.
        prediction: `[H, W]`, classes in 0..K-1 or 255 for void.
        palette: K RGB colors.

    Raises:
        ValueError: for numbers that are neither.
    """
    prediction = _checked(prediction, len(palette))
    with index_png_rows(path, prediction.shape, palette) as write:
        write(prediction)


@contextmanager
def index_png_rows(
    path: str | os.PathLike, size: tuple[int, int], palette: Palette
) -> Iterator[Callable[[np.ndarray], None]]:
    """The same for class numbers that come some rows at a time, and are not kept.

        with index_png_rows(path, (height, width), palette) as write:
            for rows in strips:
                write(rows)

    Args:
        path: of the file; its folder must exist.
        size: height and width.
        palette: K RGB colors.

    Yields:
        A function that takes rows `[h, W]`, from the top to the bottom.
    """
    packer = zlib.compressobj()

    def write(rows):
        rows = _checked(rows, len(palette))
        # Every row begins with the number of its filter; 0 is none.
        _chunk(file, b"IDAT", packer.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes()))

    with atomic_path(path) as aside, open(aside, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        height, width = size
        # 8 bits; of a palette; the only compression and filtering; not interlaced.
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        _chunk(file, b"PLTE", _table(palette).tobytes())
        yield write
        _chunk(file, b"IDAT", packer.flush())
        _chunk(file, b"IEND", b"")


def write_png(path: str | os.PathLike, picture: np.ndarray):
    """Writes a picture, uint8 `[H, W, 3]`, whole or not at all, as `index_png` does."""
    with atomic_path(path) as aside:
        Image.fromarray(picture).save(aside, format="PNG")


def colorize(prediction: np.ndarray, palette: Palette) -> np.ndarray:
    """Class numbers to colors.

    Args:
        prediction: `[H, W]`, classes in 0..K-1 or 255, which becomes `VOID_COLOR`.
        palette: K RGB colors.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        ValueError: for numbers that are neither.
    """
    return _table(palette)[_checked(prediction, len(palette))]


def overlay(
    image: np.ndarray, prediction: np.ndarray, palette: Palette, alpha: float = 0.5
) -> np.ndarray:
    """The image tinted with the colors of the classes.

        (1 - alpha) image + alpha color;   the image itself where void

    Args:
        image: uint8 `[H, W, C]`; one channel is shown gray, of four or more the first
            three.
        prediction: `[H, W]`, classes in 0..K-1 or 255.
        palette: K RGB colors.
        alpha: opacity of the colors, in [0, 1].

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        ValueError: for sizes that differ, or class numbers out of range.
    """
    image = _rgb(image)
    prediction = np.asarray(prediction)
    if image.shape[:2] != prediction.shape:
        raise ValueError(
            f"image of {image.shape[:2]} and prediction of {prediction.shape} pixels "
            "(height, width) do not fit"
        )
    tinted = (1 - alpha) * image + alpha * colorize(prediction, palette)
    tinted = np.round(tinted).astype(np.uint8)
    return np.where((prediction == VOID)[..., None], image, tinted)


def overlay_with_legend(
    image: np.ndarray,
    prediction: np.ndarray,
    palette: Palette,
    class_names: Sequence[str],
    alpha: float = 0.5,
) -> np.ndarray:
    """`overlay` at the upper left, and beside it the names of the classes present.

    The picture keeps its own pixels, whatever its size; the legend has text of fixed
    size and makes room for itself to the right and, where it must, below.

    Args:
        image: uint8 `[H, W, C]`.
        prediction: `[H, W]`, classes in 0..K-1 or 255.
        palette: K RGB colors.
        class_names: K names.
        alpha: opacity of the colors, in [0, 1].

    Returns:
        uint8 `[H', W', 3]`, H' >= H, W' > W.

    Raises:
        ValueError: as `overlay`.
    """
    picture = overlay(image, prediction, palette, alpha)
    return _beside(picture, _legend([prediction], palette, class_names, len(picture)))


def validation_panel(
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    palette: Palette,
    class_names: Sequence[str],
    max_width: int = 480,
) -> np.ndarray:
    """One picture of several samples: a row of image, truth and prediction for each.

    Args:
        images: uint8 `[h, w, C]` each, of any size; stretched to the size of the truth.
        truths: `[H, W]` each, classes in 0..K-1 or 255 for void.
        predictions: `[H, W]` each, of the size of their truths. They are shown under
            void as well: what a network makes of it is worth seeing.
        palette: K RGB colors.
        class_names: K names; a legend on the right has those in sight.
        max_width: width in pixels above which a sample is shown smaller.

    Returns:
        uint8 `[H', W', 3]`.

    Raises:
        ValueError: for numbers or sizes of samples that differ, or class numbers out of
            range.
    """
    if not len(images) == len(truths) == len(predictions) > 0:
        raise ValueError(
            f"{len(images)} images, {len(truths)} truths and {len(predictions)} "
            "predictions do not make rows"
        )
    rows = []
    for image, truth, prediction in zip(images, truths, predictions):
        truth, prediction = np.asarray(truth), np.asarray(prediction)
        if truth.shape != prediction.shape:
            raise ValueError(
                f"truth of {truth.shape} and prediction of {prediction.shape} pixels "
                "(height, width) do not fit"
            )
        height, width = truth.shape
        shrink = min(1, max_width / width)
        size = round(width * shrink), max(1, round(height * shrink))
        cells = [Image.fromarray(_rgb(image)).resize(size, Image.Resampling.BILINEAR)]
        for classes in (truth, prediction):
            cell = Image.fromarray(colorize(classes, palette))
            cells.append(cell.resize(size, Image.Resampling.NEAREST))
        rows.append(cells)

    titles = ("image", "truth", "prediction")
    least = max(_width(title) for title in titles)
    column = max(least, *(row[0].width for row in rows)) + _SPACE
    height = _LINE + sum(row[0].height + _SPACE for row in rows)
    canvas = Image.new("RGB", (3 * column, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, title in enumerate(titles):
        draw.text((i * column, 0), title, _INK, _font())
    top = _LINE
    for row in rows:
        for i, cell in enumerate(row):
            canvas.paste(cell, (i * column, top))
        top += row[0].height + _SPACE
    legend = _legend([*truths, *predictions], palette, class_names, height)
    return _beside(np.asarray(canvas), legend)


def _checked(classes, num_classes):
    """The class numbers as uint8, which they must fit."""
    classes = np.asarray(classes)
    if classes.ndim != 2:
        raise ValueError(f"class numbers must be [H, W], not {classes.shape}")
    known = np.logical_and(classes >= 0, classes < num_classes) | (classes == VOID)
    if not known.all():
        raise ValueError(
            f"class number {classes[~known][0]} is neither below the {num_classes} "
            f"colors of the palette nor {VOID} (void)"
        )
    return classes.astype(np.uint8)


def _table(palette):
    """uint8 [256, 3] with the void color at 255 and black where no class is."""
    table = np.zeros((256, 3), np.uint8)
    table[VOID] = VOID_COLOR
    table[: len(palette)] = palette
    return table


def _rgb(image):
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    return np.repeat(image, 3, axis=2) if image.shape[2] < 3 else image[..., :3]


def _font():
    return ImageFont.load_default(_TEXT)


def _width(text):
    return int(np.ceil(_font().getlength(text)))


def _legend(maps, palette, class_names, height):
    """White sheet with a swatch and a name for each class in the maps."""
    present = np.unique(np.concatenate([np.ravel(m) for m in maps]))
    entries = [(class_names[k], palette[k]) for k in present if k != VOID]
    if VOID in present:
        entries.append(("void", VOID_COLOR))
    # As many columns as it takes for the picture's height, of 24 lines at least.
    lines = max(24, height // _LINE)
    column = max(_width(name) for name, _ in entries) + _LINE + _SPACE
    sheet = Image.new(
        "RGB",
        (divide_up(len(entries), lines) * column, min(lines, len(entries)) * _LINE),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for i, (name, color) in enumerate(entries):
        x, y = i // lines * column, i % lines * _LINE
        draw.rectangle((x, y + 2, x + 11, y + 13), tuple(color), _INK)
        draw.text((x + _LINE, y), name, _INK, _font())
    return np.asarray(sheet)


def _beside(picture, sheet):
    """Both on white paper, the sheet to the right."""
    height = max(len(picture), len(sheet))
    width = picture.shape[1] + _SPACE + sheet.shape[1]
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[: len(picture), : picture.shape[1]] = picture
    canvas[: len(sheet), -sheet.shape[1] :] = sheet
    return canvas


def _chunk(file, kind, data):
    file.write(struct.pack(">I", len(data)) + kind + data)
    file.write(struct.pack(">I", zlib.crc32(kind + data)))
