"""Counts by image, for questions that a sum over the whole set cannot answer.

These are the distribution of the scores over the images, the worst image, and the
confidence interval of the difference between two runs. A few integers per image and
class are enough for all of them.
"""

import abc
import dataclasses
from typing import ClassVar, Self

import numpy as np

from jaxseg.metrics.confusion import Confusion, check_num_classes, checked_counts


@dataclasses.dataclass(frozen=True, eq=False)
class PerImage(abc.ABC):
    """Counts of each image, by the number of its record; `+` joins sets of images.

    Attributes:
        index: numbers of the records, in increasing order, int64 [N].
        counts: int64 [N, K, C], for each image and class the columns of the subclass.
            The first column depends on the labels only, so it is the same for all runs.
    """

    index: np.ndarray
    counts: np.ndarray

    columns: ClassVar[tuple[str, ...]]

    def __post_init__(self):
        index, counts = np.asarray(self.index), np.asarray(self.counts)
        if index.ndim != 1:
            raise ValueError(f"index must be [N], not {list(index.shape)}")
        expected = (len(index), len(self.columns))
        if counts.ndim != 3 or (counts.shape[0], counts.shape[2]) != expected:
            raise ValueError(
                f"{type(self).__name__} of {len(index)} images needs counts of shape "
                f"[{len(index)}, K, {len(self.columns)}], not {list(counts.shape)}"
            )
        order = np.argsort(index, kind="stable")
        for name, values in (("index", index), ("counts", counts)):
            object.__setattr__(self, name, checked_counts(name, values[order]))
        twice = self.index[1:][np.diff(self.index) == 0]
        if twice.size:
            raise ValueError(f"image {twice[0]} is counted twice")

    @classmethod
    def zeros(cls, num_classes: int) -> Self:
        """The counts of no images."""
        check_num_classes(num_classes)
        shape = (0, num_classes, len(cls.columns))
        return cls(np.zeros(0, np.int64), np.zeros(shape, np.int64))

    def __add__(self, other: Self) -> Self:
        """The counts of both sets of images."""
        if self.counts.shape[1:] != other.counts.shape[1:]:
            raise ValueError(
                f"cannot add images of {self.num_classes} and {other.num_classes} "
                "classes"
            )
        return type(self)(
            np.concatenate([self.index, other.index]),
            np.concatenate([self.counts, other.counts]),
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.counts.shape[1]

    @abc.abstractmethod
    def figures(self, weights: np.ndarray) -> np.ndarray:
        """The scores of several sets of images: the mean score, and that of each class.

        Args:
            weights: [R, N], the number of times that each image is in each of R sets.

        Returns:
            float64 [R, 1 + K] in [0, 1], the mean first; NaN if a set has no such
            score.
        """


class ImageIoU(PerImage):
    """Numbers of true, predicted and correct pixels of each image and class."""

    columns = ("truth", "predicted", "hit")

    @classmethod
    def of(cls, index: int, confusion: Confusion) -> "ImageIoU":
        """The counts of one image.

        Args:
            index: number of the record.
            confusion: confusion matrix of this image.

        Returns:
            The counts of this image.
        """
        counts = confusion.counts
        columns = (counts.sum(axis=1), counts.sum(axis=0), np.diagonal(counts))
        return cls(np.array([index]), np.stack(columns, axis=-1)[None])

    def figures(self, weights: np.ndarray) -> np.ndarray:
        """mIoU and the IoU of each class, from the counts summed over each set.

        As in `Confusion.compute`, a class that is absent from truth and prediction has
        no IoU, and the mean is over the classes that have one.

        Args:
            weights: [R, N], the number of times that each image is in each of R sets.

        Returns:
            float64 [R, 1 + K] in [0, 1], mIoU first.
        """
        # float64 for speed; it is exact below 2^53 pixels.
        iou = _iou(np.tensordot(weights, self.counts.astype(np.float64), axes=1))
        return np.concatenate([nan_mean(iou)[:, None], iou], axis=1)

    def miou(self) -> np.ndarray:
        """mIoU of each image, over the classes in its truth or prediction.

        Returns:
            float64 [N]; NaN for an image of only void pixels.
        """
        return nan_mean(_iou(self.counts))

    def compute(self) -> dict[str, float]:
        """The distribution of the images' mIoU, without images of only void pixels.

        The mean differs from the mIoU of the set, for which the counts are summed over
        the images first; small objects have more weight in it.

        Returns:
            {"mean", "std", "min", "p5", "p25", "median", "p75", "p95", "max"}: floats
            in [0, 1], NaN without images.
        """
        miou = self.miou()
        miou = miou[~np.isnan(miou)]
        if not miou.size:
            return dict.fromkeys(("mean", "std", *_QUANTILES), float("nan"))
        quantiles = np.quantile(miou, list(_QUANTILES.values()))
        spread = {"mean": float(miou.mean()), "std": float(miou.std())}
        return spread | dict(zip(_QUANTILES, quantiles.tolist()))


_QUANTILES = {
    "min": 0.0,
    "p5": 0.05,
    "p25": 0.25,
    "median": 0.5,
    "p75": 0.75,
    "p95": 0.95,
    "max": 1.0,
}


def _iou(counts):
    truth, predicted, hit = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore"):
        return hit / (truth + predicted - hit)


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN, without a warning, if all are NaN.

    Args:
        values: float [..., n].

    Returns:
        float [...].
    """
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)
