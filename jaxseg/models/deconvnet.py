"""DeconvNet: VGG16 down to one cell, and its mirror image back up.

Source: Noh, Hong & Han, https://arxiv.org/abs/1505.04366; layers and fillers are those
of the authors' stage_1_train.prototxt.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import vgg16_bn
from jaxseg.models.heads import Chain
from jaxseg.models.layers import Conv, ConvTranspose, Dtype
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.segnet import segnet_norm
from jaxseg.models.skips import NoSkip
from jaxseg.models.upsamplers import Unpool

SIDE = 7
"""Height and width of the map that fc6 covers, in cells of 32 pixels."""

LEAST = 32 * (SIDE - 1) + 1
"""Least height and width of an image, in pixels: ceil(193 / 32) = 7."""


def deconvnet(
    num_classes: int,
    *,
    width: int = 64,
    hidden: int = 4096,
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """DeconvNet: fc6 and fc7 between VGG16 and a decoder that unpools and deconvolves.

    251,805,653 parameters with 21 classes, most of them in fc6, fc7 and fc6's mirror
    image. Made for crops of 224x224 pixels, where fc6 sees the whole image.

    Args:
        num_classes: K.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        hidden: channels of fc6 and fc7; the SegNet paper's benchmark had 1024.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] of at least 193 pixels in height and width
        to logits [B, H, W, K].
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype, axis_name=axis_name)
    block = partial(ConvBlock, norm=segnet_norm, **layers)
    deconv = partial(block, conv=ConvTranspose, kernel_init=_gaussian)
    widths = tuple(width * m for m in (1, 2, 4, 8, 8))
    neck = Chain(
        (
            block((hidden,), SIDE, padding="VALID"),
            block((hidden,), 1),
            deconv((widths[-1],), SIDE, padding="VALID"),
        )
    )
    # A stage's last convolution has the channels of the stage above, whose places it
    # is unpooled by.
    above = (width, *widths[:-1])
    blocks = tuple(
        deconv((wide,) * (depth - 1) + (narrow,))
        for wide, narrow, depth in zip(widths, above, (2, 2, 3, 3, 3))
    )
    decoder = Decoder(
        upsamplers=tuple(Unpool() for _ in blocks),
        skips=tuple(NoSkip() for _ in blocks),
        blocks=blocks[::-1],
        remat=remat,
    )
    head = Conv(
        num_classes,
        (1, 1),
        kernel_init=_gaussian,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    encoder = vgg16_bn(widths=widths, norm=segnet_norm, remat=remat, **layers)
    return Segmenter(
        encoder, decoder, head, neck=neck, check_size=_check_size, remat=remat
    )


_gaussian = nn.initializers.normal(0.01)


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < LEAST:
        rows, columns = (max(0, LEAST - n) for n in size)
        raise ValueError(
            f"DeconvNet's fc6 covers {SIDE}x{SIDE} cells of 32 pixels, so an image "
            f"has at least {LEAST}x{LEAST} pixels, not {size[0]}x{size[1]}: enlarge "
            f"it (the authors' crops have 224x224), or pad it by {rows} rows and "
            f"{columns} columns."
        )
