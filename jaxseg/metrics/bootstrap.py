"""How sure a difference between two runs is: a paired bootstrap over images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxseg.metrics.confusion import check_names
from jaxseg.metrics.per_image import PerImage

_AT_ONCE = 500
"""Resamples in memory at a time."""


class Interval(NamedTuple):
    """A difference and the bootstrap's interval around it.

    Attributes:
        difference: on the images as they are; the second run less the first.
        low: lower end.
        high: upper end; the interval holds 0 where the difference may be chance.
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

    N images are drawn from the N with replacement, the same for both runs; their counts
    are summed (for `ImageIoU`; scores of images are averaged for `BoundaryF1`) and the
    difference taken; and this `resamples` times. Pairing removes what hard and easy
    images do to both.

    The interval is about the choice of images alone, taken to be independent: frames of
    one video are not, which makes it too narrow, and another seed of the training moves
    results too.

    Args:
        first: counts by image of one run.
        second: those of the other.
        class_names: K names.
        resamples: draws; the ends of the interval have their own noise, of the order of
            1 / sqrt(resamples).
        level: share of the draws in the interval.
        seed: of the draws.

    Returns:
        The interval of the mean score, and those of the classes' scores by name. NaN
        where one run has no such score; draws without one are left out.

    Raises:
        ValueError: if the runs were not scored on the same images and labels.

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, section 13.
    """
    _check_pair(first, second)
    check_names(class_names, first.num_classes)
    images = len(first.index)

    def differences(weights):
        return second.figures(weights) - first.figures(weights)

    drawn = []
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _AT_ONCE):
        size = min(_AT_ONCE, resamples - start)
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
            f"runs must be scored on the same images to be compared; these are "
            f"{len(first.index)} and {len(second.index)}, "
            f"{len(np.intersect1d(first.index, second.index))} of them the same"
        )
    if not len(first.index):
        raise ValueError("no images to compare runs on")
    differ = (first.counts[..., 0] != second.counts[..., 0]).any(axis=1)
    if differ.any():
        raise ValueError(
            f"runs must be scored on the same labels to be compared; those of image "
            f"{first.index[differ.argmax()]} differ"
        )
