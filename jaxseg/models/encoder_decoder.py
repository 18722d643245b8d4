"""The free combination: any encoder, skip, upsampler and block."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jax.numpy as jnp

from jaxseg.models.components import (
    Component,
    check_arguments,
    create_component,
    encoder_features,
)
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import Features
from jaxseg.models.layers import Conv, Dtype, he_normal
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.skips import NoSkip
from jaxseg.models.upsamplers import Unpool

WIDEST = 256
"""Channels that no level of a decoder exceeds, if it is not told its widths."""


def encoder_decoder(
    num_classes: int,
    *,
    encoder: Component = "vgg16_bn",
    skip: Component = "concat",
    upsampler: Component = "bilinear",
    block: Component = "bn",
    widths: tuple[int, ...] | None = None,
    depth: int = 2,
    image_level: bool = False,
    head_kernel: int = 1,
    encoder_kwargs: Mapping[str, Any] = {},
    skip_kwargs: Mapping[str, Any] = {},
    upsampler_kwargs: Mapping[str, Any] = {},
    block_kwargs: Mapping[str, Any] = {},
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """A network of freely chosen parts.

    The decoder climbs every level of the encoder. Where the finest of them is coarser
    than the image, bilinear interpolation of the logits does the rest, or one more
    level of the decoder, with `image_level`.

    Each part is a name, a module (copied for every level) or what makes one: a class
    or `functools.partial`, called with the arguments named below and with its own.

    Args:
        num_classes: K.
        encoder: one of `list_encoders()`; makers are called with `remat`, `dtype`,
            `param_dtype` and `axis_name`.
        skip: one of `list_skips()`; makers are called with `dtype` and `param_dtype`.
        upsampler: one of `list_upsamplers()`; makers are called with `features` (the
            channels of the level), `dtype` and `param_dtype`.
        block: one of `list_blocks()`; makers are called with `features` (the channels
            of each convolution), `dtype`, `param_dtype` and `axis_name`.
        widths: channels of the decoder at each level that it climbs to, deepest first;
            by default those of the encoder there, at most 256.
        depth: convolutions in each block.
        image_level: whether the decoder climbs one level more, to the image's own size,
            without a skip; by default as wide as the level before.
        head_kernel: side of the last convolution's kernel, in cells.
        encoder_kwargs: what else the encoder takes, such as `output_stride`.
        skip_kwargs: likewise.
        upsampler_kwargs: likewise, such as `kernel`.
        block_kwargs: likewise, such as `kernel`.
        remat: compute the activations of every level again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].

    Raises:
        ValueError: if a name is unknown, the parts do not fit together, there is not
            one width for each level, or the encoder is at the image's size already.
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype)
    encoder = create_component(
        "encoder",
        encoder,
        remat=remat,
        axis_name=axis_name,
        **layers,
        **check_arguments("encoder", encoder_kwargs),
    )
    features = encoder_features(encoder).merged()
    if image_level:
        _check_coarser(features)
        features = features.with_image(features.maps[0])  # has its number of channels
    widths = _widths(features, widths)
    upsamplers = tuple(
        create_component(
            "upsampler",
            upsampler,
            features=width,
            **layers,
            **check_arguments("upsampler", upsampler_kwargs),
        )
        for width in widths
    )
    if any(isinstance(x, Unpool) for x in upsamplers):
        _check_places(features)
    strides = {getattr(x, "strides", None) for x in upsamplers} - {None}
    if strides:
        _check_strides(features, strides)
    skips = tuple(
        create_component("skip", skip, **layers, **check_arguments("skip", skip_kwargs))
        for _ in widths
    )
    decoder = Decoder(
        upsamplers=upsamplers,
        skips=(*skips[:-1], NoSkip()) if image_level else skips,
        blocks=tuple(
            create_component(
                "block",
                block,
                features=(width,) * depth,
                axis_name=axis_name,
                **layers,
                **check_arguments("block", block_kwargs),
            )
            for width in widths
        ),
        remat=remat,
    )
    side = (head_kernel, head_kernel)
    head = Conv(num_classes, side, kernel_init=he_normal, **layers)
    return Segmenter(encoder, decoder, head, image_level=image_level)


def _widths(features: Features, widths) -> tuple[int, ...]:
    channels = tuple(x.shape[-1] for x in features.maps)
    steps = len(channels) - 1
    if widths is None:
        return tuple(min(c, WIDEST) for c in reversed(channels[:-1]))
    if len(widths) != steps or min(widths, default=1) < 1:
        raise ValueError(
            f"widths={tuple(widths)}: this encoder has {steps + 1} levels (strides "
            f"{', '.join(map(str, features.strides))}), so the decoder climbs to "
            f"{steps} and takes {steps} positive widths, deepest first."
        )
    return tuple(widths)


def _check_coarser(features: Features) -> None:
    if features.strides[0] == 1:
        raise ValueError(
            "image_level adds a level of the image's size to the decoder, and this "
            "encoder's finest level has it already; leave it out."
        )


def _check_places(features: Features) -> None:
    without = [
        stride
        for stride, places in zip(features.strides[1:], features.places[1:])
        if places is None
    ]
    if without:
        raise ValueError(
            "Unpooling needs an encoder that max-pools at every level, and this one "
            f"reaches stride {', '.join(map(str, without))} without. Take another "
            "upsampler (bilinear, nearest, transposed, pixel_shuffle), or one of the "
            "encoders alexnet, googlenet (and their variants), segnet_basic, unet, "
            "vgg16 or vgg16_bn."
        )


def _check_strides(features: Features, strides: set[int]) -> None:
    steps = {b // a for a, b in pairwise(features.strides)}
    if steps - strides:
        raise ValueError(
            f"The upsampler grows maps {', '.join(map(str, strides))} times, and this "
            f"encoder's strides {features.strides} differ by factors of "
            f"{', '.join(map(str, sorted(steps)))}. "
            + (
                f'Give {{"strides": {steps.pop()}}} in upsampler_kwargs, or take'
                if len(steps) == 1
                else "Take"
            )
            + " one that grows to any size (bilinear, nearest)."
        )
