"""Losses: each returns a sum over the pixels and what to divide it by."""

from jaxseg.losses.cross_entropy import cross_entropy
from jaxseg.losses.reduction import LossFn, by_columns, divide

__all__ = ["LossFn", "by_columns", "cross_entropy", "divide"]
