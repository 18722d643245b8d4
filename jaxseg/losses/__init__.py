"""Losses: each returns a sum over the pixels and its denominator."""

from jaxseg.losses.cross_entropy import cross_entropy
from jaxseg.losses.reduction import LossFn, by_columns, divide
from jaxseg.utils import registry

LOSSES = {"cross_entropy": cross_entropy}

registry.add_built_in("loss", LOSSES)

__all__ = ["LOSSES", "LossFn", "by_columns", "cross_entropy", "divide"]
