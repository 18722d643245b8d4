"""Batches for training and evaluation, shuffled, augmented and prefetched by grain.

Training sample k is a pure function of (seed, k), and a batch is the next `batch_size`
samples. Neither the number of threads or processes nor what was read before changes them:
of n processes, process p reads the p-th of n equal shards of each batch. So the position
in the data is one integer. With `source.on_error` "skip" a damaged record is replaced by
the next one that can be read, which depends on nothing else either.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import grain
import numpy as np
from absl import logging

from jaxseg.data import transforms
from jaxseg.data.images import IGNORE
from jaxseg.data.records import DamagedDataError, DamagedRecordError
from jaxseg.data.source import Source
from jaxseg.utils.names import suggest_name
from jaxseg.utils.rounding import round_up

NUM_THREADS = 4
BUCKET_PX = 64  # evaluation sizes of mixed data sets are rounded up to its multiples


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    augment: dict | None = None,
    image_size: tuple[int, int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = NUM_THREADS,
) -> "TrainBatches":
    """Endless batches for training, in a new random order in each epoch.

    Every record occurs once per epoch, over all processes together. Epochs follow each
    other without a gap, so a batch may contain the end of one epoch and the start of
    the next.

    Args:
        source: the records.
        batch_size: global batch size; each process yields its shard.
        seed: random seed of the order and the augmentation.
        augment: keyword arguments of `transforms.augment`; None or empty for none.
        image_size: (height, width) to resize to before augmentation, in pixels; None
            for the images' own size.
        process_index: index of this process.
        process_count: number of processes.
        num_threads: number of threads that prefetch batches; 0 for no prefetching.

    Returns:
        An iterator over {"image": uint8 [b, H, W, C], "label": uint8 [b, H, W]} with
        b = batch_size / process_count.

    Raises:
        ValueError: if the batch size is not divisible by the number of processes, an
            argument of `augment` is unknown or out of range, or the images would have
            several sizes. Iteration raises a DamagedRecordError if a record cannot be
            read, or none with `source.on_error` "skip".
    """
    local_size = _local_size(batch_size, process_index, process_count)
    augment = dict(augment or {})
    _check_augment(augment)
    if augment.get("crop_px") is None and image_size is None:
        _check_uniform(source)

    def prepare(position: int, index: int) -> dict:
        record, replaced = _readable(source, index)
        image, label = record["image"], record["label"]
        if image_size is not None:
            image = transforms.resize_image(image, image_size)
            label = transforms.resize_label(label, image_size)
        rng = np.random.default_rng([seed, position])
        image, label = transforms.augment(rng, image, label, **augment)
        return {"image": image, "label": label, "skipped": replaced}

    # Samples are numbered before they are divided among processes, so that neither the
    # order nor the augmentation depends on the number of processes.
    samples = (
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()
        .repeat()
        .map_with_index(prepare)
    )

    def batches_from(next_sample: int) -> grain.MapDataset:
        batches = samples[next_sample:].batch(local_size, drop_remainder=True)
        return batches[process_index::process_count]

    return TrainBatches(batches_from, batch_size, num_threads)


class TrainBatches:
    """An endless iterator over batches whose position can be saved and restored.

    Args:
        batches_from: from the number of a sample to the batches that begin with it.
        batch_size: global batch size.
        num_threads: number of threads that prefetch batches.

    Attributes:
        skipped: number of samples in the batches so far, of this process, that replace
            a damaged record.
    """

    def __init__(
        self,
        batches_from: Callable[[int], grain.MapDataset],
        batch_size: int,
        num_threads: int,
    ):
        self._batches_from = batches_from
        self._batch_size = batch_size
        self._num_threads = num_threads
        self.skipped = 0
        self.restore({"next_sample": 0})

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self._next_sample += self._batch_size
        self.skipped += int(batch.pop("skipped").sum())
        return batch

    def state(self) -> dict[str, int]:
        """The position: the number of the next sample, over all epochs and processes."""
        return {"next_sample": self._next_sample, "batch_size": self._batch_size}

    def restore(self, state: dict[str, int]) -> None:
        """Continues at the position of `state`, without reading what comes before.

        The batch size may differ from that of `state`.
        """
        self._next_sample = int(state["next_sample"])
        self._iterator = _read_ahead(
            self._batches_from(self._next_sample), self._num_threads
        )


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: tuple[int, int] | None = None,
    originals: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = NUM_THREADS,
) -> "EvalBatches":
    """Batches for evaluation, with every record once; each batch has one shape.

    If all records have the same size, nothing is padded. Otherwise records are grouped
    by their size, rounded up to a multiple of 64, and padded at the bottom and right:
    images by repeating the last row and column, labels with void. With `image_size` all
    images are resized, but labels keep their own size, at which metrics are computed.
    Incomplete batches are filled with void records, so every process gets the same
    number of batches, and all of them are full. With `source.on_error` "skip" a void
    record takes the place of a damaged one.

    Args:
        source: the records.
        batch_size: global batch size; each process yields its shard.
        image_size: (height, width) that images are resized to, in pixels; None for
            their own size.
        originals: whether to add the images at their own size, padded like the labels.
        process_index: index of this process.
        process_count: number of processes.
        num_threads: number of threads that prefetch batches; 0 for no prefetching.

    Returns:
        An iterable with a length, which can be iterated several times, over
        {"image": uint8 [b, H, W, C], "label": uint8 [b, H', W'],
        "size": int32 [b, 2], the label's height and width before padding,
        "index": int32 [b], the number of the record, or -1 for a void one,
        and, with `originals`, "original": uint8 [b, H', W', C]}
        with b = batch_size / process_count.

    Raises:
        ValueError: if the batch size is not divisible by the number of processes.
            Iteration raises a DamagedRecordError if a record cannot be read.
    """
    local_size = _local_size(batch_size, process_index, process_count)
    own = slice(process_index * local_size, (process_index + 1) * local_size)

    def load(batch: tuple[tuple[int, int], list[int]]) -> dict:
        bucket, indices = batch
        samples = [
            _eval_sample(source, i, bucket, image_size, originals) for i in indices[own]
        ]
        stacked = {key: np.stack([s[key] for s in samples]) for key in samples[0]}
        skipped = np.array(indices[own]) != stacked["index"]
        return stacked | {"skipped": skipped}

    plan = _plan(source.sizes, batch_size)
    return EvalBatches(grain.MapDataset.source(plan).map(load), num_threads)


class EvalBatches:
    """An iterable with a length over the batches of a split.

    Args:
        batches: the batches, by number.
        num_threads: number of threads that prefetch batches.

    Attributes:
        skipped: number of damaged records so far in the latest iteration, of this
            process. They are void, with index -1.
    """

    def __init__(self, batches: grain.MapDataset, num_threads: int):
        self._batches = batches
        self._num_threads = num_threads
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.skipped = 0
        for batch in _read_ahead(self._batches, self._num_threads):
            self.skipped += int(batch.pop("skipped").sum())
            yield batch
        if self.skipped:
            logging.warning("Damaged records, not evaluated: %d", self.skipped)


def _readable(source: Source, index: int) -> tuple[dict[str, Any], int]:
    """A record, or the next that can be read if it is damaged; 1 if so, else 0."""
    for offset in range(len(source)):
        record = _read(source, (index + offset) % len(source))
        if record is not None:
            return record, int(offset > 0)
    raise DamagedDataError(
        source.directory, f"no record of split {source.split!r} can be read"
    )


def _read(source: Source, index: int) -> dict[str, Any] | None:
    """A record; None if it is damaged, and damaged records are to be skipped."""
    try:
        return source[index]
    except DamagedRecordError as error:
        if source.on_error == "raise":
            raise
        logging.warning("Skipped: %s", error)
        return None


def _eval_sample(
    source: Source,
    index: int,
    bucket: tuple[int, int],
    image_size: tuple[int, int] | None,
    originals: bool,
) -> dict:
    """A record, or a void one for index -1, with its label padded to `bucket`."""
    record = None if index < 0 else _read(source, index)
    if record is None:
        index = -1
        original = np.zeros((*bucket, source.info.channels), np.uint8)
        label, size, image = np.full(bucket, IGNORE, np.uint8), bucket, original
    else:
        image, size = record["image"], record["label"].shape
        original, label = transforms.crop(image, record["label"], (0, 0), bucket)
    sample = {
        "image": transforms.resize_image(image, image_size) if image_size else original,
        "label": label,
        "size": np.array(size, np.int32),
        "index": np.int32(index),
    }
    return sample | {"original": original} if originals else sample


def _plan(
    sizes: list[tuple[int, int]], batch_size: int
) -> list[tuple[tuple[int, int], list[int]]]:
    """The label size and the records of every batch; -1 for a void record."""
    uniform = len(set(sizes)) == 1
    groups = defaultdict(list)
    for index, size in enumerate(sizes):
        rounded = tuple(round_up(side, BUCKET_PX) for side in size)
        groups[size if uniform else rounded].append(index)
    plan = []
    for bucket, members in sorted(groups.items()):
        members += [-1] * (-len(members) % batch_size)
        for start in range(0, len(members), batch_size):
            plan.append((bucket, members[start : start + batch_size]))
    return plan


def _read_ahead(batches: grain.MapDataset, num_threads: int) -> Iterator[dict]:
    """Iterates with one batch prefetched per thread."""
    # The threads work on different samples; more threads of OpenCV would not help.
    cv2.setNumThreads(0)
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=num_threads
    )
    return iter(batches.to_iter_dataset(options))


def _local_size(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} is not divisible by the number of processes; use "
            f"a multiple of {process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index is {process_index}; it must be 0 to {process_count - 1}"
        )
    return batch_size // process_count


def _check_augment(arguments: dict) -> None:
    known = list(inspect.signature(transforms.augment).parameters)[3:]
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ValueError(
            f"augment has no argument {unknown[0]!r}{suggest_name(unknown[0], known)}"
        )
    image = np.zeros((2, 2, 3), np.uint8)
    transforms.augment(np.random.default_rng(0), image, image[..., 0], **arguments)


def _check_uniform(source: Source) -> None:
    sizes = sorted(set(source.sizes))
    if len(sizes) > 1:
        raise ValueError(
            f"the images of split {source.split!r} have {len(sizes)} sizes, such as "
            f"{sizes[0]} and {sizes[-1]}, and cannot be batched; set image_size to "
            "resize them, or crop_px of augment to crop them, to one size"
        )
