"""SegNet: a decoder that remembers where the encoder's maxima stood.

Source: Badrinarayanan, Kendall & Cipolla, https://arxiv.org/abs/1511.00561; the
layers are those of the authors' SegNet-Tutorial prototxts. "Bayesian" variants:
Kendall et al., https://arxiv.org/abs/1511.02680.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import vgg16_bn
from jaxseg.models.layers import Conv, Dtype, batch_norm, he_normal
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.skips import NoSkip
from jaxseg.models.upsamplers import Unpool

segnet_norm = partial(batch_norm, bias_init=nn.initializers.constant(0.001))
"""BatchNorm as SegNet's and DeconvNet's prototxts start it: its shift at 0.001."""


def segnet(
    num_classes: int,
    *,
    width: int = 64,
    depths: tuple[int, ...] = (2, 2, 3, 3, 3),
    dropout: float = 0.0,
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """SegNet: VGG16's thirteen convolutions with BatchNorm, and their mirror image.

    29,449,355 parameters with 11 classes, width 64 and these depths.

    Args:
        num_classes: K.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        depths: convolutions in each stage, at most five stages; fewer are quicker to
            train from nothing.
        dropout: rate after pool3, pool4, pool5 and after the decoder stages that
            mirror these; Bayesian SegNet has 0.5.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].
    """
    if not 1 <= len(depths) <= 5 or min(depths) < 1:
        raise ValueError(
            f"depths={tuple(depths)}: SegNet has one to five stages of at least one "
            "convolution each."
        )
    layers = dict(dtype=dtype, param_dtype=param_dtype, axis_name=axis_name)
    widths = tuple(width * m for m in (1, 2, 4, 8, 8))[: len(depths)]
    dropouts = (0.0, 0.0, dropout, dropout, dropout)[: len(depths)]
    encoder = vgg16_bn(
        widths=widths,
        depths=tuple(depths),
        dropouts=dropouts,
        norm=segnet_norm,
        remat=remat,
        **layers,
    )
    # A stage's last convolution has the channels of the stage above, whose places it
    # is unpooled by; at the top the classifier takes its place.
    above = (None, *widths[:-1])
    blocks = [
        ConvBlock(
            (wide,) * (depth - 1) + (() if narrow is None else (narrow,)),
            norm=segnet_norm,
            dropout=rate,
            **layers,
        )
        for wide, narrow, depth, rate in zip(widths, above, depths, dropouts)
    ]
    decoder = Decoder(
        upsamplers=tuple(Unpool() for _ in blocks),
        skips=tuple(NoSkip() for _ in blocks),
        blocks=tuple(reversed(blocks)),
        remat=remat,
    )
    head = Conv(
        num_classes,
        (3, 3),
        kernel_init=he_normal,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return Segmenter(encoder, decoder, head)
