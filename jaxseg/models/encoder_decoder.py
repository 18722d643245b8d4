"""The free combination: any encoder, skip, upsampler and block."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from jaxseg.models.components import (
    Component,
    check_arguments,
    create_component,
    encoder_features,
    max_pooling_encoders,
)
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import Features
from jaxseg.models.options import LayerOptions
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.skips import NoSkip
from jaxseg.models.upsamplers import Unpool

WIDEST = 256
"""Largest default number of channels of a decoder level."""


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
    decoder: Component | None = None,
    head: Component = "conv",
    head_kernel: int = 1,
    encoder_kwargs: Mapping[str, Any] = {},
    skip_kwargs: Mapping[str, Any] = {},
    upsampler_kwargs: Mapping[str, Any] = {},
    block_kwargs: Mapping[str, Any] = {},
    decoder_kwargs: Mapping[str, Any] = {},
    head_kwargs: Mapping[str, Any] = {},
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """A network of freely chosen components.

    The decoder has one level for each level of the encoder but the deepest. Where the
    finest of them is coarser than the image, the logits are resized bilinearly, or the
    decoder has one more level, with `image_level`.

    Each component is a name, a module (copied for every level), or a class or function
    that returns one, such as `functools.partial(Transposed, kernel=8)`. Names, classes
    and functions are called with `options` (a `LayerOptions`), with the arguments
    listed below, and with the keyword arguments given for that component.

    Args:
        num_classes: K.
        encoder: one of `list_encoders()`, or another component.
        skip: one of `list_skips()`, or another component.
        upsampler: one of `list_upsamplers()`, or another component; called with
            `features`, the channels of the level.
        block: one of `list_blocks()`, or another component; called with `features`, the
            channels of each convolution.
        widths: channels of each decoder level, deepest first; by default those of the
            encoder at that level, at most 256.
        depth: convolutions in each block.
        image_level: whether the decoder has one more level, of the size of the image and
            without a skip; by default as wide as the level before.
        decoder: None for the one described above. A registered name or another
            component replaces it, and the skip, upsampler, block, widths, depth and
            `image_level` are not used; called with `features`, the shapes of the
            encoder's levels (`Features`), and called as `(features, train=...)` it
            returns one map.
        head: "conv", or another component; called with `num_classes`. It maps the
            decoder's map to scores.
        head_kernel: side of the kernel of the head "conv", in cells.
        encoder_kwargs: further keyword arguments of the encoder, such as
            `output_stride`.
        skip_kwargs: further keyword arguments of the skips.
        upsampler_kwargs: further keyword arguments of the upsamplers, such as `kernel`.
        block_kwargs: further keyword arguments of the blocks, such as `kernel`.
        decoder_kwargs: further keyword arguments of `decoder`.
        head_kwargs: further keyword arguments of the head.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].

    Raises:
        ValueError: if a name is unknown, the components do not fit together, the number
            of widths is not that of the levels, or `image_level` is set and the
            encoder has a level of the image's size.
    """

    def create(kind, component, component_kwargs, **kwargs):
        own = check_arguments(kind, component_kwargs)
        return create_component(kind, component, options=options, **kwargs, **own)

    backbone = create("encoder", encoder, encoder_kwargs)
    features = encoder_features(backbone).merged()
    if head == "conv":
        head_kwargs = {"kernel": head_kernel, **head_kwargs}
    scores = create("head", head, head_kwargs, num_classes=num_classes)
    if decoder is not None:
        fused = create("decoder", decoder, decoder_kwargs, features=features)
        return Segmenter(backbone, fused, scores)
    if image_level:
        _check_coarser(features)
        features = features.with_image(features.maps[0])  # has its number of channels
    widths = _widths(features, widths)
    upsamplers = tuple(
        create("upsampler", upsampler, upsampler_kwargs, features=width)
        for width in widths
    )
    if any(isinstance(x, Unpool) for x in upsamplers):
        _check_places(features)
    strides = {x.strides for x in upsamplers if hasattr(x, "strides")}
    if strides:
        _check_strides(features, strides)
    skips = tuple(create("skip", skip, skip_kwargs) for _ in widths)
    levels = Decoder(
        upsamplers=upsamplers,
        skips=(*skips[:-1], NoSkip()) if image_level else skips,
        blocks=tuple(
            create("block", block, block_kwargs, features=(width,) * depth)
            for width in widths
        ),
        options=options,
    )
    return Segmenter(backbone, levels, scores, image_level=image_level)


def _widths(features: Features, widths: tuple[int, ...] | None) -> tuple[int, ...]:
    channels = tuple(x.shape[-1] for x in features.maps)
    steps = len(channels) - 1
    if widths is None:
        return tuple(min(c, WIDEST) for c in reversed(channels[:-1]))
    if len(widths) != steps or min(widths, default=1) < 1:
        raise ValueError(
            f"widths={tuple(widths)}: this encoder has {steps + 1} levels (strides "
            f"{', '.join(map(str, features.strides))}), so the decoder needs "
            f"{steps} positive widths, deepest first."
        )
    return tuple(widths)


def _check_coarser(features: Features) -> None:
    if features.strides[0] == 1:
        raise ValueError(
            "image_level adds a level of the image's size to the decoder, but this "
            "encoder already has one; leave image_level out."
        )


def _check_places(features: Features) -> None:
    without = features.strides_without_pooling
    if without:
        raise ValueError(
            "Unpooling needs an encoder that max-pools at every level, and this one "
            f"does not at stride {', '.join(map(str, without))}. Use another upsampler "
            "(bilinear, nearest, transposed, pixel_shuffle), or one of the encoders "
            f"{', '.join(max_pooling_encoders())}."
        )


def _check_strides(features: Features, strides: set[int]) -> None:
    steps = {b // a for a, b in pairwise(features.strides)}
    if steps - strides:
        raise ValueError(
            f"The upsampler enlarges maps {', '.join(map(str, strides))} times, but "
            f"the strides {features.strides} of the encoder differ by factors of "
            f"{', '.join(map(str, sorted(steps)))}. "
            + (
                f'Set upsampler_kwargs={{"strides": {steps.pop()}}}, or use'
                if len(steps) == 1
                else "Use"
            )
            + " an upsampler for any size (bilinear, nearest)."
        )
