"""DeepLab v1 and v2: dilated VGG16 or ResNet, with logits at one or several rates.

Source: Chen et al., https://arxiv.org/abs/1412.7062 (v1, LargeFOV) and
https://arxiv.org/abs/1606.00915 (v2, ASPP); layers and initializers are those of the
authors' prototxts.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.components import Component, check_arguments, create_dilated
from jaxseg.models.encoders import Features
from jaxseg.models.encoders.vgg import DEPTHS, stage_widths
from jaxseg.models.heads import BranchSum, DenseAsConvolutions, Scores, identity
from jaxseg.models.layers import caffe_gaussian, run_stage
from jaxseg.models.options import LayerOptions
from jaxseg.models.segmenter import Segmenter
from jaxseg.ops.indexed_pooling import max_pool_indices
from jaxseg.ops.resize import crop_to, resize_bilinear


class DilatedVGG(nn.Module):
    """VGG16 of stride 8: 3x3 poolings, the last two without stride, then dilation.

    Poolings round up as Caffe's do, to ceil((n - 1) / 2) + 1 cells, so that cell i of
    the last map is centered on pixel 8 i, and the last cell is not before the last
    pixel.

    Attributes:
        widths: channels of each stage.
        depths: convolutions in each stage.
        average: whether a 3x3 average pooling follows the last stage, as in v1; it
            counts the zeros around the map.
        options: see `LayerOptions`.
    """

    widths: tuple[int, ...] = stage_widths()
    depths: tuple[int, ...] = DEPTHS
    average: bool = False
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Features:
        """Maps an image [B, H, W, C] to its levels: strides 1, 2, 4, 8, 8 and 8."""
        x, maps = image, []
        pooled: list[jax.Array | None] = [None]
        places: list[jax.Array | None] = [None]
        stages = zip(self.widths, self.depths, (2, 2, 2, 1, 1), strict=True)
        for i, (width, depth, stride) in enumerate(stages, start=1):
            stage = ConvBlock(
                (width,) * depth,
                norm=None,
                dilation=2 if i == 5 else 1,
                options=self.options,
                name=f"stage{i}",
            )
            x = run_stage(stage, x, train=train, remat=self.options.remat)
            maps.append(x)
            x, place = max_pool_indices(x, 3, stride, padding=1, ceil_mode=True)
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
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """DeepLab v1 on VGG16, with the large field of view by default.

    20,505,429 parameters with 21 classes. The paper's others: kernel 7, dilation 4 and
    hidden 4096, 134,346,581; kernel 4, dilation 4 or 8 and hidden 4096, 65,140,565.

    Args:
        num_classes: K.
        kernel: side of fc6's kernel, in cells.
        dilation: dilation of fc6, in cells of 8 pixels.
        hidden: channels of fc6 and fc7.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        dropout: dropout rate after fc6 and fc7.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].
    """
    return Segmenter(
        DilatedVGG(widths=stage_widths(width), average=True, options=options),
        None,
        identity,
        neck=_dense_scores(num_classes, kernel, dilation, hidden, dropout, options),
        restore_size=_zoom,
        options=options,
    )


def deeplab_v2(
    num_classes: int,
    *,
    encoder: Component = "resnet101",
    rates: tuple[int, ...] = (6, 12, 18, 24),
    hidden: int = 1024,
    dropout: float = 0.5,
    encoder_kwargs: Mapping[str, Any] = {},
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """DeepLab v2: the sum of logits at several rates.

    44,048,532 parameters on ResNet-101 with 21 classes, 37,877,652 on VGG16.

    Args:
        num_classes: K.
        encoder: "vgg16", for `DilatedVGG` with fc6 and fc7 in every branch; a ResNet,
            or another encoder with arguments `output_stride` and `dilate_first`, with
            one 3x3 convolution in every branch.
        rates: dilation of each branch, in cells of 8 pixels; 2, 4, 8 and 12 in the
            paper's ASPP-S.
        hidden: channels of fc6 and fc7, on VGG16.
        dropout: dropout rate after fc6 and fc7, on VGG16.
        encoder_kwargs: further keyword arguments of the encoder.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].

    Source: https://arxiv.org/abs/1606.00915.
    """
    encoder_kwargs = check_arguments("encoder", encoder_kwargs)
    if encoder == "vgg16":
        dilated = DilatedVGG(options=options, **encoder_kwargs)
        branches = tuple(
            _dense_scores(num_classes, 3, rate, hidden, dropout, options)
            for rate in rates
        )
        restore_size = _zoom
    else:
        dilated = create_dilated(
            encoder,
            options=options,
            output_stride=8,
            dilate_first=True,
            **encoder_kwargs,
        )
        branches = tuple(
            ConvBlock(
                (num_classes,),
                norm=None,
                activation=None,
                dilation=rate,
                kernel_init=caffe_gaussian,
                options=options,
            )
            for rate in rates
        )
        restore_size = partial(resize_bilinear, align_corners=True)
    return Segmenter(
        dilated,
        None,
        identity,
        neck=BranchSum(branches),
        restore_size=restore_size,
        options=options,
    )


def _dense_scores(num_classes, kernel, dilation, hidden, dropout, options):
    dense = DenseAsConvolutions(
        kernel, (hidden, hidden), dilation=dilation, dropout=dropout, options=options
    )
    return Scores(num_classes, dense, kernel_init=caffe_gaussian, options=options)


def _zoom(scores: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Caffe's Interp with zoom_factor 8, cell i on pixel 8 i, and a crop."""
    _, height, width, _ = scores.shape
    whole = 8 * (height - 1) + 1, 8 * (width - 1) + 1
    return crop_to(resize_bilinear(scores, whole, align_corners=True), size)
