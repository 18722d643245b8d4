"""Evaluates a model on a split of a data set, at the size of its labels."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxseg.data import Source, eval_batches
from jaxseg.inference.network import (
    NonFiniteScoresError,
    Refine,
    Scorer,
    eval_step,
)
from jaxseg.metrics import Calibration, Confusion
from jaxseg.models.variables import Variables
from jaxseg.parallel.mesh import REPLICATED, SPLIT, Parallel
from jaxseg.utils.classes import check_max_classes

IN_FLIGHT = 2
"""Number of batches that are dispatched before the results of one are read."""

MAX_PIXELS = 2**31 - 1
"""Largest number of pixels in a global batch: counts are int32."""


Watch = Callable[[int, np.ndarray, np.ndarray], None]
"""Called with the index, the prediction and the label of a record."""


class EvaluationStopped(Exception):  # not an error
    """An evaluation was stopped by a signal.

    Attributes:
        signum: number of the signal.
    """

    def __init__(self, signum: int):
        """Stores the number of the signal."""
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


class Evaluator:
    """Evaluates a model, any number of times; compiles once for each batch shape.

    Counts are exact sums over the whole split, over all devices and processes.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        num_classes: int,
        batch_size: int,
        parallel: Parallel,
        image_size: tuple[int, int] | None = None,
        refine: Refine | None = None,
        calibrate: bool = False,
    ):
        """Prepares the evaluation; compiles nothing yet.

        Args:
            scorer: variables and images to scores; see `inference.scorers`.
            num_classes: K.
            batch_size: global batch size.
            parallel: the devices and how to use them.
            image_size: (height, width) that images are resized to; the scores are
                resized back bilinearly and compared at the size of the labels. None
                keeps the size of the images.
            refine: from probabilities, images and sizes to refined probabilities.
            calibrate: whether to count confidence against accuracy.

        Raises:
            ValueError: if the batch size is not divisible by the number of devices, or
                there are more than 255 classes.
        """
        check_max_classes(num_classes)
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
        signum: Callable[[], int] = lambda: 0,
    ) -> tuple[Confusion, Calibration]:
        """Evaluates the model on every record of a split.

        Args:
            variables: variables of the model, on any devices.
            source: the split.
            watch: called for each record with its index, prediction and label, both
                uint8 [H, W]; each process calls it for its own records.
            progress: wraps the iterable of batches, which has a length, for a progress
                bar.
            signum: called before each batch in all processes; returns, equally in all
                of them, the number of a signal to stop, or 0.

        Returns:
            The confusion of all pixels that are not ignored, and their calibration,
            which is empty without `calibrate`.

        Raises:
            ValueError: if a batch has too many pixels for int32 counts.
            EvaluationStopped: if `signum` returns the number of a signal.
            NonFiniteScoresError: if scores are NaN or infinite; names the image.
        """
        index, count = self._parallel.process_shard
        batches = self._batches(source, process_index=index, process_count=count)
        variables = jax.device_put(variables, self._parallel.replicated)

        def launch(batch: dict[str, np.ndarray]) -> tuple[Any, ...]:
            if stopped := signum():
                raise EvaluationStopped(stopped)
            index = batch.pop("index")
            pixels = batch["label"].size * count
            if pixels > MAX_PIXELS:
                raise ValueError(
                    f"A batch has {pixels} pixels, and counts are limited to "
                    f"{MAX_PIXELS}; use a smaller batch_size."
                )
            labels = batch["label"]
            result, counts = self._step(variables, self._parallel.place(batch))
            return *result, counts, index, labels, batch["size"]

        confusion, calibration = Confusion.zeros(self._num_classes), Calibration.zeros()
        launched = map(launch, progress(batches))
        for result in _lag(launched, IN_FLIGHT):
            prediction, finite, counts, index, labels, sizes = result
            counts = jax.device_get(counts)
            for number in index[(index >= 0) & ~_local(finite)]:
                raise NonFiniteScoresError(f"the image {source.name(int(number))}")
            confusion += Confusion(counts["confusion"])
            if "calibration" in counts:
                calibration += Calibration(*counts["calibration"])
            if watch is not None:
                for number, classes, label, (height, width) in zip(
                    index, _local(prediction, axes=2), labels, sizes
                ):
                    if number >= 0:
                        inside = slice(height), slice(width)
                        watch(int(number), classes[inside], label[inside])
        return confusion, calibration


def _lag(items: Iterable[Any], lag: int) -> Iterator[Any]:
    """The same items, each after `lag` more have been drawn."""
    drawn = deque()
    for item in items:
        drawn.append(item)
        if len(drawn) > lag:
            yield drawn.popleft()
    yield from drawn


def _local(output: jax.Array, axes: int = 0) -> np.ndarray:
    """This process's shard of a split output, in the order of its batch.

    Args:
        output: of a step.
        axes: number of axes of each image's output.
    """
    # Devices that share the rows of images have a copy each.
    shards = {s.index[0].start or 0: s.data for s in output.addressable_shards}
    rows = np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
    # Under pmap an axis of devices precedes that of the batch.
    return rows.reshape(-1, *rows.shape[rows.ndim - axes :])
