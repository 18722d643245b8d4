"""Folder: the user's own images and masks."""

import functools
from collections.abc import Iterator
from pathlib import Path

from jaxseg.data.datasets.builder import Example, SegmentationBuilder
from jaxseg.data.datasets.classes import Classes, read_classes, read_label
from jaxseg.data.images import IGNORE, IMAGE_SUFFIXES, read_encoded_image
from jaxseg.data.palette import distinct_palette

LAYOUT = "<root>/<split>/images and <root>/<split>/masks"


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
                f"{self.name}: data root {root!r} is not a folder; give by data.root in "
                f"a config, or by --data-root to a command, the folder with {LAYOUT}"
            )
        self._largest_label = 0
        super().__init__(data_dir=data_dir)

    @functools.cached_property
    def classes(self) -> Classes:
        """The meaning of the masks."""
        path = self._root / "classes.json"
        return read_classes(path) if path.exists() else Classes()

    @functools.cached_property
    def split_names(self):
        """Names of the folders that hold a folder `images`."""
        names = sorted(
            folder.parent.name
            for folder in self._root.glob("*/images")
            if not folder.parent.name.startswith(".")
        )
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
            largest = label.max(initial=0, where=label != IGNORE)
            self._largest_label = max(self._largest_label, int(largest))
            yield Example(stem, data, label)

    @property
    def num_classes(self) -> int:
        """Number of classes, as described or one above the largest label met so far."""
        if self.classes.names:
            return len(self.classes.names)
        if not self._largest_label:
            raise ValueError(
                f"{self._root}: the masks hold no label but 0 and void (255). If 255 "
                "means a class, say so in a classes.json with a palette and "
                '"masks": "colours" (docs/data.md)'
            )
        return self._largest_label + 1

    @property
    def class_names(self):
        """Names by class index; `class_0`, `class_1`, ... where none are given."""
        return self.classes.names or tuple(
            f"class_{i}" for i in range(self.num_classes)
        )

    @property
    def palette(self):
        """Colours by class index; distinct ones where none are given."""
        return self.classes.palette or distinct_palette(self.num_classes)

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
