"""ResNet in torchvision's geometry, with optional dilation instead of late strides.

A bottleneck has its stride in the 3x3 convolution ("v1.5"). With `output_stride` 16 or
8, the last one or two stages keep that stride, and their convolutions are dilated.

Source: He et al., https://arxiv.org/abs/1512.03385; torchvision.models.resnet; DeepLab
v3, https://arxiv.org/abs/1706.05587, for dilation and `multi_grid`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from jaxseg.models.encoders.features import Features
from jaxseg.models.encoders.geometry import ConvNorm, Stage, convolution
from jaxseg.models.layers import batch_norm, run_stage
from jaxseg.models.options import LayerOptions
from jaxseg.ops.pooling import max_pool_indices


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut.

    Attributes:
        width: channels inside and of the result.
        strides: of the first convolution and the shortcut.
        dilation: of the 3x3 convolutions.
        norm: class or function that makes the normalization after each convolution.
        options: see `LayerOptions`.
    """

    width: int
    strides: int = 1
    dilation: int = 1
    norm: Callable[..., nn.Module] = batch_norm
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / strides), ceil(W / strides), width]."""
        conv, norm = _layers(self, train)
        wide = partial(conv, self.width, 3, dilation=self.dilation)
        y = nn.relu(norm(name="bn1")(wide(strides=self.strides, name="conv1")(x)))
        y = norm(name="bn2")(wide(name="conv2")(y))
        return nn.relu(y + _shortcut(x, self.width, self.strides, conv, norm))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the last is four times as wide.

    Attributes:
        width: channels inside; the result has four times as many.
        strides: of the 3x3 convolution and the shortcut.
        dilation: of the 3x3 convolution.
        norm: class or function that makes the normalization after each convolution.
        options: see `LayerOptions`.
    """

    width: int
    strides: int = 1
    dilation: int = 1
    norm: Callable[..., nn.Module] = batch_norm
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / strides), ceil(W / strides), 4 width]."""
        conv, norm = _layers(self, train)
        wide = conv(
            self.width, 3, strides=self.strides, dilation=self.dilation, name="conv2"
        )
        y = nn.relu(norm(name="bn1")(conv(self.width, 1, name="conv1")(x)))
        y = nn.relu(norm(name="bn2")(wide(y)))
        y = norm(name="bn3")(conv(4 * self.width, 1, name="conv3")(y))
        return nn.relu(y + _shortcut(x, 4 * self.width, self.strides, conv, norm))


def _layers(block, train):
    conv = partial(convolution, use_bias=False, **block.options.dtypes)
    norm = partial(
        block.norm,
        use_running_average=not train,
        **block.options.norm_kwargs,
    )
    return conv, norm


def _shortcut(x, features, strides, conv, norm):
    if strides == 1 and x.shape[-1] == features:
        return x
    x = conv(features, 1, strides=strides, name="shortcut_conv")(x)
    return norm(name="shortcut_bn")(x)


class ResNet(nn.Module):
    """A 7x7 convolution, a max pooling and four stages of residual blocks.

    Every stage is a level, even if dilation keeps it at the stride of the one before,
    so that a head or an auxiliary head can follow any stage. `Features.merged` keeps
    one level for each stride, as a decoder requires.

    Attributes:
        depths: blocks in each of the four stages.
        block: `BasicBlock` or `Bottleneck`.
        width: channels of the first convolution; the blocks of the four stages have 1,
            2, 4 and 8 times as many.
        output_stride: image pixels per cell of the deepest level: 8, 16 or 32.
        dilate_first: whether the first block of a dilated stage has the dilation of the
            stage, as in DeepLab, rather than that of the stage before, as with
            torchvision's `replace_stride_with_dilation`.
        multi_grid: factors on the dilations of the last stage's blocks, one for each
            block; (1, 2, 4) in DeepLab v3.
        norm: class or function that makes the normalization after each convolution.
        options: see `LayerOptions`.
    """

    depths: tuple[int, int, int, int]
    block: Callable[..., nn.Module] = Bottleneck
    width: int = 64
    output_stride: int = 32
    dilate_first: bool = False
    multi_grid: tuple[int, ...] | None = None
    norm: Callable[..., nn.Module] = batch_norm
    options: LayerOptions = LayerOptions()

    def __post_init__(self):
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={self.output_stride}: use 8, 16 or 32.")
        if self.multi_grid is not None and len(self.multi_grid) != self.depths[-1]:
            raise ValueError(
                f"multi_grid={self.multi_grid} has {len(self.multi_grid)} factors, but "
                f"the last stage has {self.depths[-1]} blocks; use one factor for each."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Features:
        """Maps an image [B, H, W, C] to its levels: strides 2, 4, 8, 16, 32 or less."""
        layers: dict[str, Any] = dict(norm=self.norm, options=self.options)
        stem = ConvNorm(self.width, 7, strides=2, **layers, name="stem")
        x = run_stage(stem, image, train=train, remat=self.options.remat)
        maps, strides = [x], [2]
        x, place = max_pool_indices(x, 3, 2, padding=1)
        pooled, places = (None, x, None, None, None), (None, place, None, None, None)
        stride = 4
        for i, (step, dilations) in enumerate(self._plan(), start=1):
            block = partial(self.block, 2 ** (i - 1) * self.width, **layers)
            blocks = tuple(
                partial(block, strides=1 if k else step, dilation=dilation)
                for k, dilation in enumerate(dilations)
            )
            stage = Stage(blocks, name=f"stage{i}")
            x = run_stage(stage, x, train=train, remat=self.options.remat)
            stride *= step
            maps.append(x)
            strides.append(stride)
        return Features(tuple(maps), pooled, places, tuple(strides))

    def _plan(self):
        """The stride and the blocks' dilations of each stage."""
        stride, dilation = 4, 1
        for i, depth in enumerate(self.depths):
            step, first = 1 if i == 0 else 2, dilation
            if stride * step > self.output_stride:
                dilation *= step
                step = 1
            stride *= step
            dilations = (dilation if self.dilate_first else first,)
            dilations += (dilation,) * (depth - 1)
            if i == 3 and self.multi_grid is not None:
                dilations = tuple(d * m for d, m in zip(dilations, self.multi_grid))
            yield step, dilations


DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
"""Blocks in each stage."""

resnet18 = partial(ResNet, depths=DEPTHS["resnet18"], block=BasicBlock)
resnet34 = partial(ResNet, depths=DEPTHS["resnet34"], block=BasicBlock)
resnet50 = partial(ResNet, depths=DEPTHS["resnet50"])
resnet101 = partial(ResNet, depths=DEPTHS["resnet101"])
