"""Blocks of convolutions, and the layers that every model here shares."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.ops.convolution import conv_transpose
from jaxseg.ops.partition import pin

Dtype = jnp.dtype
Activation = Callable[[jax.Array], jax.Array]

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""N(0, sqrt(2 / fan_in)), not truncated: Caffe's `msra`."""

batch_norm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
"""The papers' BatchNorm in PyTorch's numbers (momentum 0.9 here is 0.1 there).

caffe-segnet and DeconvNet print epsilon 1e-9, which only amplifies the rounding noise
of dead channels.
"""


class Dropout(nn.Module):
    """Zeroes values at random and scales the others up, one key a sample.

    A sample's mask depends on the step's key and on the sample's position in the
    global batch alone, so the same batch is dropped alike on one device and on many.

    Attributes:
        rate: share of values that are dropped, in [0, 1).
        axis_name: mapped axis over which the batch is split, under pmap or shard_map.
    """

    rate: float
    axis_name: str | None = None

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout={self.rate}: give a share, in [0, 1).")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, ...] to [B, ...]; the identity when not training."""
        if not train or self.rate == 0.0:
            return x
        first = 0
        if self.axis_name is not None:
            first = jax.lax.axis_index(self.axis_name) * x.shape[0]
        key = self.make_rng("dropout")
        keys = jax.vmap(partial(jax.random.fold_in, key))(
            first + jnp.arange(x.shape[0])
        )
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, x.shape[1:]))(
            keys
        )
        return jnp.where(keep, x / (1 - self.rate), 0)


def run_stage(
    stage: nn.Module, *arrays: jax.Array, train: bool, remat: bool
) -> jax.Array:
    """Calls a stage of a network, and pins what it returns to its place on the mesh.

    With `remat` its activations are computed again for the gradient.

    Args:
        stage: module called as `stage(*arrays, train=train)`.
        *arrays: its inputs.
        train: whether batch statistics and dropout are on.
        remat: trade a second forward pass for the memory of the stage's inside.

    Returns:
        What the stage returns.
    """

    def call(stage, *arrays):
        return jax.tree.map(pin, stage(*arrays, train=train))

    return (nn.remat(call) if remat else call)(stage, *arrays)


def _promote(inputs, kernel, bias, *, dtype):
    return inputs.astype(dtype), kernel.astype(dtype), bias


class Conv(nn.Conv):
    """`nn.Conv` with its maps pinned to the mesh and its bias added in float32.

    A bias' gradient is a sum over all pixels of the batch, and a backend that sums
    bfloat16 in bfloat16, as the CPU's does, loses most of it.
    """

    promote_dtype: Callable[..., tuple] = _promote

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features] in `dtype`."""
        stride, kernel, dilation = (
            n[0] if isinstance(n, Sequence) else n or 1
            for n in (self.strides, self.kernel_size, self.kernel_dilation)
        )
        lies = partial(pin, rows=x.shape[1] // stride, reach=kernel // 2 * dilation)
        return lies(super().__call__(lies(x)).astype(self.dtype))


class ConvTranspose(nn.Module):
    """A transposed convolution with a fast gradient: every cell lays down a kernel.

    Takes the arguments of `nn.Conv`, so that a block can have it in a convolution's
    place.

    Attributes:
        features: output channels.
        kernel_size: height and width of the kernel, in cells of the output; a square.
        strides: how many times larger the output is.
        padding: "SAME" for h * strides rows from h; "VALID" for all that the kernels
            cover, (h - 1) * strides + kernel.
        per_channel: whether channels are kept apart; `features` are then the input's.
        use_bias: whether a bias is added.
        kernel_init: initializer of the kernel [kh, kw, Cin, Cout], or [kh, kw, C].
        fixed: whether the kernel is a constant, what `kernel_init` gives, rather than
            a parameter.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: int = 1
    padding: str = "SAME"
    per_channel: bool = False
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer | None = None
    fixed: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def __post_init__(self):
        if len(set(self.kernel_size)) != 1 or self.kernel_size[0] < self.strides:
            raise ValueError(
                f"kernel_size={self.kernel_size} with strides={self.strides}: give a "
                "square at least as large as the stride, or the output has gaps."
            )
        if self.padding not in ("SAME", "VALID"):
            raise ValueError(f'padding={self.padding!r}: take "SAME" or "VALID".')
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H * strides, W * strides, features] if "SAME".

        Raises:
            ValueError: if channels are kept apart and `features` is another number.
        """
        _, h, w, channels = x.shape
        if self.per_channel and channels != self.features:
            raise ValueError(
                f"A convolution per channel keeps its {channels} channels; it cannot "
                f"give {self.features}. Set per_channel=False, or the same number."
            )
        # Each output cell sees one in strides**2 of a kernel's cells.
        init = self.kernel_init or nn.initializers.variance_scaling(
            2.0 * self.strides**2, "fan_in", "normal"
        )
        shape = (*self.kernel_size, channels)
        if not self.per_channel:
            shape += (self.features,)
        if self.fixed:
            kernel = init(jax.random.key(0), shape, self.param_dtype)
        else:
            kernel = self.param("kernel", init, shape, self.param_dtype)
        excess = self.kernel_size[0] - self.strides if self.padding == "SAME" else 0
        x = conv_transpose(
            pin(x).astype(self.dtype),
            kernel.astype(self.dtype),
            self.strides,
            padding=excess // 2,
        )
        if self.padding == "SAME":  # an odd excess leaves one at the end
            x = x[:, : h * self.strides, : w * self.strides]
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), self.param_dtype)
            x = (x + bias.reshape(1, 1, 1, self.features)).astype(self.dtype)
        return pin(x, rows=h)


def depthwise_conv(features: int, kernel_size: tuple[int, int], **kwargs) -> Conv:
    """A convolution of each channel for itself, with the arguments of `nn.Conv`.

    Args:
        features: channels, of the input as of the output.
        kernel_size: height and width, in cells.
        **kwargs: what else `nn.Conv` takes.

    Returns:
        A linen module from [B, H, W, features] to [B, H, W, features].
    """
    return Conv(features, kernel_size, feature_group_count=features, **kwargs)


class ConvBlock(nn.Module):
    """Convolutions in a row, each with BatchNorm and an activation: conv, BN, ReLU.

    Attributes:
        features: output channels of each convolution, in order; may be empty.
        kernel: side of the square kernels, in cells.
        norm: makes the normalisation after each convolution, called with the arguments
            of `nn.BatchNorm`; None for none.
        activation: after each convolution; None for a linear block.
        dropout: rate of the dropout that ends the block.
        padding: "SAME" keeps the size; "VALID" takes kernel - 1 cells off it with
            every convolution.
        dilation: step from tap to tap of the kernels, in cells.
        use_bias: whether the convolutions have biases.
        conv: makes the convolutions, called with the arguments of `nn.Conv`: that,
            `ConvTranspose` or `depthwise_conv`.
        kernel_init: initializer of the kernels.
        dtype: of the computation.
        param_dtype: of the parameters.
        axis_name: mapped axis for cross-replica statistics, under pmap or shard_map.
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
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None

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
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"conv{i}",
            )(x)
            if self.norm is not None:
                x = self.norm(
                    use_running_average=not train,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    axis_name=self.axis_name,
                    name=f"bn{i}",
                )(x)
            if self.activation is not None:
                x = self.activation(x)
        return Dropout(self.dropout, axis_name=self.axis_name)(x, train=train)


class ResidualBlock(nn.Module):
    """A `ConvBlock` beside a shortcut, activated after their sum: a short skip.

    The shortcut is a 1x1 convolution where the channels change.

    Attributes:
        features: output channels of each convolution, in order; at least one.
        kernel: side of the square kernels, in cells.
        norm: makes the normalisation after each convolution; None for none.
        activation: after each convolution but the last, and after the sum.
        dtype: of the computation.
        param_dtype: of the parameters.
        axis_name: mapped axis for cross-replica statistics, under pmap or shard_map.
    """

    features: tuple[int, ...]
    kernel: int = 3
    norm: Callable[..., nn.Module] | None = batch_norm
    activation: Activation = nn.relu
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None

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
    """Convolutions in two steps, depthwise and 1x1, each with BatchNorm and ReLU.

    Attributes:
        features: output channels of each pair, in order.
        kernel: side of the depthwise kernels, in cells.
        norm: makes the normalisation after each step; None for none.
        activation: after each step.
        dtype: of the computation.
        param_dtype: of the parameters.
        axis_name: mapped axis for cross-replica statistics, under pmap or shard_map.

    Source: DeepLab v3+, sec. 3.1, https://arxiv.org/abs/1802.02611.
    """

    features: tuple[int, ...]
    kernel: int = 3
    norm: Callable[..., nn.Module] | None = batch_norm
    activation: Activation = nn.relu
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None

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
    """Convolutions of each channel for itself: the smallest decoder.

    Where channels change, a 1x1 convolution comes first.

    Attributes:
        features: output channels of each convolution, in order.
        kernel: side of the kernels, in cells.
        norm: makes the normalisation after each convolution; None for none.
        activation: after each depthwise convolution; None for a linear block.
        dtype: of the computation.
        param_dtype: of the parameters.
        axis_name: mapped axis for cross-replica statistics, under pmap or shard_map.

    Source: SegNet-Basic-SingleChannelDecoder, https://arxiv.org/abs/1511.00561.
    """

    features: tuple[int, ...]
    kernel: int = 3
    norm: Callable[..., nn.Module] | None = batch_norm
    activation: Activation | None = nn.relu
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None

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
    return dict(
        norm=block.norm,
        dtype=block.dtype,
        param_dtype=block.param_dtype,
        axis_name=block.axis_name,
    )


BLOCKS = {
    "bn": ConvBlock,
    "depthwise": DepthwiseBlock,
    "plain": partial(ConvBlock, norm=None),
    "residual": ResidualBlock,
    "separable": SeparableBlock,
    "transposed": partial(ConvBlock, conv=ConvTranspose),
}
