"""The meaning of the values and colors of masks."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxseg.data.images import IGNORE, read_mask
from jaxseg.data.palette import Palette, named_palette
from jaxseg.utils.files import read_file


@dataclass(frozen=True)
class Classes:
    """The meaning of a data set's masks.

    Attributes:
        names: class names by class index; None if the labels are 0 to the largest value
            in the masks.
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
        content = json.loads(read_file(path).decode())
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
            f'{path}: "classes" must list 1 to {IGNORE} different names, found '
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
        _check_colors(path, classes)
    return classes


def read_label(path: Path, classes: Classes) -> np.ndarray:
    """Reads a mask as class indices.

    Args:
        path: the mask file.
        classes: the meaning of its values or colors.

    Returns:
        uint8 [H, W]; 255 is void.

    Raises:
        ValueError: if a value or color is neither a class nor void; names the file,
            the value and the pixel.
    """
    mask = read_mask(path, colors=classes.masks == "colors")
    if mask.ndim == 2:
        values = _class_values(classes)
        void = sorted({*classes.void_values, IGNORE})
        known = f"values {values[0]} to {values[-1]} are classes, and {void} is void"
        table = _value_table(classes)
        small = mask.dtype == np.uint8
        label = table[mask if small else np.clip(mask, -1, len(table) - 1)]
    elif classes.palette is None:
        raise ValueError(
            f"{path}: a color mask needs a classes.json with a palette; add one, or "
            "save the mask as a single-channel or palette PNG of class indices"
        )
    else:
        _check_colors(path, classes)
        known = f"the palette has {len(classes.palette)} colors"
        label = _color_table(classes)[_packed(mask)]
    if (label < 0).any():
        row, column = np.unravel_index((label < 0).argmax(), label.shape)
        raise ValueError(
            f"{path}: {mask[row, column].tolist()} at row {row}, column {column} is "
            f"neither a class nor void ({(label < 0).sum()} such pixels in this mask); "
            f"{known}. Correct the mask or the classes.json"
        )
    return label.astype(np.uint8)


def _check_colors(path: Path, classes: Classes) -> None:
    colors = classes.void_colors + (classes.palette or ())
    if len(set(colors)) != len(colors):
        raise ValueError(
            f"{path}: two classes, or a class and void, have the same color; use "
            "different colors"
        )


@functools.lru_cache(maxsize=8)
def _value_table(classes: Classes) -> np.ndarray:
    """Class by mask value, or -1; the last entry is for all values above 255."""
    table = np.full(257, -1, np.int16)
    table[list(_class_values(classes))] = np.arange(len(_class_values(classes)))
    table[[*classes.void_values, IGNORE]] = IGNORE
    return table


@functools.lru_cache(maxsize=2)
def _color_table(classes: Classes) -> np.ndarray:
    """Class by color, packed into 24 bits, or -1."""
    table = np.full(1 << 24, -1, np.int16)
    for index, color in enumerate(classes.palette or ()):
        table[_packed(np.array(color, np.uint8))] = index
    for color in classes.void_colors:
        table[_packed(np.array(color, np.uint8))] = IGNORE
    return table


def _packed(colors: np.ndarray) -> np.ndarray:
    """Colors, uint8 [..., 3], as integers of 24 bits, int32 [...]."""
    # In place; a matrix product of integers takes several times the memory and time.
    packed = colors[..., 0].astype(np.int32)
    for channel in (1, 2):
        packed <<= 8
        packed |= colors[..., channel]
    return packed


def _class_values(classes: Classes) -> list[int]:
    """The mask values of the classes, by class index."""
    values = [v for v in range(IGNORE) if v not in classes.void_values]
    return values[: len(classes.names)] if classes.names else values


def _is_byte(value) -> bool:
    return type(value) is int and 0 <= value <= 255


def _is_color(value) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_byte, value))
