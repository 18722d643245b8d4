"""Losses: each returns a sum over the pixels and its denominator."""

from jaxseg.losses.cross_entropy import cross_entropy
from jaxseg.losses.reduction import LossFn, by_columns, divide

__all__ = ["LossFn", "by_columns", "cross_entropy", "divide"]
