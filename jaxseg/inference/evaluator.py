"""Scores a model on a split of a data set, at the size of its labels."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import jax
import numpy as np

from jaxseg.data import Source, eval_batches
from jaxseg.inference.network import eval_step
from jaxseg.inference.scorers import Scorer
from jaxseg.metrics import Calibration, Confusion
from jaxseg.models.variables import Variables
from jaxseg.parallel.mesh import REPLICATED, SPLIT, Parallel

IN_FLIGHT = 2
"""Batches whose results are waited for only after the next ones are under way."""

MOST_PIXELS = 2**31 - 1
"""Of a batch, over all devices: more cannot be counted in int32."""


Watch = Callable[[int, np.ndarray, np.ndarray], None]
"""Called with the index, the prediction and the label of a record."""


class Evaluator:
    """Scores a model, again and again; compiled once for each shape of batch.

    Counts are summed exactly over the whole split, over all devices and processes.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        num_classes: int,
        batch_size: int,
        parallel: Parallel,
        image_size: tuple[int, int] | None = None,
        refine: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
        calibrate: bool = False,
    ):
        """Sets up the evaluation; nothing is compiled yet.

        Args:
            scorer: from variables and images to scores; see `inference`.
            num_classes: K.
            batch_size: images at a time, over all devices and processes together.
            parallel: the devices and the way to use them.
            image_size: height and width that images are resized to before they are
                fed; their scores are resized back, bilinearly, and compared at the size
                of the labels. None feeds images at their own size.
            refine: from probabilities, images and sizes to better probabilities.
            calibrate: whether to count how sure the model is and how often right.

        Raises:
            ValueError: if the batch does not divide by the devices.
        """
        parallel.check_batch(batch_size)
        self._num_classes = num_classes
        self._parallel = parallel
        self._batches = partial(
            eval_batches,
            batch_size=batch_size,
            image_size=image_size,
            originals=refine is not None and image_size is not None,
        )
        step = partial(
            eval_step,
            scorer=scorer,
            num_classes=num_classes,
            resized=image_size is not None,
            refine=refine,
            calibrate=calibrate,
        )
        self._step = parallel.compile(step, outputs=(SPLIT, REPLICATED))

    def __call__(
        self,
        variables: Variables,
        source: Source,
        *,
        watch: Watch | None = None,
        progress: Callable[[Iterable], Iterable] = iter,
    ) -> tuple[Confusion, Calibration]:
        """Scores the model on every record of a split.

        Args:
            variables: of the model; placed on the devices if they are elsewhere.
            source: the split.
            watch: called for each record with its index, its prediction and its
                label, both uint8 [H, W]; in each process for the process's own records.
            progress: wraps the batches, which have a length, to watch them go by.

        Returns:
            The confusion of all valid pixels, and their calibration, which is empty
            where it was not asked for.

        Raises:
            ValueError: if a batch has more pixels than can be counted.
        """
        index, count = self._parallel.process_shard
        batches = self._batches(source, process_index=index, process_count=count)
        variables = jax.device_put(variables, self._parallel.replicated)

        def launch(batch):
            index = batch.pop("index")
            pixels = batch["label"].size * count
            if pixels > MOST_PIXELS:
                raise ValueError(
                    f"A batch of {pixels} pixels is more than can be counted at once, "
                    f"{MOST_PIXELS}; use a smaller batch_size."
                )
            labels = batch["label"]
            prediction, counts = self._step(variables, self._parallel.place(batch))
            return prediction, counts, index, labels, batch["size"]

        confusion, calibration = Confusion.zeros(self._num_classes), Calibration.zeros()
        launched = map(launch, progress(batches))
        for prediction, counts, index, labels, sizes in _lag(launched, IN_FLIGHT):
            counts = jax.device_get(counts)
            confusion += Confusion(counts["confusion"])
            if "calibration" in counts:
                calibration += Calibration(*counts["calibration"])
            if watch is not None:
                for number, classes, label, (height, width) in zip(
                    index, _local(prediction), labels, sizes
                ):
                    if number >= 0:
                        inside = slice(height), slice(width)
                        watch(int(number), classes[inside], label[inside])
        return confusion, calibration


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
    # Devices that split the rows of images have a copy each.
    shards = {s.index[0].start or 0: s.data for s in prediction.addressable_shards}
    rows = np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
    # Under pmap there is an axis of devices before that of the batch.
    return rows.reshape(-1, *rows.shape[-2:])
