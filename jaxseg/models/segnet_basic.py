"""SegNet-Basic and the seven decoders that its paper compares it with.

All have the same encoder, four 7x7 convolutions, and are fed raw pixels in 0..255
(`mean=0`, `std=1`): the first layer, LRN, is almost the identity on small values.

The paper leaves open whether FCN-Basic's decoders have BatchNorm (here they have none)
and what EncoderAddition adds at full size (here that level's map, as at the others).

Source: Badrinarayanan, Kendall & Cipolla, https://arxiv.org/abs/1511.00561, Table 1 and
Fig. 3; the layers of SegNet-Basic are those of SegNet-Tutorial's prototxt.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import segnet_basic as basic_encoder
from jaxseg.models.heads import Scores, identity
from jaxseg.models.layers import Conv, Dtype, depthwise_conv, he_normal
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.segnet import segnet_norm
from jaxseg.models.skips import NoSkip, Sum
from jaxseg.models.upsamplers import Transposed, Unpool

LEVELS = 4
"""Poolings, and so levels that a decoder climbs."""


def segnet_basic(
    num_classes: int,
    *,
    width: int = 64,
    dropout: float = 0.0,
    conv: Callable[..., nn.Module] = Conv,
    addition: bool = False,
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """SegNet-Basic: four 7x7 convolutions down, four up, no ReLU on the way up.

    1,416,587 parameters with 11 classes and width 64.

    Args:
        num_classes: K.
        width: channels of every convolution.
        dropout: rate after the two deepest poolings and decoder stages; the Bayesian
            variant has 0.5.
        conv: makes the decoder's convolutions; `depthwise_conv` is the variant
            SingleChannelDecoder.
        addition: whether the encoder's maps are added to the decoder's at every level,
            as in the variant EncoderAddition.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype)
    block = partial(
        ConvBlock,
        (width,),
        kernel=7,
        norm=segnet_norm,
        activation=None,
        conv=conv,
        axis_name=axis_name,
        **layers,
    )
    skip = partial(Sum, project="none") if addition else NoSkip
    decoder = Decoder(
        upsamplers=tuple(Unpool() for _ in range(LEVELS)),
        skips=tuple(skip() for _ in range(LEVELS)),
        blocks=tuple(block(dropout=rate) for rate in (dropout, dropout, 0.0, 0.0)),
        skip_last=True,
        remat=remat,
    )
    encoder = _encoder(width, remat, dropout=dropout, axis_name=axis_name, **layers)
    return Segmenter(encoder, decoder, _classifier(num_classes, **layers))


segnet_basic_encoder_addition = partial(segnet_basic, addition=True)
segnet_basic_single_channel = partial(segnet_basic, conv=depthwise_conv)


def bilinear_interpolation(
    num_classes: int,
    *,
    width: int = 64,
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """The smallest of the variants: scores of the deepest level, interpolated.

    Args:
        num_classes: K.
        width: channels of every convolution.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype)
    encoder = _encoder(width, remat, axis_name=axis_name, **layers)
    return Segmenter(encoder, None, _classifier(num_classes, **layers))


def fcn_basic(
    num_classes: int,
    *,
    addition: bool = True,
    reduction: bool = True,
    width: int = 64,
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """FCN-Basic: 8x8 transposed convolutions, and the poolings' outputs added.

    The kernels interpolate at the start: FCN's bilinear 4x4 with zeros around. (The
    8x8 that FCN would start from is for a stride of 4, and four times too large here.)

    Args:
        num_classes: K.
        addition: whether the poolings' outputs are added on the way up.
        reduction: whether the decoder has K channels, to which each level is reduced
            by a 1x1 convolution, rather than `width`.
        width: channels of every convolution.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype)
    if reduction:
        add = partial(Sum, project="level", kernel_init=he_normal, **layers)
    else:
        add = partial(Sum, project="none", **layers)
    skip = add if addition else NoSkip
    decoder = Decoder(
        upsamplers=tuple(Transposed(kernel=8, **layers) for _ in range(LEVELS)),
        # No pooling opens the finest level, so nothing is added there.
        skips=(*(skip() for _ in range(LEVELS - 1)), NoSkip()),
        blocks=tuple(ConvBlock(()) for _ in range(LEVELS)),
        pooled_skips=True,
        remat=remat,
    )
    encoder = _encoder(width, remat, axis_name=axis_name, **layers)
    if reduction:
        scores = Scores(num_classes, kernel_init=he_normal, **layers)
        return Segmenter(encoder, decoder, identity, neck=scores, remat=remat)
    return Segmenter(encoder, decoder, _classifier(num_classes, **layers))


fcn_basic_no_addition = partial(fcn_basic, addition=False)
fcn_basic_no_dim_reduction = partial(fcn_basic, reduction=False)
fcn_basic_no_addition_no_dim_reduction = partial(
    fcn_basic, addition=False, reduction=False
)


def _encoder(width, remat, dropout=0.0, **layers):
    return basic_encoder(
        widths=(width,) * LEVELS,
        dropouts=(0.0, 0.0, dropout, dropout),
        norm=segnet_norm,
        remat=remat,
        **layers,
    )


def _classifier(num_classes, **layers):
    return Conv(num_classes, (1, 1), kernel_init=he_normal, **layers)
