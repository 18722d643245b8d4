"""MobileNetV2: inverted residuals, wide inside and narrow at their ends.

Source: Sandler et al., https://arxiv.org/abs/1801.04381; torchvision's geometry.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from jaxseg.models.encoders.features import Features
from jaxseg.models.encoders.geometry import ConvNorm, Stage
from jaxseg.models.layers import batch_norm, run_stage
from jaxseg.models.options import LayerOptions

EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
DEPTHS = (1, 2, 3, 4, 3, 3, 1)
STRIDES = (1, 2, 2, 2, 1, 2, 1)


class MobileNetV2(nn.Module):
    """A convolution, seven stages of inverted residuals, and a 1x1 convolution.

    Attributes:
        widths: channels of the first convolution, of the seven stages and of the last
            convolution.
        norm: class or function that makes the normalization after each convolution.
        options: see `LayerOptions`.
    """

    widths: tuple[int, ...] = (32, 16, 24, 32, 64, 96, 160, 320, 1280)
    norm: Callable[..., nn.Module] = batch_norm
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Features:
        """Maps an image [B, H, W, C] to its levels, of strides 2, 4, 8, 16 and 32."""
        layers: dict[str, Any] = dict(norm=self.norm, options=self.options)
        first, *widths, last = self.widths
        stem = ConvNorm(first, 3, 2, activation=nn.relu6, **layers, name="stem")
        x = run_stage(stem, image, train=train, remat=self.options.remat)
        maps = []
        plan = zip(widths, EXPANSIONS, DEPTHS, STRIDES, strict=True)
        for i, (width, expansion, depth, strides) in enumerate(plan, start=1):
            if strides == 2:
                maps.append(x)
            block = partial(InvertedResidual, width, expansion, **layers)
            blocks = (partial(block, strides=strides),) + (block,) * (depth - 1)
            stage = Stage(blocks, name=f"stage{i}")
            x = run_stage(stage, x, train=train, remat=self.options.remat)
        head = ConvNorm(last, 1, activation=nn.relu6, **layers, name="last")
        x = run_stage(head, x, train=train, remat=self.options.remat)
        return Features.without_pooling((*maps, x), (2, 4, 8, 16, 32))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; a shortcut if sizes are equal.

    Attributes:
        width: channels of the result.
        expansion: channels inside, as a multiple of those of the input; 1 for no
            expansion.
        strides: of the depthwise convolution.
        norm: class or function that makes the normalization after each convolution.
        options: see `LayerOptions`.
    """

    width: int
    expansion: int
    strides: int = 1
    norm: Callable[..., nn.Module] = batch_norm
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / strides), ceil(W / strides), width]."""

        def conv(x, features, kernel, name, **kwargs):
            layer = ConvNorm(
                features,
                kernel,
                norm=self.norm,
                options=self.options,
                name=name,
                **kwargs,
            )
            return layer(x, train=train)

        wide = self.expansion * x.shape[-1]
        y = x
        if self.expansion != 1:
            y = conv(y, wide, 1, "expand", activation=nn.relu6)
        y = conv(
            y,
            wide,
            3,
            "depthwise",
            strides=self.strides,
            groups=wide,
            activation=nn.relu6,
        )
        y = conv(y, self.width, 1, "project", activation=None)
        return x + y if self.strides == 1 and x.shape == y.shape else y


mobilenet_v2 = MobileNetV2
