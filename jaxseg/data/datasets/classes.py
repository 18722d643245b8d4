"""What the values and colours of masks mean."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxseg.data.images import IGNORE, read_mask
from jaxseg.data.palette import named_palette

# Packs a colour into 24 bits: mask @ _RGB_PLACES.
_RGB_PLACES = np.array([1 << 16, 1 << 8, 1], np.int32)


@dataclass(frozen=True)
class Classes:
    """What the masks of a data set mean.

    Attributes:
        names: class names by class index, or None to find the largest label in the
            masks.
        void_values: mask values that become void. Classes are the other values, in
            ascending order.
        void_colours: RGB tuples that become void in masks in colours.
        palette: RGB tuples by class index, or None.
        masks: "indices" if single-channel and palette masks hold class numbers,
            "colours" if they too are to be read as the colours that they show.
    """

    names: tuple[str, ...] | None = None
    void_values: tuple[int, ...] = ()
    void_colours: tuple[tuple[int, int, int], ...] = ()
    palette: tuple[tuple[int, int, int], ...] | None = None
    masks: str = "indices"


def read_classes(path: Path) -> Classes:
    """Reads a `classes.json`, whose keys docs/data.md describes.

    Raises:
        ValueError: naming the file, the key and what it must be.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    known = {"classes", "void", "palette", "masks"}
    if (
        not isinstance(content, dict)
        or set(content) - known
        or "classes" not in content
    ):
        raise ValueError(
            f'{path}: expected an object with "classes" and perhaps "void", "palette" '
            f'and "masks", found {content!r:.200}'
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
    if not all(_is_byte(v) or _is_colour(v) for v in void):
        raise ValueError(
            f'{path}: "void" must be a value 0..255, a list of values and colours '
            f"[r, g, b], or null, found {void!r:.200}"
        )
    palette = content.get("palette")
    if isinstance(palette, str):
        try:
            palette = [list(c) for c in named_palette(palette, len(names))]
        except ValueError as error:
            raise ValueError(f'{path}: "palette": {error}') from error
    elif palette is not None and not (
        isinstance(palette, list) and all(map(_is_colour, palette))
    ):
        raise ValueError(
            f'{path}: "palette" must list colours [r, g, b] of 0..255, or be the name '
            f"of a palette, found {palette!r:.200}"
        )
    if palette is not None and len(palette) != len(names):
        raise ValueError(
            f'{path}: "palette" has {len(palette)} colours for {len(names)} classes; '
            'give one each (colours of void go into "void")'
        )
    masks = content.get("masks", "indices")
    if masks not in ("indices", "colours") or (masks == "colours" and not palette):
        raise ValueError(
            f'{path}: "masks" is "indices" or, with a palette, "colours", found '
            f"{masks!r}"
        )
    classes = Classes(
        names=tuple(names),
        void_values=tuple(v for v in void if not isinstance(v, list)),
        void_colours=tuple(tuple(v) for v in void if isinstance(v, list)),
        palette=palette and tuple(map(tuple, palette)),
        masks=masks,
    )
    # ADE20K's own has one colour twice, which matters only where masks are in colours.
    if not isinstance(content.get("palette"), str) or masks == "colours":
        _check_colours(path, classes)
    return classes


def read_label(path: Path, classes: Classes) -> np.ndarray:
    """Reads a mask as class indices.

    Args:
        path: the mask file.
        classes: what its values or colours mean.

    Returns:
        uint8 [H, W]; 255 is void.

    Raises:
        ValueError: if a value or colour has no meaning, naming file, value and place.
    """
    mask = read_mask(path, colours=classes.masks == "colours")
    if mask.ndim == 2:
        values = _class_values(classes)
        void = sorted({*classes.void_values, IGNORE})
        known = f"label values {values[0]} to {values[-1]} are classes, {void} void"
        table = _value_table(classes)
        label = table[np.clip(mask, -1, len(table) - 1)]
    elif classes.palette is None:
        raise ValueError(
            f"{path}: a mask in colours needs a classes.json with a palette; or save "
            "it as a single-channel or palette PNG of class numbers"
        )
    else:
        _check_colours(path, classes)
        known = f"the palette has {len(classes.palette)} colours"
        label = _colour_table(classes)[mask.astype(np.int32) @ _RGB_PLACES]
    if (label < 0).any():
        row, column = np.argwhere(label < 0)[0]
        raise ValueError(
            f"{path}: {mask[row, column].tolist()} at row {row}, column {column} is "
            f"neither a class nor void, like {(label < 0).sum()} pixels of this mask; "
            f"{known}. Correct the mask or the description of the classes"
        )
    return label.astype(np.uint8)


def _check_colours(path: Path, classes: Classes) -> None:
    colours = classes.void_colours + (classes.palette or ())
    if len(set(colours)) != len(colours):
        raise ValueError(f"{path}: a colour stands for two things; give it one")


@functools.lru_cache(maxsize=8)
def _value_table(classes: Classes) -> np.ndarray:
    """Class by mask value, -1 for none; the last entry stands for all beyond 255."""
    table = np.full(257, -1, np.int16)
    table[list(_class_values(classes))] = np.arange(len(_class_values(classes)))
    table[[*classes.void_values, IGNORE]] = IGNORE
    return table


@functools.lru_cache(maxsize=2)
def _colour_table(classes: Classes) -> np.ndarray:
    """Class by colour, packed into 24 bits; -1 for none."""
    table = np.full(1 << 24, -1, np.int16)
    for index, colour in enumerate(classes.palette):
        table[np.array(colour) @ _RGB_PLACES] = index
    for colour in classes.void_colours:
        table[np.array(colour) @ _RGB_PLACES] = IGNORE
    return table


def _class_values(classes: Classes) -> list[int]:
    """The mask values that are classes, in the order of the classes."""
    values = [v for v in range(IGNORE) if v not in classes.void_values]
    return values[: len(classes.names)] if classes.names else values


def _is_byte(value) -> bool:
    return type(value) is int and 0 <= value <= 255


def _is_colour(value) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_byte, value))
