"""Convolutions and poolings with the geometry that published encoders share."""

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
    """A square convolution, padded alike on all sides as in Caffe and PyTorch.

    ("SAME" pads strided convolutions more at the end than at the beginning.)

    Args:
        features: output channels.
        kernel: side of the kernel, in cells.
        strides: from cell to cell of the output.
        dilation: step from tap to tap of the kernel.
        groups: parts into which the channels are split.
        padding: zeros on every side; by default as many as give ceil(n / strides)
            cells for n, if the kernel is odd.
        **kwargs: what else `nn.Conv` takes, such as `use_bias`, `dtype`, `name`.

    Returns:
        A linen module from [B, H, W, C] to [B, h, w, features].
    """
    if padding is None:
        padding = dilation * (kernel // 2)
    return Conv(
        features,
        (kernel, kernel),
        strides=strides,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=groups,
        **{"kernel_init": he_normal} | kwargs,
    )


class ConvNorm(nn.Module):
    """A convolution, a normalisation and an activation.

    Attributes:
        features: output channels.
        kernel: side of the kernel, in cells, odd.
        strides: from cell to cell of the output.
        groups: parts into which the channels are split.
        norm: makes the normalisation, called with the arguments of `nn.BatchNorm`;
            None for a bias instead.
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
    """Blocks in a row, `block1`, `block2`, ...

    Attributes:
        blocks: makers of the blocks, called with `name`.
    """

    blocks: tuple[Callable[..., nn.Module], ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to whatever the last block gives."""
        for i, block in enumerate(self.blocks, start=1):
            x = block(name=f"block{i}")(x, train=train)
        return x


def halving_max_pool(
    x: jax.Array, window: int = 3, *, round_up: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Max-pools with stride 2 and no padding; also tells where the maxima stood.

    Args:
        x: features, [B, H, W, C], floating.
        window: side of the window, 2 or 3 cells.
        round_up: whether n rows give ceil(n / 2). With 3x3 windows, Caffe and PyTorch
            in ceil mode give floor(n / 2): the last of an odd number of rows gets no
            window of its own. Even sizes give the same either way.

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
    ragged = [(0, 2 * divide_up(n, 2) - n) for n in (height, width)]
    x = jnp.pad(x, ((0, 0), *ragged, (0, 0)), constant_values=-jnp.inf)
    maxima, indices = max_pool_indices(x, window, 2, ceil_mode=True)
    # The indices count over the padded width.
    row, column = indices // x.shape[2], indices % x.shape[2]
    return maxima, row * width + column
