"""Pictures of numbers from 0 to 1, with a bar that says which color is which."""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TEXT_PX, _LINE_PX, _SPACE_PX, _BAR_PX = 12, 16, 6, 12
_PAPER, _INK = (255, 255, 255), (0, 0, 0)


def heatmap(values: np.ndarray, least: str, most: str) -> np.ndarray:
    """Numbers as colors of the map viridis, and below them a bar that explains it.

    Viridis gets lighter by even steps from 0 to 1, so it can be read without seeing
    colors, and on gray paper.

    Args:
        values: [H, W], in 0..1.
        least: what 0 means.
        most: what 1 means.

    Returns:
        uint8 [H', W', 3], H' > H and W' >= W: the numbers' own pixels are at the top
        left.
    """
    height, width = values.shape
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_VIRIDIS)
    table = table.reshape(256, 3)[:, ::-1]
    levels = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)

    font = ImageFont.load_default(_TEXT_PX)
    texts = f"0  {least}", f"{most}  1"
    room = sum(int(np.ceil(font.getlength(text))) for text in texts) + 4 * _SPACE_PX
    wide = max(width, room)
    bar = height + _SPACE_PX, height + _SPACE_PX + _BAR_PX
    picture = np.full((bar[1] + _LINE_PX + _SPACE_PX, wide, 3), _PAPER, np.uint8)
    picture[:height, :width] = table[levels]
    picture[slice(*bar)] = table[np.linspace(0, 255, wide).round().astype(int)]
    sheet = Image.fromarray(picture)
    draw = ImageDraw.Draw(sheet)
    draw.text((_SPACE_PX, bar[1]), texts[0], _INK, font)
    draw.text((wide - _SPACE_PX, bar[1]), texts[1], _INK, font, anchor="ra")
    return np.asarray(sheet)
