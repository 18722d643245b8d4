"""Semantic segmentation in JAX.

Letters in shapes: B batch, H and W pixels, C channels, K classes.
"""

from jaxseg.checkpoints.run import load, save
from jaxseg.models import (
    create_model,
    list_blocks,
    list_encoders,
    list_models,
    list_skips,
    list_upsamplers,
)
from jaxseg.utils.registry import register

__all__ = [
    "create_model",
    "list_blocks",
    "list_encoders",
    "list_models",
    "list_skips",
    "list_upsamplers",
    "load",
    "register",
    "save",
]
