"""The components of a network, by name or as objects, and checks of their arguments."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.models.blocks import BLOCKS
from jaxseg.models.encoders import ENCODERS, Features
from jaxseg.models.heads import HEADS
from jaxseg.models.options import LayerOptions
from jaxseg.models.skips import SKIPS
from jaxseg.models.upsamplers import UPSAMPLERS
from jaxseg.utils import registry

Component = str | nn.Module | Callable[..., nn.Module]
"""A name, a module, or a class or function that returns a module."""

for _kind, _table in (
    ("encoder", ENCODERS),
    ("skip", SKIPS),
    ("upsampler", UPSAMPLERS),
    ("block", BLOCKS),
    ("decoder", {}),
    ("head", HEADS),
):
    registry.add_built_in(_kind, _table)


def create_component(
    kind: str,
    component: Component,
    *,
    options: LayerOptions = LayerOptions(),
    **kwargs,
) -> nn.Module:
    """Creates a component.

    Args:
        kind: "encoder", "skip", "upsampler", "block", "decoder" or "head".
        component: a name; a module, which is copied; or a class or function that
            returns a module, called with `options` and the keyword arguments.
        options: see `LayerOptions`.
        **kwargs: further keyword arguments of the component.

    Returns:
        A module that shares no parameters with others.

    Raises:
        ValueError: if the name is unknown, or the component does not accept an
            argument.
    """
    if isinstance(component, nn.Module):
        return component.clone(name=None)
    create = (
        registry.lookup(kind, component) if isinstance(component, str) else component
    )
    try:
        return create(options=options, **kwargs)
    except TypeError as error:
        raise ValueError(f"The {kind} cannot be built: {error}") from error


@lru_cache(maxsize=256)
def encoder_features(encoder: nn.Module) -> Features:
    """The shapes of an encoder's levels, for a color image of 256x256 pixels.

    Args:
        encoder: called as `(image, train=...)`, returns `Features`.

    Returns:
        Its `Features` with shapes in place of arrays; nothing is computed.
    """
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(
        lambda key, image: encoder.init_with_output(key, image, train=False)[0],
        key,
        image,
    )


def create_dilated(
    encoder: Component, *, options: LayerOptions = LayerOptions(), **kwargs
) -> nn.Module:
    """Creates an encoder that keeps its resolution by dilation.

    Args:
        encoder: as in `create_component`; with an argument `output_stride`.
        options: see `LayerOptions`.
        **kwargs: further keyword arguments of the encoder, such as `output_stride`.

    Returns:
        A module that shares no parameters with others.

    Raises:
        ValueError: if the encoder has no argument `output_stride`.
    """
    if isinstance(encoder, str) and not _can_dilate(encoder):
        dilatable = filter(_can_dilate, registry.names("encoder"))
        raise ValueError(
            f"The encoder {encoder!r} cannot be dilated; use one of "
            f"{', '.join(dilatable)}, or another with an argument output_stride."
        )
    return create_component("encoder", encoder, options=options, **kwargs)


def _can_dilate(name: str) -> bool:
    encoder = registry.lookup("encoder", name)
    return "output_stride" in inspect.signature(encoder).parameters


def max_pooling_encoders() -> tuple[str, ...]:
    """Names of the encoders that max-pool at every level, so that a decoder can unpool.

    Encoders that cannot be created by their name alone are left out.
    """
    found = []
    for name in registry.names("encoder"):
        try:
            features = encoder_features(create_component("encoder", name)).merged()
        except (ValueError, ImportError):
            continue
        if not features.strides_without_pooling:
            found.append(name)
    return tuple(found)


def check_classes(num_classes: int) -> None:
    """Checks a number of classes.

    Args:
        num_classes: K.

    Raises:
        ValueError: if it is not an integer, or below 1.
    """
    # A bool is an int, but True is not a number of classes.
    if not isinstance(num_classes, int | np.integer) or isinstance(num_classes, bool):
        raise ValueError(f"num_classes={num_classes!r} is not a whole number.")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: a model needs at least 1 class.")


def check_arguments(kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Copies a component's own keyword arguments, if no option is among them.

    Args:
        kind: of the component, for the message.
        arguments: keyword arguments.

    Returns:
        The same as a dict.

    Raises:
        ValueError: if one of them is an option of the whole network.
    """
    shared = {"options", *(f.name for f in dataclasses.fields(LayerOptions))}
    shared &= arguments.keys()
    if shared:
        raise ValueError(
            f"{kind}_kwargs has {', '.join(sorted(shared))}, which the whole network "
            "shares; set it for the network."
        )
    return dict(arguments)
