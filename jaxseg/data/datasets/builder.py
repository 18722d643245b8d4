"""Base class of all data sets: a TFDS builder that does not need TensorFlow.

A builder draws or reads examples, checks them, and names its classes.
`jaxseg.data.prepare` stores the result, and `jaxseg.data.source` reads it.
"""

import hashlib
import json
import sys
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from jaxseg.data.images import encode_png
from jaxseg.utils.text import direct


class Example(NamedTuple):
    """A record: its name, the image as PNG or JPEG bytes, and labels uint8 [H, W]."""

    name: str
    image: bytes
    label: np.ndarray


FEATURES = tfds.features.FeaturesDict(
    {
        "image": tfds.features.Image(shape=(None, None, None)),
        "label": tfds.features.Image(shape=(None, None, 1)),
        "name": tfds.features.Text(),
    }
)
"""The content of a record: image and label as encoded files, and the name."""


class _LocalInfo(tfds.core.DatasetInfo):
    """A description that TFDS does not look up among its public data sets."""

    def initialize_from_bucket(self):
        pass


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images with label maps, written as array_record.

    A subclass sets `class_names`, `palette` and `channels` (at the latest while its
    examples are generated) and defines `split_names`, `num_examples`, `examples` and
    `identity`.

    Attributes:
        class_names: name of each class, by class index.
        palette: RGB tuple of each class, by class index.
        channels: of the decoded images, 1 or 3.
        sizes: {split: {name: (height, width)}} of the examples generated so far.
    """

    VERSION = tfds.core.Version("1.0.0")

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    channels: int = 3

    def __init__(self, *, data_dir: str):
        self.sizes: dict[str, dict[str, tuple[int, int]]] = {}
        super().__init__(data_dir=data_dir, file_format="array_record")

    @property
    @abstractmethod
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits, in any order."""

    @abstractmethod
    def num_examples(self, split: str) -> int:
        """Number of examples of a split, known before they are generated."""

    @abstractmethod
    def examples(self, split: str) -> Iterator[Example]:
        """Generates and checks the examples of a split.

        Raises:
            ValueError: if an example is not valid; names the file and the cure.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that determines the prepared data, as JSON values."""

    def fingerprint(self) -> str:
        """A hash of the identity: 16 hexadecimal digits."""
        identity = {"version": str(self.VERSION), **self.identity()}
        text = json.dumps(identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _info(self):
        return _LocalInfo(builder=self, features=FEATURES)

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self.split_names}

    def _generate_examples(self, split):
        total = self.num_examples(split)
        if not total:
            raise ValueError(f"{self.name}: split {split!r} is empty; add images to it")
        sizes = self.sizes[split] = {}
        bar = tqdm(
            self.examples(split),
            desc=f"preparing {self.name}/{split}",
            total=total,
            disable=None,  # no progress bar unless on a terminal
            file=direct(sys.stderr),
        )
        for example in bar:
            sizes[example.name] = example.label.shape
            label = encode_png(example.label)
            yield (
                example.name,
                {"image": example.image, "label": label, "name": example.name},
            )

    # TFDS would announce a download on standard output, but there is none.
    def _log_download_bytes(self):
        pass

    def _log_download_done(self):
        pass
