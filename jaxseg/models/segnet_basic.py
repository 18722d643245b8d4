"""SegNet-Basic and the seven decoders that its paper compares it with.

All have the same encoder, four 7x7 convolutions, and expect raw pixels in 0..255
(`mean=0`, `std=1`): the first layer, LRN, is almost the identity on small values.

The paper does not specify whether FCN-Basic's decoders have BatchNorm (here they do
not) and what EncoderAddition adds at full size (here the map of that level, as at the
others).

Source: Badrinarayanan, Kendall & Cipolla, https://arxiv.org/abs/1511.00561, Table 1 and
Fig. 3; the layers of SegNet-Basic are those of SegNet-Tutorial's prototxt.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import segnet_basic as basic_encoder
from jaxseg.models.heads import Scores, identity
from jaxseg.models.layers import Conv, depthwise_conv, he_normal
from jaxseg.models.options import LayerOptions
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.segnet import segnet_norm
from jaxseg.models.skips import NoSkip, Sum
from jaxseg.models.upsamplers import Transposed, Unpool

LEVELS = 4
"""Number of poolings, and of decoder levels."""


def segnet_basic(
    num_classes: int,
    *,
    width: int = 64,
    dropout: float = 0.0,
    conv: Callable[..., nn.Module] = Conv,
    addition: bool = False,
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """SegNet-Basic: four 7x7 convolutions down, four up, no ReLU on the way up.

    1,416,587 parameters with 11 classes and width 64.

    Args:
        num_classes: K.
        width: channels of every convolution.
        dropout: dropout rate after the two deepest poolings and decoder stages; 0.5 in
            the Bayesian variant.
        conv: class or function that makes the decoder's convolutions;
            `depthwise_conv` is the variant SingleChannelDecoder.
        addition: whether the encoder's maps are added to the decoder's at every level,
            as in the variant EncoderAddition.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].
    """
    decoder = Decoder(
        upsamplers=tuple(Unpool() for _ in range(LEVELS)),
        skips=tuple(
            Sum(project="none") if addition else NoSkip() for _ in range(LEVELS)
        ),
        blocks=tuple(
            ConvBlock(
                (width,),
                kernel=7,
                norm=segnet_norm,
                activation=None,
                dropout=rate,
                conv=conv,
                options=options,
            )
            for rate in (dropout, dropout, 0.0, 0.0)
        ),
        skip_last=True,
        options=options,
    )
    encoder = _encoder(width, options, dropout)
    return Segmenter(encoder, decoder, _classifier(num_classes, options))


segnet_basic_encoder_addition = partial(segnet_basic, addition=True)
segnet_basic_single_channel = partial(segnet_basic, conv=depthwise_conv)


def bilinear_interpolation(
    num_classes: int, *, width: int = 64, options: LayerOptions = LayerOptions()
) -> Segmenter:
    """The smallest of the variants: logits of the deepest level, interpolated.

    Args:
        num_classes: K.
        width: channels of every convolution.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].
    """
    return Segmenter(_encoder(width, options), None, _classifier(num_classes, options))


def fcn_basic(
    num_classes: int,
    *,
    addition: bool = True,
    reduction: bool = True,
    width: int = 64,
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """FCN-Basic: 8x8 transposed convolutions, and skips from the poolings, added.

    The kernels are initialized to interpolate: FCN's bilinear 4x4 with zeros around it.
    (The 8x8 kernel of FCN is for a stride of 4, and four times too large here.)

    Args:
        num_classes: K.
        addition: whether the pooled maps are added to the decoder's.
        reduction: whether the decoder has K channels, to which each level is reduced
            by a 1x1 convolution, rather than `width`.
        width: channels of every convolution.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].
    """
    project = "level" if reduction else "none"
    add = partial(Sum, project=project, kernel_init=he_normal, options=options)
    skip = add if addition else NoSkip
    decoder = Decoder(
        upsamplers=tuple(Transposed(kernel=8, options=options) for _ in range(LEVELS)),
        # No pooling comes before the finest level, so nothing is added there.
        skips=(*(skip() for _ in range(LEVELS - 1)), NoSkip()),
        blocks=tuple(ConvBlock((), options=options) for _ in range(LEVELS)),
        pooled_skips=True,
        options=options,
    )
    encoder = _encoder(width, options)
    if not reduction:
        return Segmenter(encoder, decoder, _classifier(num_classes, options))
    neck = Scores(num_classes, kernel_init=he_normal, options=options)
    return Segmenter(encoder, decoder, identity, neck=neck, options=options)


fcn_basic_no_addition = partial(fcn_basic, addition=False)
fcn_basic_no_dim_reduction = partial(fcn_basic, reduction=False)
fcn_basic_no_addition_no_dim_reduction = partial(
    fcn_basic, addition=False, reduction=False
)


def _encoder(width, options, dropout=0.0):
    return basic_encoder(
        widths=(width,) * LEVELS,
        dropouts=(0.0, 0.0, dropout, dropout),
        norm=segnet_norm,
        options=options,
    )


def _classifier(num_classes, options):
    return Conv(num_classes, (1, 1), kernel_init=he_normal, **options.dtypes)
