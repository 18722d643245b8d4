"""Necks and heads, which map the deepest level to scores."""

from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.layers import Conv, Dropout, he_normal
from jaxseg.models.options import LayerOptions

DENSE_SIDES = {"alexnet": 6, "alexnet_torchvision": 6, "vgg16": 7, "vgg16_bn": 7}
"""Side of the map that each encoder's first fully connected layer covers, in cells."""


def conv_head(
    num_classes: int, kernel: int = 1, *, options: LayerOptions = LayerOptions()
) -> nn.Module:
    """One convolution to scores.

    Args:
        num_classes: K.
        kernel: side of the kernel, in cells.
        options: see `LayerOptions`.
    """
    side = (kernel, kernel)
    return Conv(num_classes, side, kernel_init=he_normal, **options.dtypes)


class DenseAsConvolutions(nn.Module):
    """The fully connected layers `fc6`, `fc7` of a classifier, as convolutions.

    Attributes:
        side: of the first layer's kernel, in cells.
        hidden: channels of each layer.
        padding: "SAME" keeps the map's size; "VALID" reduces it by side - 1 cells.
        dilation: dilation of the first layer's kernel, in cells.
        dropout: dropout rate after each layer.
        options: see `LayerOptions`.
    """

    side: int = 7
    hidden: tuple[int, ...] = (4096, 4096)
    padding: str = "SAME"
    dilation: int = 1
    dropout: float = 0.5
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, h, w, hidden[-1]]."""
        for i, width in enumerate(self.hidden, start=6):
            side, dilation = (self.side, self.dilation) if i == 6 else (1, 1)
            layer = Conv(
                width,
                (side, side),
                padding=self.padding,
                kernel_dilation=dilation,
                kernel_init=he_normal,
                **self.options.dtypes,
                name=f"fc{i}",
            )
            x = nn.relu(layer(x))
            x = Dropout(self.dropout, self.options.axis_name)(x, train=train)
        return x


class Scores(nn.Module):
    """A 1x1 convolution to scores, after an optional block.

    Attributes:
        num_classes: K.
        block: called as `(map, train=...)`; None for none.
        kernel_init: initializer of the scores' kernel.
        options: see `LayerOptions`.
    """

    num_classes: int
    block: nn.Module | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.zeros
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, h, w, K]."""
        if self.block is not None:
            x = self.block(x, train=train)
        return Conv(
            self.num_classes,
            (1, 1),
            kernel_init=self.kernel_init,
            **self.options.dtypes,
            name="score",
        )(x)


class Chain(nn.Module):
    """A sequence of modules.

    Attributes:
        parts: each called as `(map, train=...)`.
    """

    parts: tuple[nn.Module, ...]

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to the output of the last module."""
        for module in self.parts:
            x = module(x, train=train)
        return x


class BranchSum(nn.Module):
    """The sum of parallel modules: the ASPP of DeepLab v2.

    Attributes:
        branches: each called as `(map, train=...)`.

    Source: DeepLab v2, sec. 3.1, https://arxiv.org/abs/1606.00915.
    """

    branches: tuple[nn.Module, ...]

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to the sum of the branches' outputs."""
        return reduce(jnp.add, (branch(x, train=train) for branch in self.branches))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling as in DeepLab v3.

    A 1x1 convolution, 3x3 convolutions at the given rates, and the mean over the whole
    map, each with BatchNorm and ReLU, are concatenated and projected by a 1x1
    convolution.

    Attributes:
        rates: dilations of the 3x3 convolutions, in cells.
        features: channels of each branch and of the result.
        dropout: dropout rate after the projection.
        options: see `LayerOptions`.

    Source: DeepLab v3, sec. 3.3, https://arxiv.org/abs/1706.05587.
    """

    rates: tuple[int, ...] = (6, 12, 18)
    features: int = 256
    dropout: float = 0.1
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features]."""

        def conv(x, name, kernel=1, **kwargs):
            block = ConvBlock(
                (self.features,),
                kernel,
                use_bias=False,
                options=self.options,
                name=name,
                **kwargs,
            )
            return block(x, train=train)

        wide = jnp.promote_types(x.dtype, jnp.float32)
        mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=wide)
        pooled = conv(mean.astype(x.dtype), "pooled")
        branches = [conv(x, "point")]
        for i, rate in enumerate(self.rates, start=1):
            branches.append(conv(x, f"atrous{i}", kernel=3, dilation=rate))
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        x = jnp.concatenate(branches, axis=-1)
        return conv(x, "project", dropout=self.dropout)


def identity(x: jax.Array) -> jax.Array:
    """The head of a network whose decoder or neck returns scores.

    Args:
        x: scores, [B, H, W, K].

    Returns:
        The same.
    """
    return x


HEADS = {"conv": conv_head}
