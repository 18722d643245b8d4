"""Scores of predictions: counts that add up, and ratios taken from them once."""

from jaxseg.metrics.confusion import Confusion, confusion_counts, format_table

__all__ = ["Confusion", "confusion_counts", "format_table"]
