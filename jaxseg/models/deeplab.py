"""DeepLab v3 and v3+, and torchvision's fcn_resnet50 and deeplabv3_resnet50.

Source: Chen et al., https://arxiv.org/abs/1706.05587 and
https://arxiv.org/abs/1802.02611; TensorFlow's research/deeplab for what they do not
specify (corner alignment, dropout); torchvision.models.segmentation.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from jaxseg.models.blocks import ConvBlock, SeparableBlock
from jaxseg.models.components import (
    Component,
    check_arguments,
    create_dilated,
    encoder_features,
)
from jaxseg.models.decoder import Decoder
from jaxseg.models.heads import ASPP, Chain
from jaxseg.models.layers import Conv
from jaxseg.models.options import LayerOptions
from jaxseg.models.segmenter import Auxiliary, Segmenter
from jaxseg.models.skips import Concat
from jaxseg.models.upsamplers import Bilinear
from jaxseg.ops.resize import resize_bilinear

MULTI_GRID = (1, 2, 4)
"""The paper's, for the three blocks of ResNet-50's last stage."""


def deeplab_v3(
    num_classes: int,
    *,
    encoder: Component = "resnet50",
    output_stride: int = 16,
    multi_grid: tuple[int, ...] | None = MULTI_GRID,
    width: int = 256,
    dropout: float = 0.1,
    encoder_kwargs: Mapping[str, Any] = {},
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """DeepLab v3: a dilated ResNet, ASPP, and interpolated logits.

    39,048,533 parameters on ResNet-50 with 21 classes, 58,040,661 on ResNet-101.

    Args:
        num_classes: K.
        encoder: resnet18, resnet34, resnet50 or resnet101, or another encoder with
            arguments `output_stride`, `dilate_first` and `multi_grid`.
        output_stride: image pixels per cell of the deepest map, 8, 16 or 32. The rates
            of the ASPP are 6, 12 and 18 at 16, and in proportion at the others.
        multi_grid: factors on the dilations of the last stage's blocks, (1, 2) by
            default on ResNet-18, which has two; None for none.
        width: channels of the ASPP.
        dropout: dropout rate after the ASPP.
        encoder_kwargs: further keyword arguments of the encoder.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K]. Logits are resized
        with aligned corners, so sizes of 16 k + 1 pixels are best.

    Raises:
        ValueError: if the encoder cannot be dilated.
    """
    return Segmenter(
        _dilated(encoder, output_stride, multi_grid, encoder_kwargs, options),
        None,
        _classifier(num_classes, options),
        neck=_aspp(output_stride, width, dropout, options),
        restore_size=partial(resize_bilinear, align_corners=True),
        options=options,
    )


def deeplab_v3plus(
    num_classes: int,
    *,
    encoder: Component = "resnet50",
    output_stride: int = 16,
    multi_grid: tuple[int, ...] | None = MULTI_GRID,
    width: int = 256,
    low_level: int = 48,
    separable: bool = False,
    dropout: float = 0.1,
    encoder_kwargs: Mapping[str, Any] = {},
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """DeepLab v3+: v3 with a decoder at stride 4 and one skip.

    40,352,181 parameters on ResNet-50 with 21 classes, 59,344,309 on ResNet-101.

    Args:
        num_classes: K.
        encoder: see `deeplab_v3`.
        output_stride: see `deeplab_v3`.
        multi_grid: see `deeplab_v3`.
        width: channels of the ASPP and of the decoder's two convolutions.
        low_level: channels to which the map of stride 4 is reduced.
        separable: whether the decoder's convolutions are separable. (The ASPP's are
            not.)
        dropout: dropout rate after the ASPP.
        encoder_kwargs: further keyword arguments of the encoder.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K]; see `deeplab_v3` for
        the best sizes.

    Raises:
        ValueError: if the encoder cannot be dilated, or has no level of stride 4.

    Source: https://arxiv.org/abs/1802.02611.
    """
    dilated = _dilated(encoder, output_stride, multi_grid, encoder_kwargs, options)
    strides = encoder_features(dilated).merged().strides
    if 4 not in strides:
        raise ValueError(
            "The decoder of DeepLab v3+ needs an encoder with a level of stride 4, and "
            f"this one has strides {strides}; use a ResNet."
        )
    adapt = ConvBlock((low_level,), 1, use_bias=False, options=options)
    if separable:
        block = SeparableBlock((width, width), options=options)
    else:
        block = ConvBlock((width, width), use_bias=False, options=options)
    decoder = Decoder(
        upsamplers=(Bilinear(align_corners=True),),
        skips=(Concat(adapt=adapt),),
        blocks=(block,),
        levels=(strides.index(4),),
        options=options,
    )
    return Segmenter(
        dilated,
        decoder,
        _classifier(num_classes, options),
        neck=_aspp(output_stride, width, dropout, options),
        restore_size=partial(resize_bilinear, align_corners=True),
        options=options,
    )


def deeplabv3_resnet50(
    num_classes: int,
    *,
    encoder: Component = "resnet50",
    aux_weight: float | None = None,
    width: int = 256,
    encoder_kwargs: Mapping[str, Any] = {},
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """Torchvision's DeepLab v3: stride 8, rates 12, 24 and 36, one more convolution.

    39,638,869 parameters with 21 classes, 42,004,074 with the auxiliary head; on
    ResNet-101 58,630,997 and 60,996,202.

    Args:
        num_classes: K.
        encoder: resnet50 or resnet101, or another encoder with an argument
            `output_stride`.
        aux_weight: weight of the loss of an auxiliary head on the third stage;
            torchvision trains with 0.5. None for no such head.
        width: channels of the ASPP.
        encoder_kwargs: further keyword arguments of the encoder.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].
    """
    neck = Chain(
        (
            ASPP((12, 24, 36), width, dropout=0.5, options=options),
            ConvBlock((width,), use_bias=False, options=options),
        )
    )
    return _torchvision(num_classes, encoder, neck, aux_weight, encoder_kwargs, options)


def fcn_resnet50(
    num_classes: int,
    *,
    encoder: Component = "resnet50",
    aux_weight: float | None = None,
    encoder_kwargs: Mapping[str, Any] = {},
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """Torchvision's FCN: a ResNet of stride 8, a 3x3 and a 1x1 convolution.

    32,957,013 parameters with 21 classes, 35,322,218 with the auxiliary head; on
    ResNet-101 51,949,141 and 54,314,346.

    Args:
        num_classes: K.
        encoder: see `deeplabv3_resnet50`.
        aux_weight: see `deeplabv3_resnet50`.
        encoder_kwargs: further keyword arguments of the encoder.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].

    Source: torchvision, after FCN, https://arxiv.org/abs/1411.4038.
    """
    return _torchvision(num_classes, encoder, None, aux_weight, encoder_kwargs, options)


def _torchvision(num_classes, encoder, neck, aux_weight, encoder_kwargs, options):
    """A network of `torchvision.models.segmentation`; its FCN where `neck` is None."""
    dilated = create_dilated(
        encoder,
        options=options,
        output_stride=8,
        **check_arguments("encoder", encoder_kwargs),
    )
    maps = encoder_features(dilated).maps

    def fcn_block(level):
        width = (maps[level].shape[-1] // 4,)
        return ConvBlock(width, use_bias=False, dropout=0.1, options=options)

    auxiliary = ()
    if aux_weight is not None:
        level = len(maps) - 2
        head = _classifier(num_classes, options)
        auxiliary = (Auxiliary(fcn_block(level), head, level, weight=aux_weight),)
    return Segmenter(
        dilated,
        None,
        _classifier(num_classes, options),
        neck=neck or fcn_block(-1),
        auxiliary=auxiliary,
        options=options,
    )


def _dilated(encoder, output_stride, multi_grid, encoder_kwargs, options):
    if multi_grid == MULTI_GRID and encoder == "resnet18":
        multi_grid = MULTI_GRID[:2]
    return create_dilated(
        encoder,
        options=options,
        output_stride=output_stride,
        dilate_first=True,
        multi_grid=None if multi_grid is None else tuple(multi_grid),
        **check_arguments("encoder", encoder_kwargs),
    )


def _aspp(output_stride, width, dropout, options):
    rates = tuple(rate * 16 // output_stride for rate in (6, 12, 18))
    return ASPP(rates, width, dropout, options=options)


def _classifier(num_classes, options):
    # TensorFlow's initializer; with zeros, no layer before would receive gradient.
    return Conv(
        num_classes,
        (1, 1),
        kernel_init=nn.initializers.truncated_normal(0.01),
        **options.dtypes,
    )
