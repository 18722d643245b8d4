"""Folder: a user's own images and masks."""

import functools
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from jaxseg.data.datasets.builder import Example, SegmentationBuilder
from jaxseg.data.datasets.classes import Classes, read_classes
from jaxseg.data.datasets.labels import LabelReader
from jaxseg.data.images import IMAGE_SUFFIXES, is_turned, read_encoded_image
from jaxseg.data.palette import distinct_palette

LAYOUT = "<root>/<split>/images and <root>/<split>/masks"

_MASK_ENDING = re.compile(r"[_-](masks?|labels?|seg|segmentation|gt)$", re.IGNORECASE)
"""Of the stem of a mask, where it has one more than its image."""

_READING = 2
"""Increased whenever the same files give other labels than before."""


class Folder(SegmentationBuilder, skip_registration=True):
    """Images in `<root>/<split>/images`, and masks of the same stem in `masks`.

    A mask's stem may end in `_mask`, `_label`, `_seg` or `_gt`. Splits without a folder
    `masks` are left out. `<root>/classes.json` defines the meaning of the masks
    (docs/data.md); without it the values are class numbers, and 255 is void.

    Args:
        data_dir: folder that TFDS writes to.
        root: folder that contains the splits.
        channels: of the decoded images: 3 (gray is repeated) or 1.
    """

    name = "folder"

    def __init__(self, *, data_dir: str, root: str, channels: int = 3):
        if channels not in (1, 3):
            raise ValueError(f"{self.name}: channels must be 1 or 3, not {channels}")
        self.channels = channels
        self._root = Path(root)
        if not root or not self._root.is_dir():
            raise ValueError(
                f"{self.name}: the data root {root!r} is not a folder; it must be the "
                f"folder that contains {LAYOUT}"
            )
        super().__init__(data_dir=data_dir)

    @functools.cached_property
    def classes(self) -> Classes:
        """The meaning of the masks."""
        path = self._root / "classes.json"
        return read_classes(path) if path.exists() else Classes()

    @functools.cached_property
    def _labels(self) -> LabelReader:
        return LabelReader(self.classes, self._root)

    @functools.cached_property
    def split_names(  # pyright: ignore[reportIncompatibleMethodOverride]  # cached
        self,
    ) -> tuple[str, ...]:
        """Names of the folders that contain the folders `images` and `masks`."""
        names = sorted(
            folder.parent.name
            for folder in self._root.glob("*/images")
            if not folder.parent.name.startswith(".")
        )
        if not names:
            raise ValueError(f"{self._root}: no split found; expected {LAYOUT}")
        for name in names:
            if not any(map(str.isalnum, name)):  # TFDS cannot store it
                raise ValueError(
                    f"{self._root / name}: the name of a split needs a letter or a "
                    "digit; rename the folder"
                )
        labeled = [name for name in names if (self._root / name / "masks").is_dir()]
        if not labeled:
            folder = self._root / names[0] / "masks"
            raise ValueError(f"{folder} does not exist; expected {LAYOUT}")
        for name in sorted({*names} - {*labeled}):
            logging.warning(
                "%s has no masks, so this split is left out; its images can be predicted",
                self._root / name,
            )
        return tuple(labeled)

    def num_examples(self, split: str) -> int:
        """Number of images of a split."""
        return len(self._files(split, "images"))

    def identity(self) -> dict[str, Any]:
        """The folder, and the name, size and modification time of its files."""
        files = [self._root / "classes.json"]
        for split in self.split_names:
            files += self._files(split, "images").values()
            files += self._files(split, "masks").values()
        stats = [(str(f), f.stat()) for f in files if f.exists()]
        return {
            "root": str(self._root.resolve()),
            "channels": self.channels,
            "reading": _READING,
            "files": [(name, s.st_size, s.st_mtime_ns) for name, s in stats],
        }

    def examples(self, split: str) -> Iterator[Example]:
        """Reads and checks the image-mask pairs of a split, in the order of names."""
        images, masks = self._files(split, "images"), self._files(split, "masks")
        masks = _pair(images, masks, self._root / split)
        for name, path in images.items():
            data, size = read_encoded_image(path)
            label = self._labels.read(masks[name])
            if label.shape != size:
                turned = label.shape == size[::-1] and is_turned(path)
                raise ValueError(
                    f"{path} is {size[0]}x{size[1]} (height x width), but its mask "
                    f"{masks[name]} is {label.shape[0]}x{label.shape[1]}; "
                    + (
                        "the image is turned by its EXIF data and the mask is not: turn "
                        "the mask, or remove the orientation from the image"
                        if turned
                        else "both must have the same size"
                    )
                )
            yield Example(name, data, label)

    # Known only once all masks have been read, hence properties.
    @property
    def class_names(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> tuple[str, ...]:
        """Names by class index; `class_0`, `class_1`, ... without a classes.json."""
        return self._labels.names()

    @property
    def palette(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> tuple[tuple[int, int, int], ...]:
        """Colors by class index; distinct ones by default."""
        return self.classes.palette or distinct_palette(len(self.class_names))

    def _files(self, split: str, kind: str) -> dict[str, Path]:
        """Files of `<root>/<split>/<kind>` by name, sorted; hidden files are skipped."""
        folder = self._root / split / kind
        if not folder.is_dir():
            raise ValueError(f"{folder} does not exist; expected {LAYOUT}")
        files: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_symlink() and not path.exists():
                raise ValueError(
                    f"{path} is a symbolic link to {path.readlink()}, which does not "
                    "exist; correct or remove the link"
                )
            if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
                raise ValueError(
                    f"{path} is not an image ({', '.join(IMAGE_SUFFIXES)}); move it to "
                    "another folder"
                )
            name = _name(path)
            if name in files:
                raise ValueError(
                    f"{files[name]} and {path} have the same stem, but images and masks "
                    "are matched by their stems; rename one"
                )
            files[name] = path
        return files


def _name(path: Path) -> str:
    """The stem of a file in one form: systems write accents as one character or two."""
    stem = path.stem.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return unicodedata.normalize("NFC", stem)


def _pair(
    images: dict[str, Path], masks: dict[str, Path], folder: Path
) -> dict[str, Path]:
    """The mask of each image, by the name of the image."""
    pairs: dict[str, Path] = {}
    for name, path in masks.items():
        image = name if name in images else _MASK_ENDING.sub("", name)
        if image not in images:
            raise ValueError(
                f"{path} has no image of the same stem in {folder / 'images'}; add an "
                "image or remove the mask"
            )
        if image in pairs:
            raise ValueError(
                f"{pairs[image]} and {path} are both masks of {images[image]}; remove one"
            )
        pairs[image] = path
    for name, path in images.items():
        if name not in pairs:
            raise ValueError(
                f"{path} has no mask {folder / 'masks' / name}.png; add the mask or "
                "remove the image"
            )
    return pairs
