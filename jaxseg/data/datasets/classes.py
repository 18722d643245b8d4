"""The meaning of the values and colors of masks."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxseg.data.images import IGNORE
from jaxseg.data.palette import Palette, named_palette
from jaxseg.utils.classes import check_trainable
from jaxseg.utils.files import read_file


@dataclass(frozen=True)
class Classes:
    """The meaning of a data set's masks.

    Attributes:
        names: class names by class index; None if the values of the masks are the
            labels.
        void_values: mask values that become void. The classes are the other values, in
            ascending order.
        void_colors: RGB tuples that become void in color masks.
        palette: RGB tuples by class index, or None.
        masks: "indices" if single-channel and palette masks contain class indices,
            "colors" if they are to be read by the colors that they show.
    """

    names: tuple[str, ...] | None = None
    void_values: tuple[int, ...] = ()
    void_colors: Palette = ()
    palette: Palette | None = None
    masks: str = "indices"


def read_classes(path: Path) -> Classes:
    """Reads a `classes.json`; docs/data.md describes its keys.

    Raises:
        ValueError: if the file is not valid; names the file, the key and what is
            expected.
    """
    try:
        # Windows tools begin UTF-8 with a byte-order mark.
        content = json.loads(read_file(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    known = {"classes", "void", "palette", "masks"}
    if (
        not isinstance(content, dict)
        or set(content) - known
        or "classes" not in content
    ):
        raise ValueError(
            f'{path}: expected an object with the key "classes", and optionally "void", '
            f'"palette" and "masks", found {content!r:.200}'
        )
    names = content["classes"]
    if not (
        isinstance(names, list)
        and names
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
        and len(names) <= IGNORE
    ):
        raise ValueError(
            f'{path}: "classes" must list 2 to {IGNORE} different names, found '
            f"{names!r:.200}"
        )
    void = content.get("void")
    void = [] if void is None else void if isinstance(void, list) else [void]
    if not all(_is_byte(v) or _is_color(v) for v in void):
        raise ValueError(
            f'{path}: "void" must be a value in 0..255, a list of values and colors '
            f"[r, g, b], or null, found {void!r:.200}"
        )
    palette = content.get("palette")
    if isinstance(palette, str):
        try:
            palette = [list(c) for c in named_palette(palette, len(names))]
        except ValueError as error:
            raise ValueError(f'{path}: "palette": {error}') from error
    elif palette is not None and not (
        isinstance(palette, list) and all(map(_is_color, palette))
    ):
        raise ValueError(
            f'{path}: "palette" must list colors [r, g, b] in 0..255, or be the name '
            f"of a palette, found {palette!r:.200}"
        )
    if palette is not None and len(palette) != len(names):
        raise ValueError(
            f'{path}: "palette" has {len(palette)} colors for {len(names)} classes; '
            'list one color per class (colors of void pixels belong in "void")'
        )
    masks = content.get("masks", "indices")
    masks = "colors" if masks == "colours" else masks  # the spelling of jaxseg 0.1
    if masks not in ("indices", "colors") or (masks == "colors" and not palette):
        raise ValueError(
            f'{path}: "masks" must be "indices" or, with a palette, "colors", found '
            f"{masks!r}"
        )
    classes = Classes(
        names=tuple(names),
        void_values=tuple(v for v in void if not isinstance(v, list)),
        void_colors=tuple((r, g, b) for r, g, b in filter(_is_color, void)),
        palette=None if palette is None else tuple((r, g, b) for r, g, b in palette),
        masks=masks,
    )
    # ADE20K's palette has one color twice, which matters only for color masks.
    if not isinstance(content.get("palette"), str) or masks == "colors":
        check_colors(path, classes)
    try:
        check_trainable(names)
    except ValueError as error:
        raise ValueError(f'{path}: "classes": {error}') from error
    return classes


def check_colors(path: Path, classes: Classes) -> None:
    """Raises a ValueError unless all colors differ; names the file."""
    colors = classes.void_colors + (classes.palette or ())
    if len(set(colors)) != len(colors):
        raise ValueError(
            f"{path}: two classes, or a class and void, have the same color; use "
            "different colors"
        )


def _is_byte(value) -> bool:
    return type(value) is int and 0 <= value <= 255


def _is_color(value) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_byte, value))
