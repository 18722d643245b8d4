"""Scores a model on a split of a data set, at the size of its labels."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial

import flax.linen as nn
import jax
import numpy as np

from jaxseg.data import Source, eval_batches
from jaxseg.metrics import Confusion
from jaxseg.sharding import REPLICATED, SPLIT, Parallel
from jaxseg.steps import Normalization, Variables, eval_step

IN_FLIGHT = 2
"""Batches whose results are waited for only after the next ones are under way."""


class Evaluator:
    """Scores a model, again and again; compiled once for each shape of batch.

    Counts are summed exactly over the whole split, over all devices and processes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        normalization: Normalization,
        num_classes: int,
        batch_size: int,
        parallel: Parallel,
        image_size: tuple[int, int] | None = None,
    ):
        """Sets up the evaluation; nothing is compiled yet.

        Args:
            model: the network.
            normalization: of the image.
            num_classes: K.
            batch_size: images at a time, over all devices and processes together.
            parallel: the devices and the way to use them.
            image_size: height and width that images are resized to before they are
                fed; their logits are resized back, bilinearly, and scored at the size
                of the labels. None feeds images at their own size.

        Raises:
            ValueError: if the batch does not divide by the devices.
        """
        parallel.check_batch(batch_size, "eval.batch_size")
        self._num_classes = num_classes
        self._batch_size = batch_size
        self._parallel = parallel
        self._image_size = image_size
        step = partial(
            eval_step,
            model=model,
            normalization=normalization,
            num_classes=num_classes,
            resized=image_size is not None,
        )
        self._step = parallel.compile(step, outputs=(SPLIT, REPLICATED))

    def __call__(
        self,
        variables: Variables,
        source: Source,
        *,
        keep: Collection[int] = (),
        progress: Callable[[Iterable], Iterable] = iter,
    ) -> tuple[Confusion, dict[int, np.ndarray]]:
        """Scores the model on every record of a split.

        Args:
            variables: of the model; placed on the devices if they are elsewhere.
            source: the split.
            keep: numbers of the records whose predictions are wanted.
            progress: wraps the batches, which have a length, to watch them go by.

        Returns:
            The confusion of all valid pixels, and the wanted predictions, uint8
            [H, W], by record number: of several processes, each has those of its own
            records.
        """
        batches = eval_batches(
            source,
            batch_size=self._batch_size,
            image_size=self._image_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        variables = jax.device_put(variables, self._parallel.replicated)

        def launch(batch):
            index = batch.pop("index")
            prediction, counts = self._step(variables, self._parallel.place(batch))
            return prediction, counts, index, batch["size"]

        confusion = Confusion.zeros(self._num_classes)
        kept = {}
        launched = map(launch, progress(batches))
        for prediction, counts, index, size in _lag(launched, IN_FLIGHT):
            confusion += Confusion(np.asarray(counts))
            wanted = np.flatnonzero(np.isin(index, list(keep)))
            if wanted.size:
                prediction = _local(prediction)
            for row in wanted:
                height, width = size[row]
                kept[int(index[row])] = prediction[row, :height, :width]
        return confusion, dict(sorted(kept.items()))


def _lag(items: Iterable, lag: int) -> Iterator:
    """The same items, each once `lag` more have been drawn."""
    drawn = deque()
    for item in items:
        drawn.append(item)
        if len(drawn) > lag:
            yield drawn.popleft()
    yield from drawn


def _local(prediction: jax.Array) -> np.ndarray:
    """This process's part of a split output, [b, H, W], in the order of its batch."""
    shards = sorted(
        prediction.addressable_shards, key=lambda shard: shard.index[0].start or 0
    )
    rows = np.concatenate([np.asarray(shard.data) for shard in shards])
    # Under pmap there is an axis of devices before that of the batch.
    return rows.reshape(-1, *rows.shape[-2:])
