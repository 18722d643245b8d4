"""Blocks of convolutions, used in encoders and after every fusion in decoders."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from jaxseg.models.layers import (
    Activation,
    Conv,
    ConvTranspose,
    Dropout,
    batch_norm,
    depthwise_conv,
    he_normal,
)
from jaxseg.models.options import LayerOptions


class ConvBlock(nn.Module):
    """A sequence of convolutions, each followed by BatchNorm and ReLU.

    Attributes:
        features: output channels of each convolution, in order; may be empty.
        kernel: side of the square kernels, in cells.
        norm: class or function that makes the normalization after each convolution,
            called with the arguments of `nn.BatchNorm`; None for none.
        activation: after each convolution; None for a linear block.
        dropout: rate of the dropout at the end of the block.
        padding: "SAME" keeps the size; with "VALID" every convolution reduces it by
            kernel - 1 cells.
        dilation: dilation of the kernels, in cells.
        use_bias: whether the convolutions have biases.
        conv: class or function that makes the convolutions, called with the arguments
            of `nn.Conv`: `Conv`, `ConvTranspose` or `depthwise_conv`.
        kernel_init: initializer of the kernels.
        options: see `LayerOptions`.
    """

    features: tuple[int, ...]
    kernel: int = 3
    norm: Callable[..., nn.Module] | None = batch_norm
    activation: Activation | None = nn.relu
    dropout: float = 0.0
    padding: str = "SAME"
    dilation: int = 1
    use_bias: bool = True
    conv: Callable[..., nn.Module] = Conv
    kernel_init: nn.initializers.Initializer = he_normal
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features[-1]]; smaller with "VALID"."""
        dilation = {} if self.dilation == 1 else {"kernel_dilation": self.dilation}
        for i, features in enumerate(self.features, start=1):
            x = self.conv(
                features,
                (self.kernel, self.kernel),
                padding=self.padding,
                use_bias=self.use_bias,
                kernel_init=self.kernel_init,
                **dilation,
                **self.options.dtypes,
                name=f"conv{i}",
            )(x)
            if self.norm is not None:
                x = self.norm(
                    use_running_average=not train,
                    **self.options.norm_kwargs,
                    name=f"bn{i}",
                )(x)
            if self.activation is not None:
                x = self.activation(x)
        return Dropout(self.dropout, self.options.axis_name)(x, train=train)


class ResidualBlock(nn.Module):
    """A `ConvBlock` with a shortcut (short skip), activated after their sum.

    The shortcut is a 1x1 convolution if the number of channels changes.

    Attributes:
        features: output channels of each convolution, in order; at least one.
        kernel: side of the square kernels, in cells.
        norm: see `ConvBlock`.
        activation: after each convolution but the last, and after the sum.
        options: see `LayerOptions`.
    """

    features: tuple[int, ...]
    kernel: int = 3
    norm: Callable[..., nn.Module] | None = batch_norm
    activation: Activation = nn.relu
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features[-1]]."""
        block = partial(ConvBlock, **_shared(self))
        *first, last = self.features
        y = block(tuple(first), self.kernel, activation=self.activation, name="first")(
            x, train=train
        )
        y = block((last,), self.kernel, activation=None, name="last")(y, train=train)
        if x.shape[-1] != last:
            shortcut = block((last,), 1, activation=None, name="shortcut")
            x = shortcut(x, train=train)
        return self.activation(x + y)


class SeparableBlock(nn.Module):
    """Separable convolutions: depthwise, then 1x1, each with BatchNorm and ReLU.

    Attributes:
        features: output channels of each pair, in order.
        kernel: side of the depthwise kernels, in cells.
        norm: see `ConvBlock`.
        activation: after each convolution.
        options: see `LayerOptions`.

    Source: DeepLab v3+, sec. 3.1, https://arxiv.org/abs/1802.02611.
    """

    features: tuple[int, ...]
    kernel: int = 3
    norm: Callable[..., nn.Module] | None = batch_norm
    activation: Activation = nn.relu
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features[-1]]."""
        block = partial(ConvBlock, activation=self.activation, **_shared(self))
        for i, features in enumerate(self.features, start=1):
            x = block(
                (x.shape[-1],), self.kernel, conv=depthwise_conv, name=f"depthwise{i}"
            )(x, train=train)
            x = block((features,), 1, name=f"pointwise{i}")(x, train=train)
        return x


class DepthwiseBlock(nn.Module):
    """Depthwise convolutions, for the smallest decoder.

    If the number of channels changes, a 1x1 convolution comes first.

    Attributes:
        features: output channels of each convolution, in order.
        kernel: side of the kernels, in cells.
        norm: see `ConvBlock`.
        activation: after each depthwise convolution; None for a linear block.
        options: see `LayerOptions`.

    Source: SegNet-Basic-SingleChannelDecoder, https://arxiv.org/abs/1511.00561.
    """

    features: tuple[int, ...]
    kernel: int = 3
    norm: Callable[..., nn.Module] | None = batch_norm
    activation: Activation | None = nn.relu
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features[-1]]."""
        block = partial(ConvBlock, **_shared(self))
        for i, features in enumerate(self.features, start=1):
            if x.shape[-1] != features:
                project = block((features,), 1, activation=None, name=f"project{i}")
                x = project(x, train=train)
            x = block(
                (features,),
                self.kernel,
                conv=depthwise_conv,
                activation=self.activation,
                name=f"depthwise{i}",
            )(x, train=train)
        return x


def _shared(block):
    return dict(norm=block.norm, options=block.options)


BLOCKS = {
    "bn": ConvBlock,
    "depthwise": DepthwiseBlock,
    "plain": partial(ConvBlock, norm=None),
    "residual": ResidualBlock,
    "separable": SeparableBlock,
    "transposed": partial(ConvBlock, conv=ConvTranspose),
}
