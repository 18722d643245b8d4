"""The files of prepared data: a description, and records that are read in any order.

Nothing in these files decides which code runs: the features of a record are known, and
TFDS's own descriptions are not read.
"""

import json
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from jaxseg.data.datasets.builder import FEATURES
from jaxseg.data.images import LARGEST_PX
from jaxseg.data.trust import explain_denied
from jaxseg.utils.files import read_file

META_FILE = "jaxseg.json"

_SKIP = tfds.decode.SkipDecoding()
_STORED = {"image": _SKIP, "label": _SKIP}


class DamagedDataError(ValueError):
    """Prepared data that cannot be read; the message names the folder."""

    def __init__(self, directory: Path, reason: object):
        super().__init__(
            f"{directory}: the prepared data are damaged ({reason}); delete this "
            "folder, and they will be prepared again"
        )


class DamagedRecordError(DamagedDataError):
    """A record that cannot be read; the message names it."""


@dataclass(frozen=True)
class DatasetInfo:
    """Description of a data set.

    Attributes:
        name: of the data set.
        class_names: name of each class, by class index.
        palette: RGB tuple in 0..255 of each class, by class index.
        channels: of the images, 1 or 3.
        fingerprint: of what the data were prepared from, the name of their folder; None
            for data of jaxseg 0.1.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    channels: int
    fingerprint: str | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, without void."""
        return len(self.class_names)


Sizes = dict[str, list[tuple[int, int]]]


def read_info(directory: Path) -> tuple[DatasetInfo, Sizes]:
    """Reads the description of prepared data.

    Args:
        directory: of the prepared data.

    Returns:
        The description, and (height, width) of all records by split.

    Raises:
        DamagedDataError: if it is missing or not valid.
        PermissionError: if it may not be read.
    """
    try:
        with explain_denied(directory):
            meta = json.loads(read_file(directory / META_FILE))
        # Data that jaxseg 0.1 prepared have no checksum.
        if "checksum" in meta and meta.pop("checksum") != checksum(meta):
            raise ValueError("wrong checksum")
        info = DatasetInfo(
            name=meta["name"],
            class_names=tuple(meta["class_names"]),
            palette=tuple((r, g, b) for r, g, b in meta["palette"]),
            channels=meta["channels"],
            fingerprint=meta.get("fingerprint"),
        )
        sizes = {
            split: [(height, width) for height, width in sizes]
            for split, sizes in meta["sizes"].items()
        }
        for key, valid in _checks(info, sizes).items():
            if not valid:
                raise ValueError(f"invalid {key}")
    except PermissionError:
        raise
    except KeyError as error:
        raise DamagedDataError(directory, f"{META_FILE}: {error} is missing") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DamagedDataError(directory, f"{META_FILE}: {reason}") from error
    return info, sizes


def checksum(content: Any) -> int:
    """A checksum of JSON values, against damage."""
    return zlib.crc32(json.dumps(content).encode())


def _checks(info: DatasetInfo, sizes: Sizes) -> dict[str, bool]:
    return {
        "name": isinstance(info.name, str),
        "class_names": all(isinstance(name, str) for name in info.class_names)
        and len(info.class_names) > 0,
        "palette": len(info.palette) == info.num_classes
        and all(_is_count(v) and v <= 255 for color in info.palette for v in color),
        "channels": info.channels in (1, 3),
        "fingerprint": isinstance(info.fingerprint, str | None),
        "sizes": len(sizes) > 0
        and all(sizes.values())
        and all(
            _is_count(height) and _is_count(width) and 0 < height * width <= LARGEST_PX
            for split in sizes.values()
            for height, width in split
        ),
    }


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


class Records(Sequence[dict[str, bytes]]):
    """The records of a split: {"image", "label", "name"} as stored bytes.

    Args:
        directory: of the prepared data.
        name: of the data set.
        split: name of the split.

    Raises:
        DamagedDataError: if a file is missing or damaged.
        PermissionError: if a file may not be read.
    """

    def __init__(self, directory: Path, name: str, split: str):
        paths = _find_shards(directory, name, split)
        try:
            self._shards = ArrayRecordDataSource([str(path) for path in paths])
        except RuntimeError as error:
            raise DamagedDataError(directory, error) from error

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(  # pyright: ignore[reportIncompatibleMethodOverride]  # no slices
        self, index: int
    ) -> dict[str, bytes]:
        record: Any = FEATURES.deserialize_example_np(
            self._shards[index], decoders=_STORED
        )
        return record


def _find_shards(directory: Path, name: str, split: str) -> list[Path]:
    """The files of a split, which TFDS names by their number and their count."""
    pattern = re.compile(
        re.escape(f"{name}-{split}.array_record-") + r"(\d+)-of-(\d+)", re.ASCII
    )
    with explain_denied(directory):
        # No path is made from names in a file, so none leads out of the folder.
        found = {p: m for p in directory.iterdir() if (m := pattern.fullmatch(p.name))}
    paths = sorted(found)
    numbers = [tuple(map(int, found[path].groups())) for path in paths]
    count = numbers[0][1] if numbers else 0
    if not numbers or numbers != [(i, count) for i in range(count)]:
        raise DamagedDataError(directory, f"files of the split {split!r} are missing")
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise DamagedDataError(directory, f"{path.name} is not a regular file")
        with explain_denied(directory):
            os.close(os.open(path, os.O_RDONLY))
    return paths
