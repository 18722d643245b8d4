"""Losses: each returns a sum and its denominator, which both add up over devices."""

from jaxseg.losses.boundary import boundary
from jaxseg.losses.centerline import cl_dice
from jaxseg.losses.combination import combine
from jaxseg.losses.cross_entropy import cross_entropy, soft_cross_entropy
from jaxseg.losses.focal import focal
from jaxseg.losses.lovasz import lovasz_softmax
from jaxseg.losses.ohem import ohem_cross_entropy
from jaxseg.losses.reduction import LossFn, apply_loss, by_columns, divide
from jaxseg.losses.region import (
    dice,
    focal_tversky,
    generalized_dice,
    jaccard,
    log_cosh_dice,
    tversky,
)
from jaxseg.utils import registry

LOSSES = {
    "boundary": boundary,
    "cl_dice": cl_dice,
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "focal_tversky": focal_tversky,
    "generalized_dice": generalized_dice,
    "jaccard": jaccard,
    "log_cosh_dice": log_cosh_dice,
    "lovasz_softmax": lovasz_softmax,
    "ohem_cross_entropy": ohem_cross_entropy,
    "tversky": tversky,
}
"""Losses of logits [B, H, W, K] and labels [B, H, W], by name."""

registry.add_built_in("loss", LOSSES)

__all__ = [
    "LOSSES",
    "LossFn",
    "apply_loss",
    "boundary",
    "by_columns",
    "cl_dice",
    "combine",
    "cross_entropy",
    "dice",
    "divide",
    "focal",
    "focal_tversky",
    "generalized_dice",
    "jaccard",
    "log_cosh_dice",
    "lovasz_softmax",
    "ohem_cross_entropy",
    "soft_cross_entropy",
    "tversky",
]
