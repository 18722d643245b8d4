"""Models by name."""

import inspect

import flax.linen as nn
import jax.numpy as jnp

from jaxseg.models.blocks import BLOCKS
from jaxseg.models.encoder_decoder import encoder_decoder
from jaxseg.models.encoders import ENCODERS
from jaxseg.models.parts import check_classes, instead
from jaxseg.models.segnet import segnet, segnet_basic
from jaxseg.models.skips import SKIPS
from jaxseg.models.upsamplers import UPSAMPLERS

MODELS = {
    "encoder_decoder": encoder_decoder,
    "segnet": segnet,
    "segnet_basic": segnet_basic,
}


def list_models() -> tuple[str, ...]:
    """Names that `create_model` knows."""
    return tuple(sorted(MODELS))


def list_encoders() -> tuple[str, ...]:
    """Names of encoders."""
    return tuple(sorted(ENCODERS))


def list_skips() -> tuple[str, ...]:
    """Names of skips."""
    return tuple(sorted(SKIPS))


def list_upsamplers() -> tuple[str, ...]:
    """Names of upsamplers."""
    return tuple(sorted(UPSAMPLERS))


def list_blocks() -> tuple[str, ...]:
    """Names of blocks."""
    return tuple(sorted(BLOCKS))


def create_model(name: str, num_classes: int, **parts) -> nn.Module:
    """Builds a network by name.

    Args:
        name: one of `list_models()`.
        num_classes: K, at least 1.
        **parts: what the model's own builder takes, such as `width` or `dropout`;
            `dtype` and `param_dtype` may be given by name ("bfloat16").

    Returns:
        A linen module, called as `module.apply(variables, image, train=...)` with an
        image [B, H, W, C] of any H and W, giving float32 logits [B, H, W, K].

    Raises:
        ValueError: if the name or a part is unknown, or `num_classes` is below 1.
    """
    builder = MODELS.get(name)
    if builder is None:
        raise ValueError(f"Unknown model {name!r}{instead(name, list_models())}")
    check_classes(num_classes)
    known = tuple(inspect.signature(builder).parameters)[1:]
    for part in parts:
        if part not in known:
            raise ValueError(f"{name} has no part {part!r}{instead(part, known)}")
    for key in {"dtype", "param_dtype"} & parts.keys():
        parts[key] = jnp.dtype(parts[key])
    return builder(num_classes, **parts)
