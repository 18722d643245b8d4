"""Counts kept apart by image, for what a sum over the set does not show.

How scores spread over the images, which image is worst, and how sure a difference
between two runs is. A few integers an image and class are enough for all of it.
"""

import abc
import dataclasses
from typing import ClassVar, Self

import numpy as np

from jaxseg.metrics.confusion import Confusion


@dataclasses.dataclass(frozen=True, eq=False)
class PerImage(abc.ABC):
    """Counts of each image by its record number; `+` joins two sets of images.

    Attributes:
        index: int64 `[N]`, the records' numbers, rising.
        counts: int64 `[N, K, C]`, for each image and class the columns of the subclass;
            the first is the truth's own, the same for every run on the same labels.
    """

    index: np.ndarray
    counts: np.ndarray

    columns: ClassVar[tuple[str, ...]]

    def __post_init__(self):
        index, counts = np.asarray(self.index), np.asarray(self.counts)
        expected = (len(index), len(self.columns))
        if counts.ndim != 3 or (counts.shape[0], counts.shape[2]) != expected:
            raise ValueError(
                f"{type(self).__name__} of {len(index)} images takes counts "
                f"[{len(index)}, K, {len(self.columns)}], not {list(counts.shape)}"
            )
        order = np.argsort(index, kind="stable")
        object.__setattr__(self, "index", index[order].astype(np.int64))
        object.__setattr__(self, "counts", counts[order].astype(np.int64))
        twice = self.index[1:][np.diff(self.index) == 0]
        if twice.size:
            raise ValueError(f"image {twice[0]} is counted twice")

    @classmethod
    def zeros(cls, num_classes: int) -> Self:
        """No images of K classes, to add to."""
        shape = (0, num_classes, len(cls.columns))
        return cls(np.zeros(0, np.int64), np.zeros(shape, np.int64))

    def __add__(self, other: Self) -> Self:
        """The images of both."""
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
        """K."""
        return self.counts.shape[1]

    @abc.abstractmethod
    def figures(self, weights: np.ndarray) -> np.ndarray:
        """The score of weighted sets of images, over all classes and of each.

        Args:
            weights: `[R, N]`, how often each image is in each of R sets.

        Returns:
            float64 `[R, 1 + K]` in [0, 1], the mean first; NaN where a set says nothing.
        """


class ImageIoU(PerImage):
    """Pixels of truth and prediction, and of both, of each class in each image."""

    columns = ("truth", "predicted", "hit")

    @classmethod
    def of(cls, index: int, confusion: Confusion) -> "ImageIoU":
        """That of one image.

        Args:
            index: the record's number.
            confusion: of this image alone.
        """
        counts = confusion.counts
        columns = (counts.sum(axis=1), counts.sum(axis=0), np.diagonal(counts))
        return cls(np.array([index]), np.stack(columns, axis=-1)[None])

    def figures(self, weights: np.ndarray) -> np.ndarray:
        """mIoU and IoU of each class, counts summed over each set first.

        As in `Confusion.compute`, a class neither in truth nor in prediction has no
        IoU, and the mean is over the classes that have one.
        """
        # In float64 for speed: sums of pixels are exact in it below 2^53.
        iou = _iou(np.tensordot(weights, self.counts.astype(np.float64), axes=1))
        return np.concatenate([nan_mean(iou)[:, None], iou], axis=1)

    def miou(self) -> np.ndarray:
        """mIoU of each image by itself, over the classes in its truth or prediction.

        Returns:
            float64 `[N]`, NaN for an image that is nothing but void.
        """
        return nan_mean(_iou(self.counts))

    def compute(self) -> dict[str, float]:
        """How the images' own mIoU are spread; images of nothing but void are left out.

        The mean here is not the mIoU of the set, which sums counts over the images
        first: small objects weigh more in it.

        Returns:
            {"mean", "std", "min", "p5", "p25", "median", "p75", "p95", "max"}, floats
            in [0, 1], NaN without an image.
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
    """Mean over the last axis of what is not NaN; NaN, without a warning, of nothing."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)
