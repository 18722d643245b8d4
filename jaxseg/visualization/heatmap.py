"""Heatmaps of values from 0 to 1, with a color bar."""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxseg.visualization.text import TEXT_PX

_LINE_PX, _SPACE_PX, _BAR_PX = 16, 6, 12
_BACKGROUND, _TEXT_COLOR = (255, 255, 255), (0, 0, 0)


def heatmap(values: np.ndarray, low_label: str, high_label: str) -> np.ndarray:
    """Draws values in the color map viridis, with a color bar below.

    The lightness of viridis increases evenly from 0 to 1, so it can be read in gray and
    by color-blind readers.

    Args:
        values: [H, W], in 0..1.
        low_label: meaning of 0.
        high_label: meaning of 1.

    Returns:
        uint8 [H', W', 3], with H' > H and W' >= W; the values are at the top left,
        pixel by pixel.
    """
    height, width = values.shape
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_VIRIDIS)
    table = table.reshape(256, 3)[:, ::-1]
    levels = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)

    font = ImageFont.load_default(TEXT_PX)
    texts = f"0  {low_label}", f"{high_label}  1"
    needed = sum(int(np.ceil(font.getlength(text))) for text in texts) + 4 * _SPACE_PX
    full_width = max(width, needed)
    bar = height + _SPACE_PX, height + _SPACE_PX + _BAR_PX
    shape = (bar[1] + _LINE_PX + _SPACE_PX, full_width, 3)
    picture = np.full(shape, _BACKGROUND, np.uint8)
    picture[:height, :width] = table[levels]
    picture[slice(*bar)] = table[np.linspace(0, 255, full_width).round().astype(int)]
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    draw.text((_SPACE_PX, bar[1]), texts[0], _TEXT_COLOR, font)
    draw.text(
        (full_width - _SPACE_PX, bar[1]), texts[1], _TEXT_COLOR, font, anchor="ra"
    )
    return np.asarray(canvas)
