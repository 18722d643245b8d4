"""Models by name."""

import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseg.models.components import check_classes
from jaxseg.models.deconvnet import deconvnet
from jaxseg.models.deeplab import (
    deeplab_v3,
    deeplab_v3plus,
    deeplabv3_resnet50,
    fcn_resnet50,
)
from jaxseg.models.deeplab_v2 import deeplab_largefov, deeplab_v2
from jaxseg.models.encoder_decoder import encoder_decoder
from jaxseg.models.fc_resnet import fc_resnet
from jaxseg.models.fcn import fcn8s, fcn8s_atonce, fcn16s, fcn32s
from jaxseg.models.options import LayerOptions
from jaxseg.models.outputs import with_logits_dtype
from jaxseg.models.segnet import segnet
from jaxseg.models.segnet_basic import (
    bilinear_interpolation,
    fcn_basic,
    fcn_basic_no_addition,
    fcn_basic_no_addition_no_dim_reduction,
    fcn_basic_no_dim_reduction,
    segnet_basic,
    segnet_basic_encoder_addition,
    segnet_basic_single_channel,
)
from jaxseg.models.unet import unet, unet_valid
from jaxseg.utils import registry
from jaxseg.utils.classes import check_max_classes
from jaxseg.utils.names import suggest_name

MODELS = {
    "bilinear_interpolation": bilinear_interpolation,
    "deconvnet": deconvnet,
    "deeplab_largefov": deeplab_largefov,
    "deeplab_v2": deeplab_v2,
    "deeplab_v3": deeplab_v3,
    "deeplab_v3plus": deeplab_v3plus,
    "deeplabv3_resnet50": deeplabv3_resnet50,
    "encoder_decoder": encoder_decoder,
    "fc_resnet": fc_resnet,
    "fcn16s": fcn16s,
    "fcn32s": fcn32s,
    "fcn8s": fcn8s,
    "fcn8s_atonce": fcn8s_atonce,
    "fcn_basic": fcn_basic,
    "fcn_basic_no_addition": fcn_basic_no_addition,
    "fcn_basic_no_addition_no_dim_reduction": fcn_basic_no_addition_no_dim_reduction,
    "fcn_basic_no_dim_reduction": fcn_basic_no_dim_reduction,
    "fcn_resnet50": fcn_resnet50,
    "segnet": segnet,
    "segnet_basic": segnet_basic,
    "segnet_basic_encoder_addition": segnet_basic_encoder_addition,
    "segnet_basic_single_channel": segnet_basic_single_channel,
    "unet": unet,
    "unet_valid": unet_valid,
}


registry.add_built_in("model", MODELS)


def list_models() -> tuple[str, ...]:
    """Names that `create_model` knows."""
    return registry.names("model")


def list_encoders() -> tuple[str, ...]:
    """Names of encoders."""
    return registry.names("encoder")


def list_skips() -> tuple[str, ...]:
    """Names of skips."""
    return registry.names("skip")


def list_upsamplers() -> tuple[str, ...]:
    """Names of upsamplers."""
    return registry.names("upsampler")


def list_blocks() -> tuple[str, ...]:
    """Names of blocks."""
    return registry.names("block")


def find_builder(name: str) -> Callable[..., Any]:
    """The function that builds the model of a name.

    Raises:
        ValueError: if there is no such model.
    """
    if name not in list_models() and name in list_encoders():
        raise ValueError(
            f"{name!r} is an encoder, not a model; use a model with it, such as "
            f"encoder_decoder with encoder={name!r}."
        )
    return registry.lookup("model", name)


def create_model(
    name: str,
    num_classes: int,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
    remat: bool = False,
    logits_dtype: DTypeLike = jnp.float32,
    **kwargs,
) -> nn.Module:
    """Creates a network by name.

    Args:
        name: one of `list_models()`.
        num_classes: K, from 1 to 255.
        dtype: of the computation, as a type or its name; "bfloat16" for mixed precision.
        param_dtype: of the parameters.
        axis_name: mapped axis over which the batch is split, under pmap or shard_map.
        remat: whether the activations of every stage are recomputed for the gradient,
            which saves memory and costs time.
        logits_dtype: of the logits; bfloat16 halves their memory in training, which
            helps where there are many classes.
        **kwargs: further keyword arguments of the model's builder, such as `width` or
            `dropout`; docs/models.md lists the builders, and `help` describes one:
            `help(jaxseg.models.unet.unet)`.

    Returns:
        A linen module, called as `module.apply(variables, image, train=...)` with an
        image [B, H, W, C] of any H and W (except for `unet_valid` and `deconvnet`,
        whose errors name the valid sizes), that returns logits [B, H, W, K].
        `jaxseg.models.outputs.apply_in_training` returns the logits of auxiliary heads
        too.

    Raises:
        ValueError: if a name, an argument or a type is unknown, or `num_classes` is out
            of range.
    """
    builder = find_builder(name)
    check_classes(num_classes)
    check_max_classes(num_classes)
    options = LayerOptions(dtype, param_dtype, axis_name, remat)
    # Arguments that a name stands for, such as the skips of fcn16s, cannot be set.
    fixed = getattr(builder, "keywords", {})
    accepted = set(list(inspect.signature(builder).parameters)[1:]) - fixed.keys()
    own = accepted - {"options"}
    for key in kwargs.keys() - own:
        known = tuple(sorted(own | asdict(options).keys()))
        raise ValueError(f"{name} has no argument {key!r}{suggest_name(key, known)}")
    kwargs = _hashable(kwargs)
    if "options" in accepted:
        kwargs["options"] = options
    elif options != LayerOptions():
        raise ValueError(
            f"{name} has no argument `options`, so these would have no effect: {options}."
        )
    model = builder(num_classes, **kwargs)
    return with_logits_dtype(model, logits_dtype)


def _hashable(value: Any) -> Any:
    """Replaces lists by tuples: modules must be hashable, and JSON has only lists."""
    if isinstance(value, dict):
        return {key: _hashable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return value
