"""What every data set here is: a TFDS builder that needs no TensorFlow.

A builder draws or reads examples, checks them, and names its classes. Where the result
is kept and how it is read back is `jaxseg.data.prepare`'s and `jaxseg.data.source`'s
business.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from jaxseg.data.images import encode_png


class Example(NamedTuple):
    """One record: its name, the image as PNG or JPEG bytes, labels uint8 [H, W]."""

    name: str
    image: bytes
    label: np.ndarray


class _LocalInfo(tfds.core.DatasetInfo):
    """A description that is not looked up in TFDS's bucket of public data sets."""

    def initialize_from_bucket(self):
        pass


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images with label maps, written as array_record.

    A subclass sets `class_names`, `palette` and `channels` (at the latest while its
    examples are generated) and defines `split_names`, `num_examples`, `examples` and
    `identity`.

    Attributes:
        class_names: names by class index.
        palette: RGB tuples by class index.
        channels: of the decoded image, 1 or 3.
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
        """Number of examples of a split, known before they are made."""

    @abstractmethod
    def examples(self, split: str) -> Iterator[Example]:
        """Makes and checks the examples of a split.

        Raises:
            ValueError: naming the file and the cure.
        """

    @abstractmethod
    def identity(self) -> dict:
        """Everything that decides what is prepared, as JSON values."""

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change when the prepared data would."""
        identity = {"version": str(self.VERSION), **self.identity()}
        text = json.dumps(identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _info(self):
        image = tfds.features.Image(shape=(None, None, None))
        label = tfds.features.Image(shape=(None, None, 1))
        features = {"image": image, "label": label, "name": tfds.features.Text()}
        return _LocalInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self.split_names}

    def _generate_examples(self, split):
        total = self.num_examples(split)
        if not total:
            raise ValueError(f"{self.name}: split {split!r} is empty; add examples")
        sizes = self.sizes[split] = {}
        bar = tqdm(
            self.examples(split),
            desc=f"preparing {self.name}/{split}",
            total=total,
            disable=None,  # only a terminal gets a bar
        )
        for example in bar:
            sizes[example.name] = example.label.shape
            label = encode_png(example.label)
            yield (
                example.name,
                {"image": example.image, "label": label, "name": example.name},
            )

    # TFDS announces a download on standard output; there is none.
    def _log_download_bytes(self):
        pass

    def _log_download_done(self):
        pass
