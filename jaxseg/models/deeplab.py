"""DeepLab v3 and v3+, and torchvision's fcn_resnet50 and deeplabv3_resnet50.

Source: Chen et al., https://arxiv.org/abs/1706.05587 and
https://arxiv.org/abs/1802.02611; TensorFlow's research/deeplab for what they leave
open (corner convention, dropout); torchvision.models.segmentation.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseg.models.blocks import ConvBlock, SeparableBlock
from jaxseg.models.components import (
    Component,
    check_arguments,
    create_dilated,
    encoder_features,
)
from jaxseg.models.decoder import Decoder
from jaxseg.models.heads import ASPP, Chain
from jaxseg.models.layers import Conv, Dtype
from jaxseg.models.segmenter import Auxiliary, Segmenter
from jaxseg.models.skips import Concat
from jaxseg.models.upsamplers import Bilinear
from jaxseg.ops.resize import resize_bilinear

MULTI_GRID = (1, 2, 4)
"""Of the paper, for the three blocks of ResNet-50's last stage."""


def deeplab_v3(
    num_classes: int,
    *,
    encoder: Component = "resnet50",
    output_stride: int = 16,
    multi_grid: tuple[int, ...] | None = MULTI_GRID,
    width: int = 256,
    dropout: float = 0.1,
    encoder_kwargs: Mapping[str, Any] = {},
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """DeepLab v3: a dilated ResNet, ASPP, and interpolated logits.

    39,048,533 parameters on ResNet-50 with 21 classes, 58,040,661 on ResNet-101.

    Args:
        num_classes: K.
        encoder: resnet18, resnet34, resnet50 or resnet101, or what makes an encoder
            that takes `output_stride`, `dilate_first` and `multi_grid`.
        output_stride: image pixels to a cell of the ASPP's map, 8, 16 or 32. Its rates
            are 6, 12 and 18 at 16, and in proportion at the others.
        multi_grid: factors on the dilations of the last stage's blocks, (1, 2) by
            default on ResNet-18, which has two; None for none.
        width: channels of the ASPP.
        dropout: rate behind it.
        encoder_kwargs: what else the encoder takes.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K]. The centres of
        corner pixels coincide when logits are enlarged: sizes 16 k + 1 are best.

    Raises:
        ValueError: if the encoder cannot be dilated so.
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype, axis_name=axis_name)
    encoder = _dilated(
        encoder, output_stride, multi_grid, encoder_kwargs, remat=remat, **layers
    )
    return Segmenter(
        encoder,
        None,
        _classifier(num_classes, dtype, param_dtype),
        neck=_aspp(output_stride, width, dropout, **layers),
        restore_size=partial(resize_bilinear, align_corners=True),
        remat=remat,
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
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """DeepLab v3+: as v3, with a decoder at stride 4 and one skip.

    40,352,181 parameters on ResNet-50 with 21 classes, 59,344,309 on ResNet-101.

    Args:
        num_classes: K.
        encoder: as of `deeplab_v3`.
        output_stride: likewise.
        multi_grid: likewise.
        width: channels of the ASPP and of the decoder's two convolutions.
        low_level: channels to which the map of stride 4 is reduced.
        separable: whether the decoder's convolutions are separable. (The ASPP's are
            not.)
        dropout: rate behind the ASPP.
        encoder_kwargs: what else the encoder takes.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K]; corners as in v3.

    Raises:
        ValueError: if the encoder cannot be dilated so, or has no level of stride 4.

    Source: https://arxiv.org/abs/1802.02611.
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype, axis_name=axis_name)
    encoder = _dilated(
        encoder, output_stride, multi_grid, encoder_kwargs, remat=remat, **layers
    )
    strides = encoder_features(encoder).merged().strides
    if 4 not in strides:
        raise ValueError(
            f"The decoder of v3+ is at stride 4, and the encoder has {strides}; take "
            "a ResNet."
        )
    adapt = ConvBlock((low_level,), 1, use_bias=False, **layers)
    if separable:
        block = SeparableBlock((width, width), **layers)
    else:
        block = ConvBlock((width, width), use_bias=False, **layers)
    decoder = Decoder(
        upsamplers=(Bilinear(align_corners=True),),
        skips=(Concat(adapt=adapt),),
        blocks=(block,),
        levels=(strides.index(4),),
        remat=remat,
    )
    return Segmenter(
        encoder,
        decoder,
        _classifier(num_classes, dtype, param_dtype),
        neck=_aspp(output_stride, width, dropout, **layers),
        restore_size=partial(resize_bilinear, align_corners=True),
        remat=remat,
    )


def deeplabv3_resnet50(
    num_classes: int,
    *,
    encoder: Component = "resnet50",
    aux_weight: float | None = None,
    width: int = 256,
    encoder_kwargs: Mapping[str, Any] = {},
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """Torchvision's DeepLab v3: stride 8, rates 12, 24 and 36, one more convolution.

    39,638,869 parameters with 21 classes, 42,004,074 with the auxiliary head; on
    ResNet-101 58,630,997 and 60,996,202.

    Args:
        num_classes: K.
        encoder: resnet50 or resnet101, or what makes an encoder that takes
            `output_stride`.
        aux_weight: weight of the loss of an auxiliary head behind the third stage;
            torchvision trains with 0.5. None for no such head.
        width: channels of the ASPP.
        encoder_kwargs: what else the encoder takes.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K]; in training, with
        the auxiliary head, to a mapping (see `Segmenter`).
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype, axis_name=axis_name)
    neck = Chain(
        (
            ASPP((12, 24, 36), width, dropout=0.5, **layers),
            ConvBlock((width,), use_bias=False, **layers),
        )
    )
    return _torchvision(
        num_classes, encoder, neck, aux_weight, encoder_kwargs, remat, layers
    )


def fcn_resnet50(
    num_classes: int,
    *,
    encoder: Component = "resnet50",
    aux_weight: float | None = None,
    encoder_kwargs: Mapping[str, Any] = {},
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """Torchvision's FCN: a ResNet of stride 8, one 3x3 convolution, scores.

    32,957,013 parameters with 21 classes, 35,322,218 with the auxiliary head; on
    ResNet-101 51,949,141 and 54,314,346.

    Args:
        num_classes: K.
        encoder: as of `deeplabv3_resnet50`.
        aux_weight: likewise.
        encoder_kwargs: likewise.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        As `deeplabv3_resnet50`.

    Source: torchvision, after FCN, https://arxiv.org/abs/1411.4038.
    """
    layers = dict(dtype=dtype, param_dtype=param_dtype, axis_name=axis_name)
    return _torchvision(
        num_classes, encoder, None, aux_weight, encoder_kwargs, remat, layers
    )


def _torchvision(num_classes, encoder, neck, aux_weight, encoder_kwargs, remat, layers):
    """A network of `torchvision.models.segmentation`; its FCN where `neck` is None."""
    encoder = create_dilated(
        encoder,
        output_stride=8,
        remat=remat,
        **layers,
        **check_arguments("encoder", encoder_kwargs),
    )
    maps = encoder_features(encoder).maps
    classifier = partial(
        _classifier, num_classes, layers["dtype"], layers["param_dtype"]
    )

    def fcn_block(level):
        width = (maps[level].shape[-1] // 4,)
        return ConvBlock(width, use_bias=False, dropout=0.1, **layers)

    auxiliary = ()
    if aux_weight is not None:
        before = len(maps) - 2
        auxiliary = (
            Auxiliary(fcn_block(before), classifier(), before, weight=aux_weight),
        )
    return Segmenter(
        encoder,
        None,
        classifier(),
        neck=neck or fcn_block(-1),
        auxiliary=auxiliary,
        remat=remat,
    )


def _dilated(encoder, output_stride, multi_grid, encoder_kwargs, **layers):
    if multi_grid == MULTI_GRID and encoder == "resnet18":
        multi_grid = MULTI_GRID[:2]
    return create_dilated(
        encoder,
        output_stride=output_stride,
        dilate_first=True,
        multi_grid=None if multi_grid is None else tuple(multi_grid),
        **layers,
        **check_arguments("encoder", encoder_kwargs),
    )


def _aspp(output_stride, width, dropout, **layers):
    rates = tuple(rate * 16 // output_stride for rate in (6, 12, 18))
    return ASPP(rates, width, dropout, **layers)


def _classifier(num_classes, dtype, param_dtype):
    # TensorFlow's start; zeros would leave all before them without gradient.
    return Conv(
        num_classes,
        (1, 1),
        kernel_init=nn.initializers.truncated_normal(0.01),
        dtype=dtype,
        param_dtype=param_dtype,
    )
