"""FCN: a fully convolutional classifier, its scores upsampled and refined by skips.

Source: Long, Shelhamer & Darrell, https://arxiv.org/abs/1411.4038; layers,
initializers and crops are those of the authors' released nets.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.components import (
    Component,
    check_arguments,
    create_component,
    encoder_features,
)
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import Features
from jaxseg.models.heads import DENSE_SIDES, DenseAsConvolutions, Scores
from jaxseg.models.layers import ConvTranspose
from jaxseg.models.options import LayerOptions
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.skips import Sum
from jaxseg.models.upsamplers import Transposed, bilinear_init
from jaxseg.ops.resize import crop_to


def fcn(
    num_classes: int,
    *,
    skips: int,
    scales: tuple[float, ...] = (1.0, 1.0),
    encoder: Component = "vgg16",
    geometry: str = "same",
    learned: bool = False,
    hidden: int = 4096,
    dropout: float = 0.5,
    encoder_kwargs: Mapping[str, Any] = {},
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """FCN with any number of skips; `fcn32s`, `fcn16s` and `fcn8s` have 0, 1 and 2.

    The scores of a 1x1 convolution are upsampled by transposed convolutions that
    interpolate bilinearly, and the scores of finer poolings are added on the way. All
    score layers are initialized to zero, so at the first step only they receive
    gradient; start from the pretrained weights of a classifier.

    On VGG16 with 21 classes: 134,346,581, 134,357,354 and 134,362,751 parameters. The
    parameters of a net have the same names in the nets with more skips.

    Args:
        num_classes: K.
        skips: number of finer levels whose scores are added.
        scales: constant factor on each of these levels before its scores, coarse to
            fine; `fcn8s_atonce` has 0.01 and 0.0001.
        encoder: one of `list_encoders()`, or a component. AlexNet and VGG16 are followed
            by their fully connected layers fc6 and fc7, as convolutions.
        geometry: "same" pads every convolution to keep its size. "released" is the
            geometry of the authors' nets, for VGG16 and AlexNet: 100 zeros around the
            image, and crops.
        learned: whether the upsampling between skips is learned, across classes, as in
            the paper; in the released nets it is fixed. The last one always is.
        hidden: channels of fc6 and fc7.
        dropout: dropout rate after fc6 and fc7.
        encoder_kwargs: further keyword arguments of the encoder.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].

    Raises:
        ValueError: if the encoder has too few levels for the skips, or no released
            geometry.
    """
    released = _released(encoder, geometry, skips)
    backbone = create_component(
        "encoder",
        encoder,
        options=options,
        **released["encoder"] | check_arguments("encoder", encoder_kwargs),
    )
    features = encoder_features(backbone).merged()
    levels = _levels(features, skips)
    padding = "SAME" if geometry == "same" else "VALID"
    dense = None
    if isinstance(encoder, str) and encoder in DENSE_SIDES:
        dense = DenseAsConvolutions(
            DENSE_SIDES[encoder],
            (hidden, hidden),
            padding=padding,
            dropout=dropout,
            options=options,
        )
    decoder = Decoder(
        upsamplers=tuple(
            Transposed(
                kernel=4,
                strides=2,
                per_channel=not learned,
                fixed=not learned,
                fit=geometry == "same",
                options=options,
            )
            for _ in levels
        ),
        skips=tuple(
            Sum(
                meet=_crop(offset),
                scale=scale,
                kernel_init=nn.initializers.zeros,
                options=options,
            )
            for _, offset, scale in zip(levels, released["skip_offsets"], scales)
        ),
        blocks=tuple(ConvBlock((), options=options) for _ in levels),
        levels=levels,
        pooled_skips=True,
        options=options,
    )
    # The last upsampling is fixed, in the paper and in the released nets, and computed
    # in float32, because its results are compared with each other.
    stride = features.strides[levels[-1] if levels else -1]
    kernel = released["kernel"] or 2 * stride
    head = ConvTranspose(
        num_classes,
        (kernel, kernel),
        strides=stride,
        padding=padding,
        per_channel=True,
        use_bias=False,
        kernel_init=bilinear_init(stride),
        fixed=True,
        param_dtype=options.param_dtype,
    )
    return Segmenter(
        backbone,
        decoder,
        head,
        neck=Scores(num_classes, dense, options=options),
        restore_size=_crop(released["offset"]),
        options=options,
    )


fcn32s = partial(fcn, skips=0)
fcn16s = partial(fcn, skips=1)
fcn8s = partial(fcn, skips=2)
fcn8s_atonce = partial(fcn, skips=2, scales=(0.01, 0.0001))


def _crop(offset):
    return partial(crop_to, offset=(offset, offset))


def _levels(features: Features, skips: int) -> tuple[int, ...]:
    deepest = len(features.strides) - 1
    levels = tuple(range(deepest - 1, deepest - 1 - skips, -1))
    strides = features.strides
    if deepest < skips or any(strides[i] * 2 != strides[i + 1] for i in levels):
        raise ValueError(
            f"FCN with {skips} skips needs {skips} levels whose stride is half that of "
            f"the next one, and the encoder has strides {strides}. Use an "
            "output_stride of 32, or a net with fewer skips (fcn32s has none)."
        )
    return levels


def _released(encoder: Component, geometry: str, skips: int) -> dict:
    """Paddings and crops of the released nets; none for "same"."""
    if geometry == "same":
        return dict(encoder={}, kernel=None, offset=0, skip_offsets=(0, 0))
    if geometry != "released":
        raise ValueError(f'geometry={geometry!r}: use "same" or "released".')
    if encoder in ("vgg16", "vgg16_bn"):
        return dict(
            # With the padding of the convolution itself, 100.
            encoder={"margin": 99},
            kernel=None,
            offset=(19, 27, 31)[skips],
            skip_offsets=(5, 9),
        )
    if encoder == "alexnet" and skips == 0:
        return dict(
            encoder={"first_padding": 100, "round_up": False},
            kernel=63,
            offset=18,
            skip_offsets=(),
        )
    raise ValueError(
        'geometry="released" is known for vgg16, and for fcn32s on alexnet, but not '
        f'for {encoder!r} with {skips} skips; use geometry="same".'
    )
