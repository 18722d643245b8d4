"""Trimap accuracy: IoU in a narrow band around the boundaries of the truth."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from jaxseg.metrics.confusion import Confusion, check_maps, check_num_classes

RADII = (1, 2, 5, 10, 20)
"""Radii of the band, in pixels of the label."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trimap:
    """Confusion matrices of the pixels within several radii of a boundary.

    Attributes:
        radii: in pixels, in increasing order.
        counts: int64 [len(radii), K, K], rows truth, columns prediction. The counts of
            a larger radius include those of the smaller ones.
    """

    radii: tuple[float, ...]
    counts: np.ndarray

    @classmethod
    def zeros(cls, num_classes: int, radii: Sequence[float] = RADII) -> "Trimap":
        """The counts of no pixels.

        Raises:
            ValueError: if the radii are not increasing or below 1.
        """
        _check(radii)
        check_num_classes(num_classes)
        shape = (len(radii), num_classes, num_classes)
        return cls(tuple(radii), np.zeros(shape, np.int64))

    @classmethod
    def of(
        cls,
        prediction: np.ndarray,
        label: np.ndarray,
        num_classes: int,
        radii: Sequence[float] = RADII,
        ignore_index: int = 255,
    ) -> "Trimap":
        """The counts of one image.

        A pixel is within radius r of a boundary if the center of a pixel with another
        label is at most r away: radius 1 selects the pixels on both sides of every
        boundary. Void counts as a separate label here, since thin objects may touch
        only void, and void between two objects is their boundary; but void pixels are
        not counted. The image border is not a boundary.

        Args:
            prediction: predicted classes, integers [H, W].
            label: true classes, integers [H, W], `ignore_index` for void.
            num_classes: K.
            radii: in pixels, in increasing order, at least 1.
            ignore_index: label of the void pixels.

        Returns:
            The counts of this image.

        Raises:
            ValueError: if the shapes differ, or the radii are not increasing or below
                1.

        Source: Kohli, Ladicky and Torr, "Robust higher order potentials for enforcing
            label consistency", IJCV 2009; DeepLab v1, section 5.1.
        """
        _check(radii)
        check_maps(prediction, label)
        if label.ndim != 2:
            raise ValueError(f"label has shape {label.shape}; expected [H, W]")
        distance = boundary_distance(label)
        rings = np.searchsorted(radii, distance)
        counts = []
        for ring in range(len(radii)):
            inside = rings == ring
            confusion = Confusion.of(
                prediction[inside], label[inside], num_classes, ignore_index
            )
            counts.append(confusion.counts)
        return cls(tuple(radii), np.cumsum(counts, axis=0))

    def __add__(self, other: "Trimap") -> "Trimap":
        """The counts of both sets of pixels together."""
        if self.radii != other.radii or self.counts.shape != other.counts.shape:
            raise ValueError(
                f"cannot add trimaps of radii {self.radii} and {other.radii} and of "
                f"{self.counts.shape[-1]} and {other.counts.shape[-1]} classes"
            )
        return Trimap(self.radii, self.counts + other.counts)

    def compute(
        self, class_names: Sequence[str], absent: str = "exclude"
    ) -> dict[float, dict[str, Any]]:
        """The metrics of `Confusion.compute`, of the pixels within each radius.

        Args:
            class_names: K different names.
            absent: see `Confusion.compute`.

        Returns:
            {radius: {"miou": ..., "iou": {...}, "pixel_accuracy": ..., ...}}
        """
        return {
            radius: Confusion(counts).compute(class_names, absent)
            for radius, counts in zip(self.radii, self.counts)
        }


def boundary_distance(label: np.ndarray) -> np.ndarray:
    """The distance from each pixel to the nearest pixel with another label.

    Args:
        label: integers [H, W].

    Returns:
        Euclidean distances in pixels, at least 1, float32 [H, W]; infinite if there is
        only one label.
    """
    distance = np.full(label.shape, np.inf, np.float32)
    numbers = np.unique(label)
    if len(numbers) > 1:
        for number in numbers:
            inside = label == number
            distance[inside] = cv2.distanceTransform(
                inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
            )[inside]
    return distance


def _check(radii):
    # Written so that NaN fails, too.
    if not radii or not min(radii) >= 1 or list(radii) != sorted(set(radii)):
        raise ValueError(
            f"radii must be increasing and at least 1 pixel, such as {RADII}, not "
            f"{tuple(radii)}"
        )
