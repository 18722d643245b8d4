"""U-Net: an encoder and its mirror image, every level handed across.

Source: Ronneberger, Fischer & Brox, https://arxiv.org/abs/1505.04597; the authors'
release, phseg_v5, where it differs.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.components import Component, create_component
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import unet as unet_encoder
from jaxseg.models.layers import Conv, Dtype, batch_norm, he_normal
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.skips import Concat, crop_center
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
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """U-Net with padded convolutions: logits of the image's own size, whatever it is.

    31,030,658 parameters with 1 channel and 2 classes; 31,100,354 with `release`.

    Args:
        num_classes: K.
        width: channels of the finest level; each level below has twice as many.
        levels: number of levels, 2 or more.
        skip: one of `list_skips()`, or what makes one; "none" for the question what
            skips bring.
        norm: whether BatchNorm follows every convolution; the paper has none.
        dropout: rate that ends the two deepest levels of the encoder.
        release: as phseg_v5, a ReLU after every up-convolution, and a last one of
            twice the channels.
        remat: compute the activations of every level again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].

    Raises:
        ValueError: if there are fewer than two levels, or the skip is unknown.
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype)
    skips = [create_component("skip", skip, **layers) for _ in range(levels - 1)]
    return _unet(
        num_classes,
        width=width,
        levels=levels,
        skips=skips,
        norm=batch_norm if norm else None,
        dropout=dropout,
        release=release,
        padding="SAME",
        remat=remat,
        axis_name=axis_name,
        **layers,
    )


def unet_valid(
    num_classes: int,
    *,
    width: int = 64,
    levels: int = 5,
    norm: bool = False,
    dropout: float = 0.5,
    release: bool = False,
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """U-Net as published: unpadded convolutions, and logits of the middle alone.

    An image of 572 pixels gives logits of 388: `valid_size` tells both. With five
    levels images have 16 k + 60 pixels and lose 92 on every side, and the skips are
    cropped by 4, 16, 40 and 88. To label a whole image, mirror 92 pixels around it,
    as `jaxseg.inference` does.

    Args:
        num_classes: K.
        width: as of `unet`.
        levels: likewise.
        norm: likewise.
        dropout: likewise.
        release: likewise.
        remat: likewise.
        dtype: likewise.
        param_dtype: likewise.
        axis_name: likewise.

    Returns:
        A module from an image [B, H, W, C] to logits of its middle,
        [B, H - 184, W - 184, K] with five levels.

    Raises:
        ValueError: if there are fewer than two levels.
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype)
    skips = [Concat(meet=crop_center, **layers) for _ in range(levels - 1)]
    return _unet(
        num_classes,
        width=width,
        levels=levels,
        skips=skips,
        norm=batch_norm if norm else None,
        dropout=dropout,
        release=release,
        padding="VALID",
        remat=remat,
        axis_name=axis_name,
        **layers,
    )


def valid_size(pixels: int, levels: int = 5) -> tuple[int, int]:
    """The least size of image that `unet_valid` takes, and what it leaves of it.

    Args:
        pixels: height or width that the logits shall have at least; 1 for the least
            image of all.
        levels: of the network.

    Returns:
        The image's size and the logits' size, such as (572, 388), in pixels. The
        difference is the context, half of it on each side.
    """
    # Up the levels: two convolutions take 4 cells, and a level's cells are even.
    step = 2 ** (levels - 1)
    lost = sum(4 * 2**i for i in range(levels - 1))
    cells = -(-(pixels + lost) // step)  # of the deepest level
    left = step * cells - lost
    deepest = cells + 4
    size = step * deepest + sum(4 * 2**i for i in range(levels - 1))
    return size, left


def _unet(
    num_classes,
    *,
    width,
    levels,
    skips,
    norm,
    dropout,
    release,
    padding,
    remat,
    axis_name,
    dtype,
    param_dtype,
):
    if levels < 2:
        raise ValueError(f"levels={levels}: U-Net has at least two.")
    layers = dict(dtype=dtype, param_dtype=param_dtype)
    widths = tuple(width * 2**i for i in range(levels))
    encoder = unet_encoder(
        widths=widths,
        depths=(2,) * levels,
        dropouts=(0.0,) * (levels - 2) + (dropout, dropout),
        norm=norm,
        padding=padding,
        remat=remat,
        axis_name=axis_name,
        **layers,
    )
    climbed = tuple(reversed(widths[:-1]))
    grown = (*climbed[:-1], 2 * width) if release else climbed
    up = partial(
        Transposed,
        kernel=2,
        use_bias=True,
        # Every cell of the result sees one cell of the map.
        kernel_init=nn.initializers.variance_scaling(8.0, "fan_in", "normal"),
        activation=nn.relu if release else None,
        fit=padding == "SAME",
        **layers,
    )
    block = partial(
        ConvBlock, norm=norm, padding=padding, axis_name=axis_name, **layers
    )
    decoder = Decoder(
        upsamplers=tuple(up(features) for features in grown),
        skips=tuple(skips),
        blocks=tuple(block((features, features)) for features in climbed),
        remat=remat,
    )
    head = Conv(num_classes, (1, 1), kernel_init=he_normal, **layers)
    if padding == "SAME":
        return Segmenter(encoder, decoder, head)
    return Segmenter(
        encoder,
        decoder,
        head,
        restore_size=_as_they_are,
        check_size=partial(_check_valid, levels=levels),
        input_size=partial(valid_size, levels=levels),
    )


def _as_they_are(scores: jax.Array, size: tuple[int, int]) -> jax.Array:
    del size
    return scores


def _check_valid(size: tuple[int, int], levels: int) -> None:
    least, left = valid_size(1, levels)
    context = least - left
    for axis, n in zip(("height", "width"), size):
        fitting, left = valid_size(max(n - context, 1), levels)
        if n != fitting:
            raise ValueError(
                f"Unpadded convolutions take a {axis} of {least}, "
                f"{least + 2 ** (levels - 1)}, ... pixels, not {n}. Mirror pixels "
                f"around the image until it has {fitting}, for logits of {left}; or "
                f"{valid_size(n, levels)[0]}, for logits of all its {n}."
            )
