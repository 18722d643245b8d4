"""DeconvNet: VGG16 down to one cell, and its mirror image back up.

Source: Noh, Hong & Han, https://arxiv.org/abs/1505.04366; layers and initializers are
those of the authors' stage_1_train.prototxt.
"""

from functools import partial

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import vgg16_bn
from jaxseg.models.encoders.vgg import DEPTHS, stage_widths
from jaxseg.models.heads import Chain
from jaxseg.models.layers import Conv, ConvTranspose, caffe_gaussian
from jaxseg.models.options import LayerOptions
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
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """DeconvNet: VGG16, fc6, fc7, and a decoder of unpooling and deconvolution.

    251,805,653 parameters with 21 classes, most of them in fc6, fc7 and fc6's mirror
    image. Made for crops of 224x224 pixels, where fc6 sees the whole image.

    Args:
        num_classes: K.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        hidden: channels of fc6 and fc7; 1024 in the SegNet paper's benchmark.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] of at least 193 pixels in height and width
        to logits [B, H, W, K].
    """
    block = partial(ConvBlock, norm=segnet_norm, options=options)
    deconv = partial(block, conv=ConvTranspose, kernel_init=caffe_gaussian)
    widths = stage_widths(width)
    neck = Chain(
        (
            block((hidden,), SIDE, padding="VALID"),
            block((hidden,), 1),
            deconv((widths[-1],), SIDE, padding="VALID"),
        )
    )
    # The last convolution of a stage has the channels of the next stage, whose pooling
    # indices unpool it.
    blocks = tuple(
        deconv((wide,) * (depth - 1) + (narrow,))
        for wide, narrow, depth in zip(widths, (width, *widths), DEPTHS)
    )
    decoder = Decoder(
        upsamplers=tuple(Unpool() for _ in blocks),
        skips=tuple(NoSkip() for _ in blocks),
        blocks=blocks[::-1],
        options=options,
    )
    return Segmenter(
        vgg16_bn(widths=widths, norm=segnet_norm, options=options),
        decoder,
        Conv(num_classes, (1, 1), kernel_init=caffe_gaussian, **options.dtypes),
        neck=neck,
        check_size=_check_size,
        options=options,
    )


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < LEAST:
        rows, columns = (max(0, LEAST - n) for n in size)
        raise ValueError(
            f"DeconvNet's fc6 covers {SIDE}x{SIDE} cells of 32 pixels, so an image "
            f"needs at least {LEAST}x{LEAST} pixels, not {size[0]}x{size[1]}. Enlarge "
            f"it (the authors' crops have 224x224), or pad it by {rows} rows and "
            f"{columns} columns."
        )
