"""SegNet: a decoder that upsamples by the positions of the encoder's maxima.

Source: Badrinarayanan, Kendall & Cipolla, https://arxiv.org/abs/1511.00561; the
layers are those of the authors' SegNet-Tutorial prototxts. "Bayesian" variants:
Kendall et al., https://arxiv.org/abs/1511.02680.
"""

from functools import partial

import flax.linen as nn

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import vgg16_bn
from jaxseg.models.encoders.vgg import DEPTHS, stage_widths
from jaxseg.models.layers import Conv, batch_norm, he_normal
from jaxseg.models.options import LayerOptions
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.skips import NoSkip
from jaxseg.models.upsamplers import Unpool

segnet_norm = partial(batch_norm, bias_init=nn.initializers.constant(0.001))
"""BatchNorm with the initial bias of SegNet's and DeconvNet's prototxts, 0.001."""


def segnet(
    num_classes: int,
    *,
    width: int = 64,
    depths: tuple[int, ...] = DEPTHS,
    dropout: float = 0.0,
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """SegNet: VGG16's thirteen convolutions with BatchNorm, and their mirror image.

    29,449,355 parameters with 11 classes, width 64 and these depths.

    Args:
        num_classes: K.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        depths: convolutions in each stage, at most five stages; fewer train faster
            from scratch.
        dropout: dropout rate after pool3, pool4, pool5 and after the decoder stages
            that mirror these; 0.5 in Bayesian SegNet.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].

    Raises:
        ValueError: if there are no stages or more than five, or a stage is empty.
    """
    if not 1 <= len(depths) <= 5 or min(depths) < 1:
        raise ValueError(
            f"depths={tuple(depths)}: SegNet has one to five stages of at least one "
            "convolution each."
        )
    widths = stage_widths(width)[: len(depths)]
    dropouts = (0.0, 0.0, dropout, dropout, dropout)[: len(depths)]
    encoder = vgg16_bn(
        widths=widths,
        depths=tuple(depths),
        dropouts=dropouts,
        norm=segnet_norm,
        options=options,
    )
    # The last convolution of a stage has the channels of the next stage, whose pooling
    # indices unpool it. The classifier replaces the last one of all.
    finer = ((), *((narrow,) for narrow in widths[:-1]))
    blocks = [
        ConvBlock(
            (wide,) * (depth - 1) + narrow,
            norm=segnet_norm,
            dropout=rate,
            options=options,
        )
        for wide, narrow, depth, rate in zip(widths, finer, depths, dropouts)
    ]
    decoder = Decoder(
        upsamplers=tuple(Unpool() for _ in blocks),
        skips=tuple(NoSkip() for _ in blocks),
        blocks=tuple(reversed(blocks)),
        options=options,
    )
    head = Conv(num_classes, (3, 3), kernel_init=he_normal, **options.dtypes)
    return Segmenter(encoder, decoder, head)
