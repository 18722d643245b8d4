"""U-Net: an encoder and its mirror image, with a skip at every level.

Source: Ronneberger, Fischer & Brox, https://arxiv.org/abs/1505.04597; the authors'
release, phseg_v5, where it differs.
"""

from functools import partial

import flax.linen as nn
import jax

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.components import Component, create_component
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import unet as unet_encoder
from jaxseg.models.layers import Conv, batch_norm, he_normal
from jaxseg.models.options import LayerOptions
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.skips import crop_center
from jaxseg.models.upsamplers import Transposed


def unet(
    num_classes: int,
    *,
    width: int = 64,
    levels: int = 5,
    skip: Component = "concat",
    norm: bool = False,
    dropout: float = 0.5,
    release: bool = False,
    padding: str = "SAME",
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """U-Net, for images of any size with padded convolutions.

    31,030,658 parameters with 1 channel and 2 classes; 31,100,354 with `release`.

    Args:
        num_classes: K.
        width: channels of the finest level; each level below has twice as many.
        levels: number of levels, 2 or more.
        skip: one of `list_skips()`, or a component; "none" to measure what skips
            contribute.
        norm: whether BatchNorm follows every convolution; the paper has none.
        dropout: dropout rate at the end of the two deepest levels of the encoder.
        release: whether every up-convolution is followed by a ReLU and the last one has
            twice the channels, as in phseg_v5.
        padding: "SAME", or "VALID" for the unpadded convolutions of the paper; see
            `unet_valid`.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].

    Raises:
        ValueError: if there are fewer than two levels, or the skip is unknown.
    """
    if levels < 2:
        raise ValueError(f"levels={levels}: U-Net needs at least two.")
    padded = padding != "VALID"
    make_norm = batch_norm if norm else None
    widths = tuple(width * 2**i for i in range(levels))
    encoder = unet_encoder(
        widths=widths,
        depths=(2,) * levels,
        dropouts=(0.0,) * (levels - 2) + (dropout, dropout),
        norm=make_norm,
        padding=padding,
        options=options,
    )
    block_widths = widths[-2::-1]
    up_widths = (*block_widths[:-1], 2 * width) if release else block_widths
    skip_kwargs = {} if padded else {"meet": crop_center}
    decoder = Decoder(
        upsamplers=tuple(
            Transposed(
                features,
                kernel=2,
                use_bias=True,
                # Every cell of the result sees one cell of the map.
                kernel_init=nn.initializers.variance_scaling(8.0, "fan_in", "normal"),
                activation=nn.relu if release else None,
                fit=padded,
                options=options,
            )
            for features in up_widths
        ),
        skips=tuple(
            create_component("skip", skip, options=options, **skip_kwargs)
            for _ in block_widths
        ),
        blocks=tuple(
            ConvBlock(
                (features, features), norm=make_norm, padding=padding, options=options
            )
            for features in block_widths
        ),
        options=options,
    )
    head = Conv(num_classes, (1, 1), kernel_init=he_normal, **options.dtypes)
    if padded:
        return Segmenter(encoder, decoder, head)
    return Segmenter(
        encoder,
        decoder,
        head,
        restore_size=_unchanged,
        check_size=partial(_check_valid, levels=levels),
        input_size=partial(valid_size, levels=levels),
    )


unet_valid = partial(unet, padding="VALID")
"""U-Net as published: unpadded convolutions, and logits of the middle of the image.

An image of 572 pixels has logits of 388; `valid_size` computes both. With five levels
images have 16 k + 60 pixels and lose 92 on every side, and the skips are cropped by 4,
16, 40 and 88. To label a whole image, mirror 92 pixels around it, as `jaxseg.inference`
does.
"""


def valid_size(pixels: int, levels: int = 5) -> tuple[int, int]:
    """The smallest image of `unet_valid` that has logits of at least a given size.

    Args:
        pixels: least height or width of the logits; 1 for the smallest image of all.
        levels: number of levels of the network.

    Returns:
        The size of the image and of its logits, such as (572, 388), in pixels. The
        difference is the context, half of it on each side.
    """
    # On the way up, each level removes 4 of its cells from a number that is even.
    step = 2 ** (levels - 1)
    lost = sum(4 * 2**i for i in range(levels - 1))
    cells = -(-(pixels + lost) // step)  # of the deepest level, after its convolutions
    return step * (cells + 4) + lost, step * cells - lost


def _unchanged(scores: jax.Array, size: tuple[int, int]) -> jax.Array:
    del size
    return scores


def _check_valid(size: tuple[int, int], levels: int) -> None:
    least, logits = valid_size(1, levels)
    context = least - logits
    for axis, n in zip(("height", "width"), size):
        fitting, logits = valid_size(max(n - context, 1), levels)
        if n != fitting:
            raise ValueError(
                f"Unpadded convolutions need a {axis} of {least}, "
                f"{least + 2 ** (levels - 1)}, ... pixels, not {n}. Mirror pixels "
                f"around the image up to {fitting} pixels, for logits of {logits}; or "
                f"up to {valid_size(n, levels)[0]}, for logits of all {n} pixels."
            )
