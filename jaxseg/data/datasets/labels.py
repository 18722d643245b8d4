"""Reads the masks of a data set, all with the same meaning.

The same picture can be stored in many ways: class numbers as gray levels, in 1, 2, 4 or 8
bits, as indices of a palette, or as colors. Two rules ensure that a picture has the same
labels however it is stored:

* A color means one thing in a data set: what `classes.json` describes, and otherwise what
  the first mask that shows it stores for it.
* A stored value is shown in one color in all masks.
"""

import functools
import json
from collections import Counter
from pathlib import Path

import numpy as np

from jaxseg.data.datasets.classes import Classes, check_colors
from jaxseg.data.images import IGNORE
from jaxseg.data.masks import (
    Mask,
    gray_mask,
    pack_colors,
    read_mask,
    unpack_colors,
)

MAX_INFERRED = 64
"""Largest number of classes without a description."""

MASKS_PER_CLASS_FROM = 16
"""More classes than this without a description need as many masks."""

_ABOVE = 256  # stands for all values above 255
_BLACK, _WHITE = 0, 0xFFFFFF
_LISTED = 8  # values in a message
_SAVE_ALIKE = (
    "Save all masks in the same way, with as many bits and the same palette, or describe "
    'the colors in classes.json and set "masks": "colors"'
)

Color = int  # packed into 24 bits


class LabelReader:
    """Reads masks as labels, and refuses those that contradict the ones before.

    Args:
        classes: the meaning of the values and colors.
        root: folder of the data set, for error messages.
    """

    def __init__(self, classes: Classes, root: Path):
        self.classes = classes
        self._root = root
        self._described = _described_colors(classes)
        self._pixels: Counter[int] = Counter()  # by stored value
        self._seen_labels: set[int] = set()
        self._masks = 0
        self._indexed: Path | None = None  # a mask whose values are not gray levels
        # The label of each color, the color of each value, and where they were found.
        self._label_of: dict[Color, tuple[int, Path]] = {}
        self._color_of: dict[int, tuple[Color, Path]] = {}

    def read(self, path: Path) -> np.ndarray:
        """Reads a mask as class indices.

        Args:
            path: the mask file.

        Returns:
            uint8 [H, W]; 255 is void.

        Raises:
            ValueError: if a value or color is neither a class nor void, or the mask
                contradicts the description or another mask; names the file and the cure.
        """
        mask = self._interpret(read_mask(path), path)
        table, known = _table(self.classes, colors=mask.kind == "colors")
        wide = mask.kind == "wide"
        label = table[np.clip(mask.values, -1, _ABOVE) if wide else mask.values]
        if (label < 0).any():
            row, column = np.argwhere(label < 0)[0]
            value = mask.values[row, column]
            found = unpack_colors(value).tolist() if mask.kind == "colors" else value
            raise ValueError(
                f"{path}: {found} at row {row}, column {column} is neither a class nor "
                f"void ({(label < 0).sum()} such pixels in this mask); {known}. Correct "
                "the mask or the classes.json"
            )
        self._record(mask, table, path)
        return label.astype(np.uint8)

    def names(self) -> tuple[str, ...]:
        """Names of the classes; call after all masks have been read.

        Raises:
            ValueError: if the values of the masks are not class numbers.
        """
        self._check_gray_levels()
        if self.classes.names:
            self._check_described()
            return self.classes.names
        self._check_inferred()
        return tuple(f"class_{i}" for i in range(max(self._class_values()) + 1))

    def _interpret(self, mask: Mask, path: Path) -> Mask:
        """The mask in the form in which this data set's masks are looked up."""
        if mask.kind == "colors":
            if self.classes.palette is not None:
                check_colors(path, self.classes)
                return mask
            colors = unpack_colors(mask.values)
            if (colors != colors[..., :1]).any():
                raise ValueError(
                    f"{path}: a color mask needs a classes.json with a palette; add one, "
                    "or save the mask as a single-channel or palette PNG of class indices"
                )
            return gray_mask(colors[..., 0])
        if self.classes.masks == "colors":
            if mask.shown is None:
                raise ValueError(
                    f"{path}: has more than 8 bits per pixel, so it shows no exact "
                    "colors; save it as 8-bit PNG"
                )
            return Mask("colors", pack_colors(mask.shown)[mask.values])
        if mask.kind == "palette" and mask.shown is not None:
            used = _used(mask.values)
            if (mask.shown[used] == used[:, None]).all():  # a palette of gray levels
                return gray_mask(mask.values)
        return mask

    def _record(self, mask: Mask, table: np.ndarray, path: Path) -> None:
        """Checks the values and colors of a mask against those known, and keeps them."""
        self._masks += 1
        if mask.kind == "colors":
            used = _used(mask.values, len(table))
            values, colors = [], used.tolist()
        else:
            counts = np.bincount(mask.values.ravel(), minlength=1)
            used = np.flatnonzero(counts)
            values = used.tolist()
            self._pixels.update({v: int(counts[v]) for v in values})
            shown = mask.shown
            colors = [] if shown is None else pack_colors(shown[used]).tolist()
        labels = table[used].tolist()
        self._seen_labels.update(labels)
        if mask.kind in ("palette", "few bits"):
            self._indexed = self._indexed or path
        if mask.kind != "colors":
            self._check_colors(path, mask.kind, values, colors, labels)
        for color, label in zip(colors, labels):
            other, where = self._label_of.setdefault(color, (label, path))
            # Two classes may share a described color.
            if other != label and not {other, label} <= self._described.get(
                color, set()
            ):
                raise ValueError(
                    f"{path} and {where} contradict each other: the color "
                    f"{_text(color)} means {self._meaning(label)} in the first and "
                    f"{self._meaning(other)} in the second. {_SAVE_ALIKE}"
                )
        for value, color in zip(values, colors):
            other, where = self._color_of.setdefault(value, (color, path))
            if other != color:
                raise ValueError(
                    f"{path} and {where} contradict each other: the value {value} is "
                    f"shown as {_text(color)} in the first and as {_text(other)} in the "
                    f"second. {_SAVE_ALIKE}"
                )

    def _check_colors(
        self,
        path: Path,
        kind: str,
        values: list[int],
        colors: list[Color],
        labels: list[int],
    ) -> None:
        """Refuses values whose colors are described with another meaning."""
        described = [self._described.get(color) for color in colors]
        # A dark gray is not taken for a color, unless all of the mask can be read so.
        if kind == "gray" and not all(described):
            return
        for value, color, label, meant in zip(values, colors, labels, described):
            if meant and label not in meant:
                raise ValueError(
                    f"{path}: the value {value} means {self._meaning(label)}, but its "
                    f"color, {_text(color)}, is described as {self._meaning(min(meant))} "
                    'in classes.json; set "masks": "colors" to read masks by their '
                    'colors, or correct "palette" and "void"'
                )

    def _check_gray_levels(self) -> None:
        """Refuses values that are shown as gray levels which can be class numbers, too."""
        colors = {value: color for value, (color, _) in self._color_of.items()}
        if self._indexed is None or all(c in self._described for c in colors.values()):
            return
        grays = {v: color % 256 for v, color in colors.items()}
        if any(int(pack_colors(np.full(3, grays[v]))) != colors[v] for v in colors):
            return
        stored = sorted(grays)
        levels = [grays[value] for value in stored]
        if set(levels) <= {0, 255}:  # as if it had one bit, or eight
            clear = levels == stored or stored == [level // 255 for level in levels]
        else:  # as if it had eight, four or two bits
            steps = [n for n in (1, 17, 85) if not any(level % n for level in levels)]
            others = [[level // n for level in levels] for n in steps]
            clear = levels == sorted(levels) and not any(
                other != stored and self._are_class_numbers(other) for other in others
            )
        if not clear:
            raise ValueError(
                f"{self._indexed}: the values {stored} are shown as the gray levels "
                f"{levels}, so a class can be meant by either; save all masks as "
                "single-channel 8-bit PNG of class numbers, or "
                'describe the colors in classes.json and set "masks": "colors"'
            )

    def _are_class_numbers(self, values: list[int]) -> bool:
        """Whether these would be accepted as all values of a data set."""
        if self.classes.names:
            return bool((_table(self.classes, colors=False)[0][values] >= 0).all())
        numbers = sorted({*values} - {IGNORE})
        return len(numbers) > 1 and numbers == list(range(len(numbers)))

    def _meaning(self, label: int) -> str:
        names = self.classes.names
        return (
            "void" if label == IGNORE else repr(names[label]) if names else f"{label}"
        )

    def _class_values(self) -> list[int]:
        return sorted(set(self._pixels) - {IGNORE})

    def _check_described(self) -> None:
        """Refuses classes that never occur where 255, which nobody described, does."""
        names = self.classes.names or ()
        missing = [n for i, n in enumerate(names) if i not in self._seen_labels]
        undescribed = IGNORE not in self.classes.void_values
        alone = len(missing) >= len(names) - 1  # one class, so nothing to learn
        if IGNORE not in self._pixels or not missing:
            return
        if undescribed or alone:
            raise ValueError(
                f"{self._root}: the class {missing[0]!r} occurs in no mask, but the "
                f"value 255, which is void, does ({self._counts()}). "
                + (
                    f"If 255 is this class, use {self._ready()}"
                    if len(names) == 2 and len(self._pixels) == 2
                    else "If 255 is a class, describe the colors of all classes in "
                    'classes.json and set "masks": "colors"'
                )
                + ("" if alone else '; if it is void, add "void": 255 to classes.json')
            )

    def _check_inferred(self) -> None:
        """Refuses values that are not class numbers where no classes are described."""
        values = self._class_values()
        limit = min(MAX_INFERRED, max(MASKS_PER_CLASS_FROM, self._masks))
        if len(values) > limit:
            raise ValueError(
                f"{self._root}: the masks contain {len(values)} different values, more "
                f"than {limit}, as masks with soft edges do ({self._counts()}). Save "
                "masks without smoothing and without resizing by interpolation, such as "
                "by comparing them with a threshold, or describe the classes in "
                "classes.json"
            )
        if values == [0] and IGNORE not in self._pixels:
            raise ValueError(
                f"{self._root}: the masks contain only the value 0, so there is nothing "
                "to learn; correct the masks, or name at least two classes in "
                "classes.json"
            )
        if values == list(range(len(values))) and len(values) > 1:
            return
        if values == [0]:
            found = "only the values 0 and 255 (void)"
        else:
            found = "values that do not count from 0 without gaps, as class numbers do"
        raise ValueError(
            f"{self._root}: the masks contain {found}: {self._counts()}. If these are "
            f"the classes, save this as {self._root / 'classes.json'}, with names of "
            f"your choice: {self._ready()}"
        )

    def _counts(self) -> str:
        """The values and their pixels, those that are most frequent."""
        common = self._pixels.most_common(_LISTED)
        listed = ", ".join(f"{v} in {n:,} pixels" for v, n in sorted(common))
        more = len(self._pixels) - len(common)
        return listed + (f", and {more} more values" if more else "")

    def _ready(self) -> str:
        """The text of a classes.json that names the values that were found."""
        values = sorted(self._pixels)
        binary = len(values) == 2
        void = [v for v in values if v == IGNORE and not binary]
        values = [v for v in values if v not in void]
        names = [f"class_{v}" for v in values]
        if binary:
            names = self.classes.names or ["background", "object"]
        content: dict[str, object] = {"classes": names}
        if all(v in self._color_of for v in (*values, *void)):
            content["palette"] = [self._shown(v) for v in values]
            if void:
                content["void"] = [self._shown(v) for v in void]
            content["masks"] = "colors"
        else:  # values of 16 bits have no colors
            content["void"] = sorted(set(range(max(values))) - {*values})
        return json.dumps(content, separators=(", ", ": "))

    def _shown(self, value: int) -> list[int]:
        return unpack_colors(np.array(self._color_of[value][0])).tolist()


def _described_colors(classes: Classes) -> dict[Color, set[int]]:
    """The labels that the description gives to colors, and to gray levels of void."""
    described: dict[Color, set[int]] = {}
    colors = [*enumerate(classes.palette or ())]
    colors += [(IGNORE, color) for color in classes.void_colors]
    if classes.palette is None:
        colors += [(IGNORE, (value,) * 3) for value in classes.void_values]
    for label, color in colors:
        described.setdefault(int(pack_colors(np.array(color))), set()).add(label)
    return described


def _used(values: np.ndarray, number: int = 256) -> np.ndarray:
    """The different values of an array, all of them below `number`, in order."""
    seen = np.zeros(number, bool)
    seen[values] = True
    return np.flatnonzero(seen)


@functools.lru_cache(maxsize=4)
def _table(classes: Classes, *, colors: bool) -> tuple[np.ndarray, str]:
    """The label of each color or value, -1 for none; and a text of what is known.

    The last entry of the table of values is for `_ABOVE`, and for negative values.
    """
    if colors:
        table = np.full(1 << 24, -1, np.int16)
        palette = classes.palette or ()
        for index, color in enumerate(palette):
            table[pack_colors(np.array(color))] = index
        for color in classes.void_colors:
            table[pack_colors(np.array(color))] = IGNORE
        return table, f"the palette has {len(palette)} colors"
    values = [v for v in range(IGNORE) if v not in classes.void_values]
    values = values[: len(classes.names)] if classes.names else values
    void = sorted({*classes.void_values, IGNORE})
    table = np.full(_ABOVE + 1, -1, np.int16)
    table[values] = np.arange(len(values))
    table[void] = IGNORE
    return (
        table,
        f"values {values[0]} to {values[-1]} are classes, and {void} is void",
    )


def _text(color: Color) -> str:
    names = {_BLACK: "black", _WHITE: "white"}
    return names.get(color) or str(unpack_colors(np.array(color)).tolist())
