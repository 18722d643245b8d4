"""Pictures of label maps: index PNGs, overlays, legends, panels.

Images are uint8 [H, W, C], label maps are integers [H, W].
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageDraw

from jaxseg.utils.files import atomic_path
from jaxseg.utils.rounding import divide_up
from jaxseg.visualization.text import drawable

VOID = 255
VOID_COLOR = (224, 224, 192)  # as in PASCAL VOC
Palette = Sequence[tuple[int, int, int]]

_LINE = 16
_SPACE = 6
_BACKGROUND, _TEXT_COLOR = (255, 255, 255), (0, 0, 0)


def index_png(
    path: str | os.PathLike, prediction: np.ndarray, palette: Palette
) -> None:
    """Writes a label map as a palette PNG: its values are classes, shown as colors.

    The file is written atomically.

    Args:
        path: of the file; its folder must exist.
        prediction: classes in 0..K-1, or 255 for void, [H, W].
        palette: K RGB colors.

    Raises:
        ValueError: if a value is neither a class nor void.
    """
    prediction = _checked(prediction, len(palette))
    with index_png_rows(path, prediction.shape, palette) as write:
        write(prediction)


@contextmanager
def index_png_rows(
    path: str | os.PathLike, size: tuple[int, int], palette: Palette
) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes a palette PNG a few rows at a time, without keeping them in memory.

        with index_png_rows(path, (height, width), palette) as write:
            for rows in strips:
                write(rows)

    Args:
        path: of the file; its folder must exist.
        size: (height, width), in pixels.
        palette: K RGB colors.

    Yields:
        A function that writes the next rows, [h, W], from top to bottom.
    """
    packer = zlib.compressobj()

    def write(rows):
        rows = _checked(rows, len(palette))
        # Every row begins with the number of its filter; 0 for none.
        _chunk(file, b"IDAT", packer.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes()))

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        height, width = size
        # 8 bits, palette, default compression and filtering, not interlaced.
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        _chunk(file, b"PLTE", _table(palette).tobytes())
        yield write
        _chunk(file, b"IDAT", packer.flush())
        _chunk(file, b"IEND", b"")


def write_png(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Writes a picture, uint8 [H, W, 3], atomically as PNG."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def colorize(prediction: np.ndarray, palette: Palette) -> np.ndarray:
    """Converts classes to colors.

    Args:
        prediction: classes in 0..K-1, or 255, which becomes `VOID_COLOR`, [H, W].
        palette: K RGB colors.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: if a value is neither a class nor void.
    """
    return _table(palette)[_checked(prediction, len(palette))]


def overlay(
    image: np.ndarray, prediction: np.ndarray, palette: Palette, alpha: float = 0.5
) -> np.ndarray:
    """Blends an image with the colors of the classes.

        (1 - alpha) * image + alpha * color,   or the image itself where void

    Args:
        image: uint8 [H, W, C]; one channel is shown as gray, and of more than three
            channels the first three are shown.
        prediction: classes in 0..K-1, or 255 for void, [H, W].
        palette: K RGB colors.
        alpha: opacity of the colors, in [0, 1].

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: if the sizes differ, or a value is neither a class nor void.
    """
    image = _rgb(image)
    prediction = np.asarray(prediction)
    if image.shape[:2] != prediction.shape:
        raise ValueError(
            f"the image has {image.shape[:2]} pixels (height, width), but the "
            f"prediction has {prediction.shape}; they must be equal"
        )
    blended = (1 - alpha) * image + alpha * colorize(prediction, palette)
    blended = np.round(blended).astype(np.uint8)
    return np.where((prediction == VOID)[..., None], image, blended)


def overlay_with_legend(
    image: np.ndarray,
    prediction: np.ndarray,
    palette: Palette,
    class_names: Sequence[str],
    alpha: float = 0.5,
) -> np.ndarray:
    """`overlay`, with a legend of the classes that are present to its right.

    The overlay is not resized. The text of the legend has a fixed size; the picture is
    extended to the right and, if necessary, at the bottom.

    Args:
        image: uint8 [H, W, C].
        prediction: classes in 0..K-1, or 255 for void, [H, W].
        palette: K RGB colors.
        class_names: K names.
        alpha: opacity of the colors, in [0, 1].

    Returns:
        uint8 [H', W', 3], with H' >= H and W' > W; the overlay is at the top left.

    Raises:
        ValueError: see `overlay`.
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
        images: each uint8 [h, w, C], of any size; resized to the size of the truth.
        truths: each [H, W], classes in 0..K-1, or 255 for void.
        predictions: each [H, W], of the size of their truths. They are also shown where
            the truth is void.
        palette: K RGB colors.
        class_names: K names, for a legend of the classes that are present.
        max_width: width in pixels above which samples are shown smaller.

    Returns:
        uint8 [H', W', 3].

    Raises:
        ValueError: if the numbers or sizes of samples differ, or a value is neither a
            class nor void.
    """
    if not len(images) == len(truths) == len(predictions) > 0:
        raise ValueError(
            f"{len(images)} images, {len(truths)} truths and {len(predictions)} "
            "predictions; give the same number of each, at least one"
        )
    rows = []
    for image, truth, prediction in zip(images, truths, predictions):
        truth, prediction = np.asarray(truth), np.asarray(prediction)
        if truth.shape != prediction.shape:
            raise ValueError(
                f"the truth has {truth.shape} pixels (height, width), but the "
                f"prediction has {prediction.shape}; they must be equal"
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
    title_width = max(_width(title) for title in titles)
    column = max(title_width, *(row[0].width for row in rows)) + _SPACE
    height = _LINE + sum(row[0].height + _SPACE for row in rows)
    canvas = Image.new("RGB", (3 * column, height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, title in enumerate(titles):
        _write(draw, (i * column, 0), title)
    top = _LINE
    for row in rows:
        for i, cell in enumerate(row):
            canvas.paste(cell, (i * column, top))
        top += row[0].height + _SPACE
    legend = _legend([*truths, *predictions], palette, class_names, height)
    return _beside(np.asarray(canvas), legend)


def _checked(classes, num_classes):
    """Classes as uint8; a ValueError if a value is neither a class nor void."""
    classes = np.asarray(classes)
    if classes.ndim != 2:
        raise ValueError(f"classes must have shape [H, W], not {classes.shape}")
    known = np.logical_and(classes >= 0, classes < num_classes) | (classes == VOID)
    if not known.all():
        raise ValueError(
            f"the value {classes[~known][0]} is neither void ({VOID}) nor a class; the "
            f"palette has {num_classes} colors"
        )
    return classes.astype(np.uint8)


def _table(palette):
    """Color of every value, uint8 [256, 3]; black for values that are not classes."""
    table = np.zeros((256, 3), np.uint8)
    table[VOID] = VOID_COLOR
    table[: len(palette)] = palette
    return table


def _rgb(image):
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    return np.repeat(image, 3, axis=2) if image.shape[2] < 3 else image[..., :3]


def _write(draw, place, text):
    shown, font = drawable(text)
    draw.text(place, shown, _TEXT_COLOR, font)


def _width(text):
    shown, font = drawable(text)
    return int(np.ceil(font.getlength(shown)))


def _legend(maps, palette, class_names, height):
    """A white picture with a color and a name for each class in the maps."""
    present = np.unique(np.concatenate([np.ravel(m) for m in maps]))
    entries = [(class_names[k], palette[k]) for k in present if k != VOID]
    if VOID in present:
        entries.append(("void", VOID_COLOR))
    # As many columns as the height of the picture requires, of at least 24 lines.
    lines = max(24, height // _LINE)
    column = max(_width(name) for name, _ in entries) + _LINE + _SPACE
    legend = Image.new(
        "RGB",
        (divide_up(len(entries), lines) * column, min(lines, len(entries)) * _LINE),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(legend)
    for i, (name, color) in enumerate(entries):
        x, y = i // lines * column, i % lines * _LINE
        draw.rectangle((x, y + 2, x + 11, y + 13), tuple(color), _TEXT_COLOR)
        _write(draw, (x + _LINE, y), name)
    return np.asarray(legend)


def _beside(picture, legend):
    """The picture with the legend to its right."""
    height = max(len(picture), len(legend))
    width = picture.shape[1] + _SPACE + legend.shape[1]
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[: len(picture), : picture.shape[1]] = picture
    canvas[: len(legend), -legend.shape[1] :] = legend
    return canvas


def _chunk(file, kind, data):
    file.write(struct.pack(">I", len(data)) + kind + data)
    file.write(struct.pack(">I", zlib.crc32(kind + data)))
