"""Confidence intervals of the difference between two runs: a paired bootstrap."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxseg.metrics.confusion import check_names
from jaxseg.metrics.per_image import PerImage

_CHUNK = 500
"""Number of resamples in memory at a time."""


class Interval(NamedTuple):
    """A difference between two runs, and its bootstrap interval.

    Attributes:
        difference: the second run minus the first, on the original set of images.
        low: lower end of the interval.
        high: upper end of the interval. If the interval contains 0, the difference may
            be due to chance.
    """

    difference: float
    low: float
    high: float


def paired_bootstrap(
    first: PerImage,
    second: PerImage,
    class_names: Sequence[str],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, dict[str, Interval]]:
    """Differences of two runs on the same images, with percentile intervals.

    N images are drawn with replacement from the N images, the same for both runs. Their
    counts are summed (for `BoundaryF1` the scores of the images are averaged), and the
    difference is computed; all this `resamples` times. Pairing removes the effect of
    hard and easy images on both runs.

    The interval covers the choice of images only, and assumes that they are
    independent. It is too narrow for frames of a video, and it does not cover the
    variation between random seeds of the training.

    Args:
        first: counts by image of the first run.
        second: counts by image of the second run.
        class_names: K names.
        resamples: number of draws; the noise of the interval's ends is of the order of
            1 / sqrt(resamples).
        level: fraction of the draws inside the interval.
        seed: random seed of the draws.

    Returns:
        The interval of the mean score, and the intervals of the classes' scores by
        name. NaN if a run has no such score; draws without a score are left out.

    Raises:
        ValueError: if the runs were not scored on the same images and labels, or
            `resamples` or `level` is out of range.

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, section 13.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"resamples is {resamples}, and level is {level}; they must be at least 1, "
            "and between 0 and 1"
        )
    _check_pair(first, second)
    check_names(class_names, first.num_classes)
    images = len(first.index)

    def differences(weights):
        return second.figures(weights) - first.figures(weights)

    drawn = []
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = rng.multinomial(images, np.full(images, 1 / images), size)
        drawn.append(differences(weights.astype(np.float64)))
    drawn = np.concatenate(drawn)
    mean, *by_class = (
        _interval(value, draws, level)
        for value, draws in zip(differences(np.ones((1, images)))[0], drawn.T)
    )
    return mean, dict(zip(class_names, by_class))


def _interval(difference, draws, level):
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference), float(low), float(high))


def _check_pair(first, second):
    if type(first) is not type(second):
        raise ValueError(
            f"cannot compare {type(first).__name__} with {type(second).__name__}"
        )
    if first.num_classes != second.num_classes:
        raise ValueError(
            f"cannot compare runs of {first.num_classes} and {second.num_classes} "
            "classes"
        )
    if not np.array_equal(first.index, second.index):
        raise ValueError(
            "runs can only be compared on the same images; they have "
            f"{len(first.index)} and {len(second.index)} images, of which "
            f"{len(np.intersect1d(first.index, second.index))} are the same"
        )
    if not len(first.index):
        raise ValueError("there are no images to compare the runs on")
    differ = (first.counts[..., 0] != second.counts[..., 0]).any(axis=1)
    if differ.any():
        raise ValueError(
            "runs can only be compared on the same labels; the labels of image "
            f"{first.index[differ.argmax()]} differ"
        )
