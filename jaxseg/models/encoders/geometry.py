"""Convolutions and poolings with the geometry of published encoders."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.layers import Activation, Conv, batch_norm, he_normal
from jaxseg.models.options import LayerOptions
from jaxseg.ops.pooling import max_pool_argmax, max_pool_indices
from jaxseg.utils.rounding import divide_up


def convolution(
    features: int,
    kernel: int,
    *,
    strides: int = 1,
    dilation: int = 1,
    groups: int = 1,
    padding: int | None = None,
    **kwargs,
) -> Conv:
    """A square convolution with equal padding on all sides, as in Caffe and PyTorch.

    ("SAME" pads strided convolutions more at the end than at the beginning.)

    Args:
        features: output channels.
        kernel: side of the kernel, in cells.
        strides: of the convolution.
        dilation: dilation of the kernel.
        groups: number of groups of channels.
        padding: zeros on every side; by default n cells become ceil(n / strides), if
            the kernel is odd.
        **kwargs: further keyword arguments of `nn.Conv`, such as `use_bias`, `dtype`
            and `name`.

    Returns:
        A linen module from [B, H, W, C] to [B, h, w, features].
    """
    if padding is None:
        padding = dilation * (kernel // 2)
    kwargs.setdefault("kernel_init", he_normal)
    return Conv(
        features,
        (kernel, kernel),
        strides=strides,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=groups,
        **kwargs,
    )


class ConvNorm(nn.Module):
    """A convolution, a normalization and an activation.

    Attributes:
        features: output channels.
        kernel: side of the kernel, in cells, odd.
        strides: of the convolution.
        groups: number of groups of channels.
        norm: class or function that makes the normalization, called with the arguments
            of `nn.BatchNorm`; None for a bias instead.
        activation: None for a linear output.
        options: see `LayerOptions`.
    """

    features: int
    kernel: int
    strides: int = 1
    groups: int = 1
    norm: Callable[..., nn.Module] | None = batch_norm
    activation: Activation | None = nn.relu
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / strides), ceil(W / strides), features]."""
        x = convolution(
            self.features,
            self.kernel,
            strides=self.strides,
            groups=self.groups,
            use_bias=self.norm is None,
            **self.options.dtypes,
            name="conv",
        )(x)
        if self.norm is not None:
            x = self.norm(
                use_running_average=not train,
                **self.options.norm_kwargs,
                name="bn",
            )(x)
        return x if self.activation is None else self.activation(x)


class Stage(nn.Module):
    """A sequence of blocks, `block1`, `block2`, ...

    Attributes:
        blocks: classes or functions that make the blocks, called with `name`.
    """

    blocks: tuple[Callable[..., nn.Module], ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to the output of the last block."""
        for i, block in enumerate(self.blocks, start=1):
            x = block(name=f"block{i}")(x, train=train)
        return x


def halving_max_pool(
    x: jax.Array, window: int = 3, *, round_up: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Max-pools with stride 2 and no padding; also returns the places of the maxima.

    Args:
        x: features, [B, H, W, C], floating.
        window: side of the window, 2 or 3 cells.
        round_up: whether n rows become ceil(n / 2). With 3x3 windows, Caffe and PyTorch
            in ceil mode return floor(n / 2) rows: the last of an odd number of rows gets
            no window. For even sizes both are equal.

    Returns:
        Maxima [B, h, w, C], and their places: uint8 for a window of 2 as in
        `max_pool_argmax`, int32 for 3 as in `max_pool_indices`.

    Raises:
        ValueError: if `x` is smaller than a window and `round_up` is off.
    """
    if window == 2:
        return max_pool_argmax(x)
    if not round_up:
        return max_pool_indices(x, window, 2, ceil_mode=True)
    _, height, width, _ = x.shape
    padding = [(0, 2 * divide_up(n, 2) - n) for n in (height, width)]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    maxima, indices = max_pool_indices(x, window, 2, ceil_mode=True)
    # The indices are those of the padded map.
    row, column = indices // x.shape[2], indices % x.shape[2]
    return maxima, row * width + column
