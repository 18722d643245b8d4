"""Networks and their components."""

from jaxseg.models.registry import (
    create_model,
    list_blocks,
    list_encoders,
    list_models,
    list_skips,
    list_upsamplers,
)

__all__ = [
    "create_model",
    "list_blocks",
    "list_encoders",
    "list_models",
    "list_skips",
    "list_upsamplers",
]
