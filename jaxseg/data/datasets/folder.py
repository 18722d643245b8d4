"""Folder: the user's own images and masks."""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxseg.data.datasets.builder import Example, SegmentationBuilder
from jaxseg.data.images import (
    IGNORE,
    IMAGE_SUFFIXES,
    read_encoded_image,
    read_mask,
    read_mask_colours,
)
from jaxseg.data.palette import voc_palette

LAYOUT = "<root>/<split>/images and <root>/<split>/masks"


@dataclass(frozen=True)
class Classes:
    """What the masks of a data set mean.

    Attributes:
      names: class names by class index, or None to find the largest label in the masks.
      void_values: mask values that become void. Classes are the other values, in
        ascending order.
      void_colours: RGB tuples that become void in masks in colours.
      palette: RGB tuples by class index, or None.
      masks: "indices" if single-channel and palette masks hold class numbers, "colours"
        if they too are to be read as the colours that they show.
    """

    names: tuple[str, ...] | None = None
    void_values: tuple[int, ...] = ()
    void_colours: tuple[tuple[int, int, int], ...] = ()
    palette: tuple[tuple[int, int, int], ...] | None = None
    masks: str = "indices"


class Folder(SegmentationBuilder, skip_registration=True):
    """Images in `<root>/<split>/images`, masks of the same stem beside them in `masks`.

    What the masks mean is said by `<root>/classes.json` (docs/data.md); without it
    labels are 0 to the largest value found and 255 is void.

    Args:
      data_dir: where TFDS writes.
      root: the folder that holds the splits.
      channels: of the decoded images: 3 (grey is repeated) or 1.
    """

    name = "folder"

    def __init__(self, *, data_dir: str, root: str, channels: int = 3):
        if channels not in (1, 3):
            raise ValueError(f"{self.name}: channels must be 1 or 3, not {channels}")
        self.channels = channels
        self._root = Path(root)
        if not root or not self._root.is_dir():
            raise ValueError(
                f"{self.name}: data root {root!r} is not a folder; set the root (in a "
                f"config data.root) to the folder with {LAYOUT}"
            )
        super().__init__(data_dir=data_dir)

    @functools.cached_property
    def classes(self) -> Classes:
        """The meaning of the masks."""
        path = self._root / "classes.json"
        return read_classes(path) if path.exists() else Classes()

    @functools.cached_property
    def split_names(self):
        """Names of the folders that hold a folder `images`."""
        names = sorted(p.parent.name for p in self._root.glob("*/images"))
        if not names:
            raise ValueError(f"{self._root}: no split found; the layout is {LAYOUT}")
        return tuple(names)

    def num_examples(self, split):
        """Number of images of a split."""
        return len(self._files(split, "images"))

    def identity(self):
        """The folder, and the name, size and time of change of every file in it."""
        files = [self._root / "classes.json"]
        for split in self.split_names:
            files += self._files(split, "images").values()
            files += self._files(split, "masks").values()
        stats = [(str(f), f.stat()) for f in files if f.exists()]
        return {
            "root": str(self._root.resolve()),
            "channels": self.channels,
            "files": [(name, s.st_size, s.st_mtime_ns) for name, s in stats],
        }

    def examples(self, split: str) -> Iterator[Example]:
        """Reads and checks the pairs of a split, in the order of their names."""
        images, masks = self._files(split, "images"), self._files(split, "masks")
        _check_pairs(images, masks, self._root / split)
        for stem, path in images.items():
            data, size = read_encoded_image(path)
            label = read_label(masks[stem], self.classes)
            if label.shape != size:
                raise ValueError(
                    f"{path} is {size[0]}x{size[1]} (height x width), but its mask "
                    f"{masks[stem]} is {label.shape[0]}x{label.shape[1]}; make the "
                    "two the same size"
                )
            yield Example(stem, data, label)

    @functools.cached_property
    def num_classes(self) -> int:
        """Number of classes, from `classes.json` or the largest label of all masks."""
        if self.classes.names:
            return len(self.classes.names)
        largest = 0
        for split in self.split_names:
            for path in self._files(split, "masks").values():
                label = read_label(path, self.classes)
                largest = max(largest, label.max(initial=0, where=label != IGNORE))
        if not largest:
            raise ValueError(
                f"{self._root}: the masks hold no label but 0 and void (255). If 255 "
                "means a class, say so in a classes.json with a palette and "
                '"masks": "colours" (docs/data.md)'
            )
        return int(largest) + 1

    @property
    def class_names(self):
        """Names by class index; `class_0`, `class_1`, ... where none are given."""
        return self.classes.names or tuple(
            f"class_{i}" for i in range(self.num_classes)
        )

    @property
    def palette(self):
        """Colours by class index; PASCAL VOC's where none are given."""
        return self.classes.palette or voc_palette(self.num_classes)

    def _files(self, split: str, kind: str) -> dict[str, Path]:
        """Files of `<root>/<split>/<kind>` by stem, sorted; hidden files are skipped."""
        folder = self._root / split / kind
        if not folder.is_dir():
            raise ValueError(f"{folder} does not exist; the layout is {LAYOUT}")
        files: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
                raise ValueError(
                    f"{path} is not an image ({', '.join(IMAGE_SUFFIXES)}); move it "
                    "elsewhere"
                )
            if path.stem in files:
                raise ValueError(
                    f"{files[path.stem]} and {path} have the same stem, by which "
                    "images and masks are matched; rename one"
                )
            files[path.stem] = path
        return files


def read_classes(path: Path) -> Classes:
    """Reads a `classes.json`, whose keys docs/data.md describes.

    Raises:
      ValueError: naming the file, the key and what it must be.
    """
    try:
        content = json.loads(path.read_text())
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
    palette = content.get("palette")
    colours = [v for v in void if isinstance(v, list)] + (palette or [])
    if not all(_is_colour(c) for c in colours) or not all(
        isinstance(v, list) or _is_byte(v) for v in void
    ):
        raise ValueError(
            f'{path}: "void" takes values 0..255 or colours, "palette" colours; a '
            "colour is a list of three integers 0..255"
        )
    if palette is not None and len(palette) != len(names):
        raise ValueError(
            f'{path}: "palette" has {len(palette)} colours for {len(names)} classes; '
            'give one each (colours of void go into "void")'
        )
    if len(set(map(tuple, colours))) != len(colours):
        raise ValueError(f"{path}: a colour stands for two things; give it one meaning")
    masks = content.get("masks", "indices")
    if masks not in ("indices", "colours") or (masks == "colours" and not palette):
        raise ValueError(
            f'{path}: "masks" is "indices" or, with a palette, "colours", found '
            f"{masks!r}"
        )
    return Classes(
        names=tuple(names),
        void_values=tuple(v for v in void if not isinstance(v, list)),
        void_colours=tuple(tuple(v) for v in void if isinstance(v, list)),
        palette=palette and tuple(map(tuple, palette)),
        masks=masks,
    )


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
    mask = read_mask_colours(path) if classes.masks == "colours" else read_mask(path)
    if mask.ndim == 3:
        if classes.palette is None:
            raise ValueError(
                f"{path}: a mask in colours needs a classes.json with a palette; or "
                "save it as a single-channel or palette PNG of class numbers"
            )
        key = mask.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        entries = [(_pack(c), IGNORE) for c in classes.void_colours]
        entries += [(_pack(c), i) for i, c in enumerate(classes.palette)]
        label = _look_up(key, entries)
        what = "colour"
    else:
        key = mask
        values = sorted(set(range(IGNORE)) - set(classes.void_values))
        if classes.names:
            values = values[: len(classes.names)]
        entries = [(v, IGNORE) for v in (*classes.void_values, IGNORE)]
        entries += [(v, i) for i, v in enumerate(values)]
        label = _look_up(key, entries)
        what = "label value"
    if (label < 0).any():
        row, column = np.argwhere(label < 0)[0]
        found = mask[row, column]
        found = f"{tuple(found.tolist())}" if mask.ndim == 3 else f"{found}"
        raise ValueError(
            f"{path}: {what} {found} at row {row}, column {column} (and "
            f"{int((label < 0).sum()) - 1} more pixels without meaning) is neither one "
            f"of the {len(classes.names or values)} classes nor void; correct the mask "
            "or the classes"
        )
    return label.astype(np.uint8)


def _look_up(key: np.ndarray, entries: list[tuple[int, int]]) -> np.ndarray:
    """Maps keys to values by a table of pairs; -1 where the table has no such key."""
    table = dict(entries)
    found, inverse = np.unique(key, return_inverse=True)
    return np.array([table.get(int(k), -1) for k in found])[inverse.reshape(key.shape)]


def _pack(colour: tuple[int, int, int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _is_byte(value) -> bool:
    return type(value) is int and 0 <= value <= 255


def _is_colour(value) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_byte, value))


def _check_pairs(images: dict[str, Path], masks: dict[str, Path], folder: Path):
    for stem, path in images.items():
        if stem not in masks:
            raise ValueError(
                f"{path} has no mask {folder / 'masks' / stem}.png; add the mask or "
                "remove the image"
            )
    for stem, path in masks.items():
        if stem not in images:
            raise ValueError(
                f"{path} has no image of the same stem in {folder / 'images'}; add the "
                "image or remove the mask"
            )
