"""A prepared data set as a random-access source of decoded records."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.images import decode_image, decode_label
from jaxseg.data.prepare import META_FILE, open_records, prepare
from jaxseg.utils.files import PREPARED_DIR


@dataclass(frozen=True)
class DatasetInfo:
    """Description of a data set.

    Attributes:
        name: of the data set.
        class_names: name of each class, by class index.
        palette: RGB tuple in 0..255 of each class, by class index.
        channels: of the images, 1 or 3.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    channels: int

    @property
    def num_classes(self) -> int:
        """Number of classes, without void."""
        return len(self.class_names)


class Source:
    """One split of prepared data: a sequence that many threads may index.

    `source[i]` is {"image": uint8 [H, W, C], "label": uint8 [H, W] with 255 for void,
    "name": str}. The order is fixed, but not alphabetical. Pickles as a path.

    Args:
        directory: of the prepared data.
        split: name of the split.

    Attributes:
        directory: of the prepared data.
        split: name of the split.
        info: description of the data set.
        splits: names of all splits.
        sizes: (height, width) of every record, known without decoding.

    Raises:
        ValueError: if there is no such split; names the existing ones.
    """

    def __init__(self, directory: str | Path, split: str):
        self.directory = Path(directory)
        self.split = split
        meta = json.loads((self.directory / META_FILE).read_text())
        self.info = DatasetInfo(
            name=meta["name"],
            class_names=tuple(meta["class_names"]),
            palette=tuple(tuple(color) for color in meta["palette"]),
            channels=meta["channels"],
        )
        self.splits = tuple(meta["sizes"])
        if split not in self.splits:
            raise ValueError(
                f"data set {self.info.name!r} has no split {split!r}; it has "
                f"{', '.join(self.splits)}"
            )
        self.sizes = [tuple(size) for size in meta["sizes"][split]]
        self._records = open_records(self.directory, split)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # The range handles negative indices and raises an IndexError beyond the end.
        record = self._records[range(len(self))[index]]
        return {
            "image": decode_image(record["image"], self.info.channels),
            "label": decode_label(record["label"]),
            "name": record["name"].decode(),
        }

    def label(self, index: int) -> np.ndarray:
        """The label map of a record, uint8 [H, W], without decoding its image."""
        return decode_label(self._records[index]["label"])

    def name(self, index: int) -> str:
        """The name of a record, without decoding anything."""
        return self._records[index]["name"].decode()

    def __reduce__(self):
        return Source, (self.directory, self.split)

    def __repr__(self) -> str:
        return f"Source({str(self.directory)!r}, {self.split!r}), {len(self)} records"


def create_source(
    dataset: str,
    split: str,
    *,
    root: str = "",
    prepared_dir: str = PREPARED_DIR,
    **options: Any,
) -> Source:
    """Opens a split of a data set, and prepares the data set first if necessary.

    Args:
        dataset: "shapes", "folder" or "camvid".
        split: name of the split, such as "train".
        root: folder of the original data; empty for `shapes`.
        prepared_dir: folder of prepared data.
        **options: further arguments of the dataset builder.

    Returns:
        The split.

    Raises:
        ValueError: see `prepare` and `Source`.
    """
    return Source(
        prepare(dataset, root=root, prepared_dir=prepared_dir, **options), split
    )
