"""A prepared data set as a random-access source of decoded records."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from jaxseg.data.images import IGNORE, decode_image, decode_label
from jaxseg.data.prepare import prepare
from jaxseg.data.records import (
    DamagedDataError,
    DamagedRecordError,
    Records,
    read_info,
)
from jaxseg.utils.files import PREPARED_DIR

ON_ERROR = ("raise", "skip")


class Source:
    """One split of prepared data: a sequence that many threads may index.

    `source[i]` is {"image": uint8 [H, W, C], "label": uint8 [H, W] with 255 for void,
    "name": str}. The order is fixed, but not alphabetical. Pickles as a path.

    Args:
        directory: of the prepared data.
        split: name of the split.
        on_error: "raise" or "skip": what `train_batches`, `eval_batches` and
            `pixel_counts` do with a damaged record.

    Attributes:
        directory: of the prepared data.
        split: name of the split.
        on_error: see above.
        info: description of the data set.
        splits: names of all splits.
        sizes: (height, width) of every record, known without decoding.

    Raises:
        ValueError: if there is no such split; names the existing ones.
        DamagedDataError: if the data cannot be read; names the folder. Indexing raises
            a DamagedRecordError, which names the record.
        PermissionError: if the data may not be read.
    """

    def __init__(self, directory: str | Path, split: str, on_error: str = "raise"):
        if on_error not in ON_ERROR:
            raise ValueError(
                f"on_error is {on_error!r}; it must be {' or '.join(ON_ERROR)}"
            )
        self.directory = Path(directory)
        self.split = split
        self.on_error = on_error
        self.info, sizes = read_info(self.directory)
        self.splits = tuple(sizes)
        if split not in self.splits:
            raise ValueError(
                f"data set {self.info.name!r} has no split {split!r}; it has "
                f"{', '.join(self.splits)} (in {self.directory})"
            )
        self.sizes = sizes[split]
        self._records = Records(self.directory, self.info.name, split)
        if len(self._records) != len(self.sizes):
            raise DamagedDataError(
                self.directory,
                f"{len(self._records)} records in split {split!r} instead of "
                f"{len(self.sizes)}",
            )

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # The range handles negative indices and raises an IndexError beyond the end.
        index = range(len(self))[index]
        with self._record(index) as record:
            return {
                "image": decode_image(
                    record["image"], self.info.channels, self.sizes[index]
                ),
                "label": self._label(record, index),
                "name": _checked_name(record),
            }

    def label(self, index: int) -> np.ndarray:
        """The label map of a record, uint8 [H, W], without decoding its image."""
        with self._record(index) as record:
            return self._label(record, index)

    def name(self, index: int) -> str:
        """The name of a record, without decoding anything."""
        with self._record(index) as record:
            return _checked_name(record)

    def _label(self, record: dict[str, bytes], index: int) -> np.ndarray:
        label = decode_label(record["label"], self.sizes[index])
        largest = label.max(initial=0, where=label != IGNORE)
        if largest >= self.info.num_classes:
            raise ValueError(
                f"the label {largest} is neither void nor one of the "
                f"{self.info.num_classes} classes"
            )
        return label

    @contextmanager
    def _record(self, index: int) -> Iterator[dict[str, bytes]]:
        """A record as stored; errors of reading and decoding it name the record."""
        name = ""
        try:
            record = self._records[index]
            name = f" {record['name'].decode()!r}"
            yield record
        except MemoryError:
            raise
        except Exception as error:  # decoders raise anything on broken bytes
            raise DamagedRecordError(
                self.directory,
                f"record {index}{name} of split {self.split!r}: {error}",
            ) from error

    def __reduce__(self):
        return Source, (self.directory, self.split, self.on_error)

    def __repr__(self) -> str:
        return f"Source({str(self.directory)!r}, {self.split!r}), {len(self)} records"


def _checked_name(record: dict[str, bytes]) -> str:
    """The name of a record, which files are named after: it may not lead elsewhere."""
    name = record["name"].decode()
    path = PurePath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError("its name cannot be that of a file")
    return name


def create_source(
    dataset: str,
    split: str,
    *,
    root: str = "",
    prepared_dir: str = PREPARED_DIR,
    trust_prepared: bool = False,
    on_error: str = "raise",
    **options: Any,
) -> Source:
    """Opens a split of a data set, and prepares the data set first if necessary.

    Args:
        dataset: "shapes", "folder" or "camvid".
        split: name of the split, such as "train".
        root: folder of the original data; empty for `shapes`.
        prepared_dir: folder of prepared data.
        trust_prepared: whether to use prepared data that another user could have
            written.
        on_error: see `Source`.
        **options: further arguments of the dataset builder.

    Returns:
        The split.

    Raises:
        ValueError: see `prepare` and `Source`.
        OSError: see `prepare` and `Source`.
    """
    directory = prepare(
        dataset,
        root=root,
        prepared_dir=prepared_dir,
        trust_prepared=trust_prepared,
        **options,
    )
    source = Source(directory, split, on_error)
    if source.info.fingerprint not in (None, directory.name):
        raise DamagedDataError(
            directory,
            f"they are those of {source.info.fingerprint:.32}; the folder has been renamed",
        )
    return source
