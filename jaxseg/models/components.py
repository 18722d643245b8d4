"""Parts of a network, by name or as objects, and what fits together."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.models.blocks import BLOCKS
from jaxseg.models.encoders import ENCODERS, Features
from jaxseg.models.skips import SKIPS
from jaxseg.models.upsamplers import UPSAMPLERS
from jaxseg.utils import registry

Component = str | nn.Module | Callable[..., nn.Module]
"""A name; a module, taken as it is; or what makes a module from keyword arguments."""

for _kind, _table in (
    ("encoder", ENCODERS),
    ("skip", SKIPS),
    ("upsampler", UPSAMPLERS),
    ("block", BLOCKS),
):
    registry.add_built_in(_kind, _table)


def create_component(kind: str, component: Component, **kwargs) -> nn.Module:
    """Builds a component.

    Args:
        kind: "encoder", "skip", "upsampler" or "block".
        component: a name; a module, of which a copy is taken as it is; or what makes a
            module, called with the keyword arguments.
        **kwargs: of the component.

    Returns:
        A module of its own, which shares no parameters.

    Raises:
        ValueError: if the name is unknown, or the component does not take an argument.
    """
    if isinstance(component, nn.Module):
        return component.clone(name=None)
    if isinstance(component, str):
        component = registry.lookup(kind, component)
    try:
        return component(**kwargs)
    except TypeError as error:
        raise ValueError(f"The {kind} cannot be built: {error}") from error


@lru_cache(maxsize=256)
def encoder_features(encoder: nn.Module) -> Features:
    """The shapes of an encoder's levels, for a colour image of 256x256 pixels.

    Args:
        encoder: called as `(image, train=...)`, returns `Features`.

    Returns:
        Its `Features` with shapes in the place of arrays; nothing is computed.
    """
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(
        lambda key, image: encoder.init_with_output(key, image, train=False)[0],
        key,
        image,
    )


def create_dilated(encoder: Component, **kwargs) -> nn.Module:
    """Builds an encoder that keeps its resolution by dilation.

    Args:
        encoder: the name of a ResNet, or what `create_component` takes.
        **kwargs: of the encoder, such as `output_stride`.

    Returns:
        A module of its own.

    Raises:
        ValueError: if the encoder has no dilated form.
    """
    resnets = tuple(sorted(name for name in ENCODERS if name.startswith("resnet")))
    if isinstance(encoder, str) and encoder in set(ENCODERS) - set(resnets):
        raise ValueError(
            f"The encoder {encoder!r} cannot be dilated; take one of "
            f"{', '.join(resnets)}, or pass one that takes output_stride."
        )
    return create_component("encoder", encoder, **kwargs)


def check_classes(num_classes: int) -> None:
    """Refuses a model without classes.

    Args:
        num_classes: K.

    Raises:
        ValueError: if it is no whole number, or below 1.
    """
    # bool is an int, and True no number of classes.
    if not isinstance(num_classes, int | np.integer) or isinstance(num_classes, bool):
        raise ValueError(f"num_classes={num_classes!r}: give a whole number.")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: a model needs at least 1 class.")


def check_arguments(kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a part's own arguments, without what all parts are given anyway.

    Args:
        kind: of part, for the message.
        arguments: keyword arguments.

    Returns:
        The same as a dict.

    Raises:
        ValueError: if one of them is the whole network's.
    """
    shared = {"dtype", "param_dtype", "axis_name", "remat"} & arguments.keys()
    if shared:
        raise ValueError(
            f"{kind}_kwargs has {', '.join(sorted(shared))}, which the whole network "
            "shares; give it to the network."
        )
    return dict(arguments)
