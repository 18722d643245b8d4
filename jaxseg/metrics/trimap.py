"""Trimap accuracy: IoU in a narrow band around the boundaries of the truth."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from jaxseg.metrics.confusion import Confusion

RADII = (1, 2, 5, 10, 20)
"""In pixels of the label."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trimap:
    """Confusion counts of the pixels within each of several radii of a boundary.

    Attributes:
        radii: in pixels, rising.
        counts: int64 `[len(radii), K, K]`, rows truth, columns prediction; a larger
            radius's have those of the smaller ones in them.
    """

    radii: tuple[float, ...]
    counts: np.ndarray

    @classmethod
    def zeros(cls, num_classes: int, radii: Sequence[float] = RADII) -> "Trimap":
        """No pixels of K classes, to add to.

        Raises:
            ValueError: unless the radii rise from 1 or more.
        """
        _check(radii)
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
        """That of one image.

        A pixel is within r of a boundary where a pixel of another label is no further
        than r from it, between centres: radius 1 takes the pixels on both sides of
        every boundary. Void is a label of its own here, for thin objects may touch
        nothing else and what lies in void between two objects is their boundary; but
        only pixels that are not void are counted. The frame of the image is no
        boundary.

        Args:
            prediction: class numbers `[H, W]`.
            label: true class numbers `[H, W]`, `ignore_index` where void.
            num_classes: K.
            radii: in pixels, rising, at least 1.
            ignore_index: label of the void pixels.

        Raises:
            ValueError: for maps of different shapes, or wrong radii.

        Source: Kohli, Ladicky and Torr, "Robust higher order potentials for enforcing
            label consistency", IJCV 2009; DeepLab v1, section 5.1.
        """
        _check(radii)
        if prediction.shape != label.shape:
            raise ValueError(
                f"a prediction of shape {prediction.shape} does not fit a label of "
                f"shape {label.shape}"
            )
        distance = boundary_distance(label)
        rings = np.searchsorted(radii, distance)
        counts = []
        for ring in range(len(radii)):
            here = rings == ring
            confusion = Confusion.of(
                prediction[here], label[here], num_classes, ignore_index
            )
            counts.append(confusion.counts)
        return cls(tuple(radii), np.cumsum(counts, axis=0))

    def __add__(self, other: "Trimap") -> "Trimap":
        """Counts of both sets of pixels together."""
        if self.radii != other.radii or self.counts.shape != other.counts.shape:
            raise ValueError(
                f"cannot add trimaps of radii {self.radii} and {other.radii} and of "
                f"{self.counts.shape[-1]} and {other.counts.shape[-1]} classes"
            )
        return Trimap(self.radii, self.counts + other.counts)

    def compute(self, class_names: Sequence[str], absent: str = "exclude") -> dict:
        """What `Confusion.compute` says of the pixels within each radius.

        Returns:
            {radius: {"miou": ..., "iou": {...}, "pixel_accuracy": ..., ...}}
        """
        return {
            radius: Confusion(counts).compute(class_names, absent)
            for radius, counts in zip(self.radii, self.counts)
        }


def boundary_distance(label: np.ndarray) -> np.ndarray:
    """How far the nearest pixel of another label is from each.

    Args:
        label: `[H, W]`.

    Returns:
        float32 `[H, W]`, Euclidean, in pixels, at least 1; infinite where there is only
        one label.
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
    if not radii or min(radii) < 1 or list(radii) != sorted(set(radii)):
        raise ValueError(
            f"radii must rise from 1 pixel or more, not {tuple(radii)}; as in {RADII}"
        )
