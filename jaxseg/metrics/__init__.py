"""Metrics of predictions: counts that are summed, and ratios computed once from them."""

from jaxseg.metrics.bootstrap import Interval, paired_bootstrap
from jaxseg.metrics.boundary import BoundaryF1
from jaxseg.metrics.calibration import Calibration, calibration_counts
from jaxseg.metrics.confusion import Confusion, confusion_counts, format_table
from jaxseg.metrics.per_image import ImageIoU, PerImage
from jaxseg.metrics.trimap import Trimap
from jaxseg.metrics.upper_bound import coarsen, upper_bounds

__all__ = [
    "BoundaryF1",
    "Calibration",
    "Confusion",
    "ImageIoU",
    "Interval",
    "PerImage",
    "Trimap",
    "calibration_counts",
    "coarsen",
    "confusion_counts",
    "format_table",
    "paired_bootstrap",
    "upper_bounds",
]
