"""The prepared data set as a random-access source of decoded records."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxseg.data.images import decode_image, decode_label
from jaxseg.data.prepare import META_FILE, open_records, prepare


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set is, apart from its records.

    Attributes:
        name: of the data set.
        class_names: by class index.
        palette: RGB tuples of 0..255 by class index.
        channels: of the images, 1 or 3.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    channels: int

    @property
    def num_classes(self) -> int:
        """Number of classes, void not counted."""
        return len(self.class_names)


class Source:
    """One split of prepared data; a sequence that can be indexed from many threads.

    `source[i]` is {"image": uint8 [H, W, C], "label": uint8 [H, W] with 255 for void,
    "name": str}. Its order is fixed but not that of the names. Pickles as a path.

    Args:
        directory: of the prepared data.
        split: name of the split.

    Attributes:
        directory: of the prepared data.
        split: name of the split.
        info: the data set's `DatasetInfo`.
        splits: names of all its splits.
        sizes: (height, width) of every record, known without decoding.

    Raises:
        ValueError: if there is no such split, naming those there are.
    """

    def __init__(self, directory: str | Path, split: str):
        self.directory = Path(directory)
        self.split = split
        meta = json.loads((self.directory / META_FILE).read_text())
        self.info = DatasetInfo(
            name=meta["name"],
            class_names=tuple(meta["class_names"]),
            palette=tuple(tuple(colour) for colour in meta["palette"]),
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

    def __getitem__(self, index: int) -> dict:
        # The range counts negative indices from the end and bounds the others.
        record = self._records[range(len(self))[index]]
        return {
            "image": decode_image(record["image"], self.info.channels),
            "label": decode_label(record["label"]),
            "name": record["name"].decode(),
        }

    def label(self, index: int):
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
    dataset: str, split: str, *, root: str = "", prepared_dir: str, **options
) -> Source:
    """Opens a split of a data set, which is prepared first if need be.

    Args:
        dataset: "shapes", "folder" or "camvid".
        split: name of the split, such as "train".
        root: the source's folder; empty for `shapes`.
        prepared_dir: where prepared data are kept.
        **options: of the data set's builder.

    Returns:
        The `Source`.

    Raises:
        ValueError: as `prepare` and `Source`.
    """
    return Source(
        prepare(dataset, root=root, prepared_dir=prepared_dir, **options), split
    )
