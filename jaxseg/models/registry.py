"""Models by name."""

import inspect

import flax.linen as nn
import jax.numpy as jnp

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
from jaxseg.models.layers import Dtype
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


def create_model(
    name: str, num_classes: int, *, logits_dtype: str | Dtype = jnp.float32, **kwargs
) -> nn.Module:
    """Builds a network by name.

    Args:
        name: one of `list_models()`.
        num_classes: K, at least 1.
        logits_dtype: of the logits, if not float32: bfloat16 halves their memory in
            training, where classes are many.
        **kwargs: what the model's own builder takes, such as `width` or `dropout`: that
            is the function of its name in the file that docs/models.md lists,
            `help(jaxseg.models.unet.unet)`. `dtype` and `param_dtype` may be given by
            name ("bfloat16").

    Returns:
        A linen module, called as `module.apply(variables, image, train=...)` with an
        image [B, H, W, C] of any H and W (but for `unet_valid` and `deconvnet`, whose
        errors say which), giving float32 logits [B, H, W, K]. In training, with
        auxiliary heads, it gives a mapping with `logits` and `aux`, pairs of a weight
        and logits.

    Raises:
        ValueError: if the name, a part or a dtype is unknown, or `num_classes` is
            below 1.
    """
    if name not in registry.names("model") and name in registry.names("encoder"):
        raise ValueError(
            f"{name!r} is an encoder: give it to a model, such as encoder_decoder "
            f"with encoder={name!r}."
        )
    builder = registry.lookup("model", name)
    check_classes(num_classes)
    # What a name stands for, such as the skips of fcn16s, is not for choice.
    fixed = getattr(builder, "keywords", {})
    known = tuple(inspect.signature(builder).parameters)[1:]
    known = tuple(part for part in known if part not in fixed)
    for part in kwargs:
        if part not in known:
            raise ValueError(f"{name} has no part {part!r}{suggest_name(part, known)}")
    for key in {"dtype", "param_dtype"} & kwargs.keys():
        kwargs[key] = _float(key, kwargs[key])
    model = builder(num_classes, **_hashable(kwargs))
    return model.clone(logits_dtype=_float("logits_dtype", logits_dtype))


def _hashable(value):
    """The same with tuples for lists, as modules must hash and JSON knows only lists."""
    if isinstance(value, dict):
        return {key: _hashable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return value


def _float(key: str, value) -> jnp.dtype:
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{key}={value!r} is no type to compute in; take float32, bfloat16 or "
            "float16."
        )
    return dtype
