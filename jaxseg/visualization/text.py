"""Text in pictures, in any script for which the system has a font."""

import functools
import os
import sys
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from jaxseg.utils.text import printable

TEXT_PX = 12
"""Size of text; the default font of Pillow is not legible if smaller."""

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

# Of Linux, macOS and Windows, in the order of preference.
_FILES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "msyh.ttc",
    "msgothic.ttc",
    "malgun.ttf",
    "Nirmala.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansArabic-Regular.ttf",
    "unifont.ttf",
)
_NO_CHARACTER = "\uffff"


@functools.lru_cache
def drawable(text: str) -> tuple[str, Font]:
    """A text as it can be drawn, and the font to draw it with.

    Pillow's own font has ASCII only. For other text it is the first font of the system
    that has all of its characters. Characters that no font has are escaped, such as
    `\\u9053`, so that different names stay different.

    Args:
        text: of one line; control characters are escaped.
    """
    text = printable(unicodedata.normalize("NFC", text))
    default = ImageFont.load_default(TEXT_PX)
    if text.isascii():
        return text, default
    fonts = (default, *_system_fonts())
    missing = [[c for c in text if not _has(font, c)] for font in fonts]
    best = min(range(len(fonts)), key=lambda i: len(missing[i]))
    shown = (
        c.encode("unicode_escape").decode() if c in missing[best] else c for c in text
    )
    return "".join(shown), fonts[best]


def _has(font: Font, character: str) -> bool:
    """Whether a font has a character, instead of the box of those that it lacks."""
    if character.isspace():
        return True
    return _picture(font, character) != _picture(font, _NO_CHARACTER)


@functools.lru_cache
def _picture(font: Font, character: str) -> bytes:
    canvas = Image.new("L", (2 * TEXT_PX, 2 * TEXT_PX))
    ImageDraw.Draw(canvas).text((0, 0), character, 255, font)
    return canvas.tobytes()


@functools.lru_cache
def _system_fonts() -> tuple[Font, ...]:
    found: dict[str, Path] = {}
    for folder in _font_folders():
        for place, _, names in os.walk(folder):
            for name in names:
                found.setdefault(name, Path(place, name))
    fonts = []
    for name in _FILES:
        if name in found:
            try:
                fonts.append(ImageFont.truetype(found[name], TEXT_PX))
            except OSError:  # damaged, or of a kind that FreeType does not read
                continue
    return tuple(fonts)


def _font_folders() -> list[Path]:
    home = Path(os.path.expanduser("~"))  # stays "~" where there is no home folder
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts")]
    if sys.platform == "darwin":
        places = (home, Path("/"), Path("/System"))
        return [place / "Library/Fonts" for place in places]
    data = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    places = [home / ".local/share", *map(Path, data.split(":"))]
    return [place / "fonts" for place in places]
