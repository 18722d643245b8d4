"""The best that coarse predictions can score: truth made coarse, scored as if predicted.

A free test of the metrics, too: no model is needed.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from jaxseg.metrics.confusion import Confusion

FACTORS = (128, 64, 32, 16, 8, 4, 2, 1)
"""The paper's, 2, and 1, which has to give all."""


def upper_bounds(
    labels: Iterable[np.ndarray],
    num_classes: int,
    factors: Sequence[int] = FACTORS,
    upsample: str = "nearest",
    ignore_index: int = 255,
) -> dict[int, Confusion]:
    """Confusion of true label maps with their own coarse versions, by factor.

    Args:
        labels: of the set, `[H, W]` each, of any sizes.
        num_classes: K.
        factors: of downsampling.
        upsample: "nearest" or "bilinear"; see `coarsen`.
        ignore_index: label of the void pixels.

    Source: FCN (CVPR 2015), appendix A: mean IU 50.9, 73.3, 86.1, 92.8, 96.4, 98.5 for
        128, 64, 32, 16, 8, 4 on a part of VOC 2011 val; how was not written down.
    """
    total = {factor: Confusion.zeros(num_classes) for factor in factors}
    for label in labels:
        for factor in factors:
            coarse = coarsen(label, factor, num_classes, upsample, ignore_index)
            total[factor] += Confusion.of(coarse, label, num_classes, ignore_index)
    return total


def coarsen(
    label: np.ndarray,
    factor: int,
    num_classes: int,
    upsample: str = "nearest",
    ignore_index: int = 255,
) -> np.ndarray:
    """A label map downsampled by a factor, and upsampled again.

    Down, a cell of factor x factor pixels has a score for each class, the number of its
    pixels; void, and what the last cells lack at the bottom and the right, has none.
    Up, each pixel takes the class of highest score (the first of equals): of its own
    cell by "nearest", which no map that is constant on cells beats in pixel accuracy,
    or of the bilinear mixture of the cells around it, as FCNs upsample theirs.

    Args:
        label: true class numbers `[H, W]`, `ignore_index` where void.
        factor: 1 or more.
        num_classes: K, up to 255.
        upsample: "nearest" or "bilinear".
        ignore_index: label of the void pixels.

    Returns:
        Class numbers, uint8 `[H, W]`; never void.

    Raises:
        ValueError: for a factor below 1 or an unknown `upsample`.
    """
    if factor < 1:
        raise ValueError(f"factor must be 1 or more, not {factor}")
    if upsample not in _INTERPOLATION:
        raise ValueError(
            f"unknown upsample {upsample!r}; known: {', '.join(_INTERPOLATION)}"
        )
    height, width = label.shape
    beyond = [(0, -side % factor) for side in label.shape]
    padded = np.pad(label, beyond, constant_values=ignore_index)
    rows, columns = (side // factor for side in padded.shape)
    best = np.zeros(label.shape, np.uint8)
    highest = np.zeros(label.shape, np.float32)
    for number in np.unique(label):
        if number == ignore_index or number >= num_classes:
            continue
        cells = (padded == number).reshape(rows, factor, columns, factor)
        score = cv2.resize(
            cells.sum(axis=(1, 3)).astype(np.float32),
            padded.shape[::-1],
            interpolation=_INTERPOLATION[upsample],
        )[:height, :width]
        higher = score > highest
        best[higher] = number
        highest[higher] = score[higher]
    return best


_INTERPOLATION = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR}
