"""DeepLab v1 and v2: dilated VGG16 or ResNet, scored at one or several rates.

Source: Chen et al., https://arxiv.org/abs/1412.7062 (v1, LargeFOV) and
https://arxiv.org/abs/1606.00915 (v2, ASPP); layers and fillers are those of the
authors' prototxts.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.components import Component, check_arguments, create_dilated
from jaxseg.models.encoders import Features
from jaxseg.models.heads import BranchSum, DenseAsConvolutions, Scores, identity
from jaxseg.models.layers import Dtype, run_stage
from jaxseg.models.segmenter import Segmenter
from jaxseg.ops.indexed_pooling import max_pool_indices
from jaxseg.ops.resize import crop_to, resize_bilinear

_gaussian = nn.initializers.normal(0.01)


class DilatedVGG(nn.Module):
    """VGG16 of stride 8: 3x3 poolings, the last two without stride, then dilation.

    Poolings round up as Caffe's do, to ceil((n - 1) / 2) + 1 cells, so that cell i of
    the last map stands on pixel 8 i and the last cell not before the last pixel.

    Attributes:
        widths: channels of each stage.
        depths: convolutions in each stage.
        average: whether a 3x3 average pooling ends it, as in v1; it counts the zeros
            around the map.
        remat: compute each stage's activations again for the gradient.
        dtype: of the computation.
        param_dtype: of the parameters.
        axis_name: not needed, as there are no batch statistics; taken as by all.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    average: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Features:
        """Maps an image [B, H, W, C] to its levels: strides 1, 2, 4, 8, 8 and 8."""
        x, maps, pooled, places = image, [], [None], [None]
        strides = (2, 2, 2, 1, 1)
        stages = zip(self.widths, self.depths, strides, strict=True)
        for i, (width, depth, step) in enumerate(stages, start=1):
            stage = ConvBlock(
                (width,) * depth,
                norm=None,
                dilation=2 if i == 5 else 1,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"stage{i}",
            )
            x = run_stage(stage, x, train=train, remat=self.remat)
            maps.append(x)
            x, place = max_pool_indices(x, 3, step, padding=1, ceil_mode=True)
            pooled.append(x)
            places.append(place)
        if self.average:
            x = nn.avg_pool(x, (3, 3), padding="SAME")
        return Features((*maps, x), tuple(pooled), tuple(places), (1, 2, 4, 8, 8, 8))


def deeplab_largefov(
    num_classes: int,
    *,
    kernel: int = 3,
    dilation: int = 12,
    hidden: int = 1024,
    width: int = 64,
    dropout: float = 0.5,
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """DeepLab v1 on VGG16, with the large field of view by default.

    20,505,429 parameters with 21 classes. The paper's others: kernel 7, dilation 4 and
    hidden 4096, 134,346,581; kernel 4, dilation 4 or 8 and hidden 4096, 65,140,565.

    Args:
        num_classes: K.
        kernel: side of fc6's kernel, in cells.
        dilation: step between its taps, in cells of 8 pixels.
        hidden: channels of fc6 and fc7.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        dropout: rate after fc6 and fc7.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype)
    block = DenseAsConvolutions(
        kernel,
        (hidden, hidden),
        dilation=dilation,
        dropout=dropout,
        axis_name=axis_name,
        **layers,
    )
    return Segmenter(
        DilatedVGG(widths=_widths(width), average=True, remat=remat, **layers),
        None,
        identity,
        neck=Scores(num_classes, block, kernel_init=_gaussian, **layers),
        restore_size=_zoom,
        remat=remat,
    )


def deeplab_v2(
    num_classes: int,
    *,
    encoder: Component = "resnet101",
    rates: tuple[int, ...] = (6, 12, 18, 24),
    hidden: int = 1024,
    dropout: float = 0.5,
    encoder_kwargs: Mapping[str, Any] = {},
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """DeepLab v2: the scores of several rates, added.

    44,048,532 parameters on ResNet-101 with 21 classes, 37,877,652 on VGG16.

    Args:
        num_classes: K.
        encoder: "vgg16", which becomes `DilatedVGG` with fc6 and fc7 in every branch; a
            ResNet, with one 3x3 convolution in each; or what makes an encoder that
            takes `output_stride` and `dilate_first`.
        rates: dilation of each branch, in cells of 8 pixels; the paper's ASPP-S has 2,
            4, 8 and 12.
        hidden: channels of fc6 and fc7, on VGG16.
        dropout: rate after each of these.
        encoder_kwargs: what else the encoder takes.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].

    Source: https://arxiv.org/abs/1606.00915.
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype)
    encoder_kwargs = check_arguments("encoder", encoder_kwargs)
    if encoder == "vgg16":
        encoder = DilatedVGG(remat=remat, **layers, **encoder_kwargs)
        branches = tuple(
            Scores(
                num_classes,
                DenseAsConvolutions(
                    3,
                    (hidden, hidden),
                    dilation=rate,
                    dropout=dropout,
                    axis_name=axis_name,
                    **layers,
                ),
                kernel_init=_gaussian,
                **layers,
            )
            for rate in rates
        )
        restore_size = _zoom
    else:
        encoder = create_dilated(
            encoder,
            output_stride=8,
            dilate_first=True,
            remat=remat,
            axis_name=axis_name,
            **layers,
            **encoder_kwargs,
        )
        branches = tuple(
            ConvBlock(
                (num_classes,),
                norm=None,
                activation=None,
                dilation=rate,
                kernel_init=_gaussian,
                **layers,
            )
            for rate in rates
        )
        restore_size = partial(resize_bilinear, align_corners=True)
    return Segmenter(
        encoder,
        None,
        identity,
        neck=BranchSum(branches),
        restore_size=restore_size,
        remat=remat,
    )


def _widths(width: int) -> tuple[int, ...]:
    return tuple(width * m for m in (1, 2, 4, 8, 8))


def _zoom(scores: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Caffe's Interp with zoom_factor 8, cell i on pixel 8 i, and a crop."""
    whole = tuple(8 * (n - 1) + 1 for n in scores.shape[1:3])
    return crop_to(resize_bilinear(scores, whole, align_corners=True), size)
