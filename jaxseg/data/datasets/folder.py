"""Folder: a user's own images and masks."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxseg.data.datasets.builder import Example, SegmentationBuilder
from jaxseg.data.datasets.classes import Classes, read_classes, read_label
from jaxseg.data.images import IGNORE, IMAGE_SUFFIXES, read_encoded_image
from jaxseg.data.palette import distinct_palette

LAYOUT = "<root>/<split>/images and <root>/<split>/masks"


class Folder(SegmentationBuilder, skip_registration=True):
    """Images in `<root>/<split>/images`, and masks of the same stem in `masks`.

    `<root>/classes.json` defines the meaning of the masks (docs/data.md); without it
    the labels are 0 to the largest value found, and 255 is void.

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
        self._largest_label = 0
        super().__init__(data_dir=data_dir)

    @functools.cached_property
    def classes(self) -> Classes:
        """The meaning of the masks."""
        path = self._root / "classes.json"
        return read_classes(path) if path.exists() else Classes()

    @functools.cached_property
    def split_names(  # pyright: ignore[reportIncompatibleMethodOverride]  # cached
        self,
    ) -> tuple[str, ...]:
        """Names of the folders that contain a folder `images`."""
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
        return tuple(names)

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
            "files": [(name, s.st_size, s.st_mtime_ns) for name, s in stats],
        }

    def examples(self, split: str) -> Iterator[Example]:
        """Reads and checks the image-mask pairs of a split, in the order of names."""
        images, masks = self._files(split, "images"), self._files(split, "masks")
        _check_pairs(images, masks, self._root / split)
        for stem, path in images.items():
            data, size = read_encoded_image(path)
            label = read_label(masks[stem], self.classes)
            if label.shape != size:
                raise ValueError(
                    f"{path} is {size[0]}x{size[1]} (height x width), but its mask "
                    f"{masks[stem]} is {label.shape[0]}x{label.shape[1]}; both must "
                    "have the same size"
                )
            largest = label.max(initial=0, where=label != IGNORE)
            self._largest_label = max(self._largest_label, int(largest))
            yield Example(stem, data, label)

    @property
    def num_classes(self) -> int:
        """Number of classes: of classes.json, or the largest label found so far + 1."""
        if self.classes.names:
            return len(self.classes.names)
        if not self._largest_label:
            raise ValueError(
                f"{self._root}: the masks contain only the labels 0 and 255 (void). If "
                "255 is a class, add a classes.json with a palette and "
                '"masks": "colors" (docs/data.md)'
            )
        return self._largest_label + 1

    # Known only once all masks have been read, hence properties.
    @property
    def class_names(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> tuple[str, ...]:
        """Names by class index; `class_0`, `class_1`, ... without a classes.json."""
        return self.classes.names or tuple(
            f"class_{i}" for i in range(self.num_classes)
        )

    @property
    def palette(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> tuple[tuple[int, int, int], ...]:
        """Colors by class index; distinct ones by default."""
        return self.classes.palette or distinct_palette(self.num_classes)

    def _files(self, split: str, kind: str) -> dict[str, Path]:
        """Files of `<root>/<split>/<kind>` by stem, sorted; hidden files are skipped."""
        folder = self._root / split / kind
        if not folder.is_dir():
            raise ValueError(f"{folder} does not exist; expected {LAYOUT}")
        files: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
                raise ValueError(
                    f"{path} is not an image ({', '.join(IMAGE_SUFFIXES)}); move it to "
                    "another folder"
                )
            if path.stem in files:
                raise ValueError(
                    f"{files[path.stem]} and {path} have the same stem, but images and "
                    "masks are matched by their stems; rename one"
                )
            files[path.stem] = path
        return files


def _check_pairs(images: dict[str, Path], masks: dict[str, Path], folder: Path) -> None:
    for stem, path in images.items():
        if stem not in masks:
            raise ValueError(
                f"{path} has no mask {folder / 'masks' / stem}.png; add the mask or "
                "remove the image"
            )
    for stem, path in masks.items():
        if stem not in images:
            raise ValueError(
                f"{path} has no image of the same stem in {folder / 'images'}; add an "
                "image or remove the mask"
            )
