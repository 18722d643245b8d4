"""Upper bounds on the scores of coarse predictions: the scores of coarsened labels.

They need no model, so they also test the metrics.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from jaxseg.metrics.confusion import Confusion
from jaxseg.utils.classes import check_max_classes
from jaxseg.utils.rounding import round_up

FACTORS = (128, 64, 32, 16, 8, 4, 2, 1)
"""The factors of the paper, 2, and 1, for which all scores are 1."""


def upper_bounds(
    labels: Iterable[np.ndarray],
    num_classes: int,
    factors: Sequence[int] = FACTORS,
    upsample: str = "nearest",
    ignore_index: int = 255,
) -> dict[int, Confusion]:
    """Confusion matrices of true label maps and their coarsened versions, by factor.

    Args:
        labels: label maps, each integers [H, W], of any sizes.
        num_classes: K.
        factors: downsampling factors.
        upsample: "nearest" or "bilinear"; see `coarsen`.
        ignore_index: label of the void pixels.

    Returns:
        {factor: confusion matrix}.

    Source: FCN (CVPR 2015), appendix A: mean IU 50.9, 73.3, 86.1, 92.8, 96.4, 98.5 for
        128, 64, 32, 16, 8, 4 on a subset of VOC 2011 val, by an unpublished method.
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
    """Downsamples a label map by a factor and upsamples it again.

    The score of a class in a cell of factor x factor pixels is its number of pixels in
    the cell; void pixels, and the padding of incomplete cells, have no class. The
    scores are upsampled, and each pixel gets the class of highest score (the first on a
    tie). With "nearest" these are the scores of the pixel's own cell, and no map that
    is constant on cells has a higher pixel accuracy. "bilinear" is how FCNs upsample.

    Args:
        label: true classes, integers [H, W], `ignore_index` for void.
        factor: downsampling factor, at least 1.
        num_classes: K, up to 255.
        upsample: "nearest" or "bilinear".
        ignore_index: label of the void pixels.

    Returns:
        Classes, uint8 [H, W]; never void.

    Raises:
        ValueError: if the factor is below 1, `upsample` is unknown, the labels are not
            integers [H, W], or there are too many classes.
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1, not {factor}")
    if upsample not in _INTERPOLATION:
        raise ValueError(
            f"unknown upsample {upsample!r}; known: {', '.join(_INTERPOLATION)}"
        )
    check_max_classes(num_classes)
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise ValueError(
            f"label is {label.dtype} {list(label.shape)}; expected integers [H, W]"
        )
    if not label.size:
        return np.zeros(label.shape, np.uint8)
    height, width = label.shape
    margins = [(0, round_up(side, factor) - side) for side in label.shape]
    padded = np.pad(label, margins, constant_values=ignore_index)
    rows, columns = (side // factor for side in padded.shape)
    best = np.zeros(label.shape, np.uint8)
    highest = np.zeros(label.shape, np.float32)
    for number in np.unique(label):
        if number == ignore_index or not 0 <= number < num_classes:
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
