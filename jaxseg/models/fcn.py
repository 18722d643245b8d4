"""FCN: a classifier made convolutional, its scores enlarged and refined by skips.

Source: Long, Shelhamer & Darrell, https://arxiv.org/abs/1411.4038; layers, fillers and
crops are those of the authors' released nets.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.components import (
    Component,
    check_arguments,
    create_component,
    encoder_features,
)
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import Features
from jaxseg.models.heads import DenseAsConvolutions, Scores
from jaxseg.models.layers import ConvTranspose, Dtype
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.skips import Sum
from jaxseg.models.upsamplers import Transposed, bilinear_init
from jaxseg.ops.resize import crop_to

DENSE_SIDES = {"alexnet": 6, "alexnet_torchvision": 6, "vgg16": 7, "vgg16_bn": 7}
"""Side of the map that each encoder's first fully connected layer covers, in cells."""

_zeros = nn.initializers.zeros


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
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """FCN with any number of skips; `fcn32s`, `fcn16s` and `fcn8s` have 0, 1 and 2.

    Scores of 1x1 convolutions are enlarged by transposed convolutions that interpolate
    bilinearly, and the scores of finer poolings are added on the way. All scores start
    from zero, so that at the first step none but they receive gradient; train from a
    classifier's weights.

    On VGG16 with 21 classes: 134,346,581, 134,357,354 and 134,362,751 parameters. A
    net's parameters have the same names in the nets with more skips.

    Args:
        num_classes: K.
        skips: number of finer levels whose scores are added.
        scales: constant factor on each of these levels before its scores, coarse to
            fine; `fcn8s_atonce` has 0.01 and 0.0001.
        encoder: one of `list_encoders()`, or what makes one. AlexNet and VGG16 bring
            their fully connected layers fc6 and fc7 as convolutions.
        geometry: "same" pads every convolution as it needs. "released" is that of the
            authors' nets, for VGG16 and AlexNet: 100 zeros around the image, and crops.
        learned: whether the enlargements between skips are learned, across classes, as
            in the paper; in the released nets all are fixed. The last always is.
        hidden: channels of fc6 and fc7.
        dropout: rate after each of these.
        encoder_kwargs: what else the encoder takes.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the last enlargement and the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].

    Raises:
        ValueError: if the encoder has too few levels for the skips, or no released
            geometry.
    """
    released = _released(encoder, geometry, skips)
    layers = dict(dtype=dtype, param_dtype=param_dtype)
    encoder_kwargs = released["encoder"] | check_arguments("encoder", encoder_kwargs)
    side = DENSE_SIDES.get(encoder) if isinstance(encoder, str) else None
    encoder = create_component(
        "encoder", encoder, remat=remat, axis_name=axis_name, **layers, **encoder_kwargs
    )
    features = encoder_features(encoder).merged()
    levels = _levels(features, skips)
    padding = "SAME" if geometry == "same" else "VALID"
    block = None
    if side is not None:
        block = DenseAsConvolutions(
            side,
            (hidden, hidden),
            padding=padding,
            dropout=dropout,
            axis_name=axis_name,
            **layers,
        )
    up = partial(
        Transposed,
        per_channel=not learned,
        fixed=not learned,
        fit=geometry == "same",
        **layers,
    )
    decoder = Decoder(
        upsamplers=tuple(up(kernel=4, strides=2) for _ in levels),
        skips=tuple(
            Sum(meet=_crop(offset), scale=scale, kernel_init=_zeros, **layers)
            for offset, scale in zip(released["skip_offsets"], scales)
        )[: len(levels)],
        blocks=tuple(ConvBlock(()) for _ in levels),
        levels=levels,
        pooled_skips=True,
        remat=remat,
    )
    # The last enlargement is fixed, in the paper as in the released nets, and done in
    # float32, since it is what is compared.
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
        param_dtype=param_dtype,
    )
    return Segmenter(
        encoder,
        decoder,
        head,
        neck=Scores(num_classes, block, **layers),
        restore_size=_crop(released["offset"]),
        remat=remat,
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
            f"This net takes {skips} skips, each at half the stride of the level below "
            f"it, and the encoder has strides {strides}. Take an output_stride of 32, "
            "or a net with fewer skips (fcn32s has none)."
        )
    return levels


def _released(encoder: Component, geometry: str, skips: int) -> dict:
    """Paddings and crops of the released nets; none for "same"."""
    if geometry == "same":
        return dict(encoder={}, kernel=None, offset=0, skip_offsets=(0, 0))
    if geometry != "released":
        raise ValueError(f'geometry={geometry!r}: take "same" or "released".')
    if encoder in ("vgg16", "vgg16_bn"):
        return dict(
            # A margin of 99 and the convolution's own 1: pad 100.
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
        f'geometry="released" has crops for vgg16, and for fcn32s on alexnet, but not '
        f'for {encoder!r} with {skips} skips; take geometry="same".'
    )
