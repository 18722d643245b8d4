"""Batches for training and evaluation on grain: shuffled, augmented, prefetched.

Training sample k is a pure function of (seed, k), and a batch is the samples that come
next, whatever the number of threads, what was read before, and how many processes share
it (of n processes, number p holds the p-th n-th of it). So a place in the data is one
integer.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator

import cv2
import grain
import numpy as np

from jaxseg.data import transforms
from jaxseg.data.images import IGNORE
from jaxseg.data.source import Source

NUM_THREADS = 4
BUCKET_PX = 64  # evaluation sizes of mixed data sets are rounded up to multiples of it


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
    """Endless batches, each epoch in an order of its own.

    Every record occurs once in an epoch, over all processes together. Epochs follow
    each other without a break, so a batch may hold the end of one and the start of the
    next.

    Args:
        source: where the records come from.
        batch_size: the global one; a process yields its share.
        seed: of order and augmentation.
        augment: keyword arguments of `transforms.augment`; None or empty for none.
        image_size: height and width to resize to before augmentation; None to leave.
        process_index: number of this process.
        process_count: number of processes.
        num_threads: that prepare batches ahead; 0 to prepare each when it is asked for.

    Returns:
        An iterator over {"image": uint8 [b, H, W, C], "label": uint8 [b, H, W]} with
        b = batch_size / process_count.

    Raises:
        ValueError: if the batch does not divide, an argument of `augment` is unknown or
            out of range, or images of several sizes are left at those.
    """
    share = _share(batch_size, process_index, process_count)
    augment = dict(augment or {})
    _check_augment(augment)
    if augment.get("crop_px") is None and image_size is None:
        _check_uniform(source)

    def prepare(position: int, record: dict) -> dict:
        image, label = record["image"], record["label"]
        if image_size is not None:
            image = transforms.resize_image(image, image_size)
            label = transforms.resize_label(label, image_size)
        rng = np.random.default_rng([seed, position])
        image, label = transforms.augment(rng, image, label, **augment)
        return {"image": image, "label": label}

    # Shares are cut after batching, and numbered before, so that neither the order
    # nor the augmentation depends on the number of processes.
    samples = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        .map_with_index(prepare)
    )

    def batches_from(next_sample: int) -> grain.MapDataset:
        batches = samples[next_sample:].batch(share, drop_remainder=True)
        return batches[process_index::process_count]

    return TrainBatches(batches_from, batch_size, num_threads)


class TrainBatches:
    """An endless iterator over batches that knows its place.

    Args:
        batches_from: the batches, by number, that begin with a sample.
        batch_size: the global one.
        num_threads: that prepare batches ahead.
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
        self.restore({"next_sample": 0})

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self._next_sample += self._batch_size
        return batch

    def state(self) -> dict[str, int]:
        """The number of the sample that comes next, over all epochs and processes."""
        return {"next_sample": self._next_sample, "batch_size": self._batch_size}

    def restore(self, state: dict[str, int]) -> None:
        """Goes to the sample that `state` says comes next, at once.

        The batches then begin there, be they of another size than when `state` was
        taken.
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
    """Every record once, in batches of one shape each.

    Where all records have one size nothing is padded. Otherwise records are grouped by
    size, rounded up to a multiple of 64, and padded at the bottom and the right to it:
    images with their last row and column, labels with void. With `image_size` all
    images have that size and only labels keep theirs, for scores are taken there.
    Batches that lack records are filled with void ones, so every process gets the same
    number of batches and every batch is full.

    Args:
        source: where the records come from.
        batch_size: the global one; a process yields its share.
        image_size: height and width that images are resized to; None to leave.
        originals: whether images come once more, padded as their labels are.
        process_index: number of this process.
        process_count: number of processes.
        num_threads: that prepare batches ahead; 0 to prepare each when it is asked for.

    Returns:
        An iterable, again and again and with a length, over
        {"image": uint8 [b, H, W, C], "label": uint8 [b, H', W'],
        "size": int32 [b, 2], the label's height and width before padding,
        "index": int32 [b], the record's number or -1 for a filler,
        and "original": uint8 [b, H', W', C] where wanted}
        with b = batch_size / process_count.

    Raises:
        ValueError: if the batch does not divide.
    """
    share = _share(batch_size, process_index, process_count)
    mine = slice(process_index * share, (process_index + 1) * share)

    def load(batch: tuple[tuple[int, int], list[int]]) -> dict:
        bucket, indices = batch
        samples = [
            _eval_sample(source, i, bucket, image_size, originals)
            for i in indices[mine]
        ]
        return {key: np.stack([s[key] for s in samples]) for key in samples[0]}

    plan = _plan(source.sizes, batch_size)
    return EvalBatches(grain.MapDataset.source(plan).map(load), num_threads)


class EvalBatches:
    """The batches of a split, from the first at every `iter`; has a length.

    Args:
        batches: the batches by number.
        num_threads: that prepare batches ahead.
    """

    def __init__(self, batches: grain.MapDataset, num_threads: int):
        self._batches = batches
        self._num_threads = num_threads

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return _read_ahead(self._batches, self._num_threads)


def _eval_sample(
    source: Source,
    index: int,
    bucket: tuple[int, int],
    image_size: tuple[int, int] | None,
    originals: bool,
) -> dict:
    """A record, or for index -1 a void one, with its label padded to `bucket`."""
    if index < 0:
        original = np.zeros((*bucket, source.info.channels), np.uint8)
        label, size, image = np.full(bucket, IGNORE, np.uint8), bucket, original
    else:
        record = source[index]
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
    """The label size and the records of every batch; -1 is a filler."""
    uniform = len(set(sizes)) == 1
    groups = defaultdict(list)
    for index, size in enumerate(sizes):
        rounded = tuple(-(-side // BUCKET_PX) * BUCKET_PX for side in size)
        groups[size if uniform else rounded].append(index)
    plan = []
    for bucket, members in sorted(groups.items()):
        members += [-1] * (-len(members) % batch_size)
        for start in range(0, len(members), batch_size):
            plan.append((bucket, members[start : start + batch_size]))
    return plan


def _read_ahead(batches: grain.MapDataset, num_threads: int) -> Iterator[dict]:
    """Iterates with as many batches in the making as there are threads."""
    # Each thread prepares a sample of its own; OpenCV's threads would only add to them.
    cv2.setNumThreads(0)
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=num_threads
    )
    return iter(batches.to_iter_dataset(options))


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} does not divide among {process_count} "
            f"process(es); use a multiple of {process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not below {process_count}")
    return batch_size // process_count


def _check_augment(arguments: dict) -> None:
    known = list(inspect.signature(transforms.augment).parameters)[3:]
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ValueError(
            f"augment has no {', '.join(unknown)}; known: {', '.join(known)}"
        )
    image = np.zeros((2, 2, 3), np.uint8)
    transforms.augment(np.random.default_rng(0), image, image[..., 0], **arguments)


def _check_uniform(source: Source) -> None:
    sizes = sorted(set(source.sizes))
    if len(sizes) > 1:
        raise ValueError(
            f"the images of split {source.split!r} have {len(sizes)} sizes, such as "
            f"{sizes[0]} and {sizes[-1]}, and cannot be batched; set image_size to "
            "resize them or augment's crop_px to cut them to one"
        )
