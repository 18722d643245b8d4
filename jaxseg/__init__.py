"""Semantic segmentation in JAX.

Letters in shapes: B batch, H and W pixels, C channels, K classes.
"""

from jaxseg.models import (
    create_model,
    list_blocks,
    list_encoders,
    list_models,
    list_skips,
    list_upsamplers,
)
from jaxseg.workdir import load, save

__all__ = [
    "create_model",
    "list_blocks",
    "list_encoders",
    "list_models",
    "list_skips",
    "list_upsamplers",
    "load",
    "save",
]
