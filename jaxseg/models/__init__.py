"""Networks and the parts they are made of."""

from jaxseg.models.registry import create_model, list_encoders, list_models

__all__ = ["create_model", "list_encoders", "list_models"]
