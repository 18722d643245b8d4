"""Layers that the models share, and a function that runs their stages."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseg.ops.convolution import conv_transpose
from jaxseg.ops.partition import pin

Activation = Callable[[jax.Array], jax.Array]

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""N(0, sqrt(2 / fan_in)), not truncated: Caffe's `msra`."""

caffe_gaussian = nn.initializers.normal(0.01)
"""N(0, 0.01): Caffe's `gaussian` as DeconvNet and DeepLab use it."""

batch_norm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
"""BatchNorm with PyTorch's defaults (momentum 0.9 here is 0.1 there).

caffe-segnet and DeconvNet have epsilon 1e-9, which only amplifies the rounding noise of
dead channels.
"""


class Dropout(nn.Module):
    """Sets values to zero at random and scales the others up, with one key per sample.

    A sample's mask depends only on the step's key and on the sample's position in the
    global batch, so it is the same on one device and on many.

    Attributes:
        rate: fraction of values that are dropped, in [0, 1).
        axis_name: mapped axis over which the batch is split, under pmap or shard_map.
    """

    rate: float
    axis_name: str | None = None

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout={self.rate} is not in [0, 1).")
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
    """Calls a stage of a network, and pins its output to the mesh.

    Args:
        stage: module called as `stage(*arrays, train=train)`.
        *arrays: its inputs.
        train: whether BatchNorm uses the batch's statistics and dropout is on.
        remat: whether its activations are recomputed for the gradient instead of
            stored.

    Returns:
        The output of the stage.
    """

    def call(stage, *arrays):
        return jax.tree.map(pin, stage(*arrays, train=train))

    return (nn.remat(call) if remat else call)(stage, *arrays)


def _promote(inputs, kernel, bias, *, dtype):
    return inputs.astype(dtype), kernel.astype(dtype), bias


class Conv(nn.Conv):
    """`nn.Conv` with its maps pinned to the mesh and its bias added in float32.

    The gradient of a bias is a sum over all pixels of the batch, and a backend that
    sums bfloat16 in bfloat16, such as the CPU's, loses most of it.
    """

    promote_dtype: Callable[..., Any] = _promote

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features] in `dtype`."""
        stride, kernel, dilation = (
            n[0] if isinstance(n, Sequence) else n or 1
            for n in (self.strides, self.kernel_size, self.kernel_dilation)
        )
        pinned = partial(pin, rows=x.shape[1] // stride, reach=kernel // 2 * dilation)
        return pinned(super().__call__(pinned(x)).astype(self.dtype))


class ConvTranspose(nn.Module):
    """A transposed convolution with a fast gradient.

    It has the arguments of `nn.Conv`, so that a block can use it instead.

    Attributes:
        features: output channels.
        kernel_size: height and width of the kernel, in cells of the output; a square.
        strides: how many times larger the output is.
        padding: "SAME" for h * strides rows from h; "VALID" for all rows that the
            kernels cover, (h - 1) * strides + kernel.
        per_channel: whether each channel is convolved separately; `features` are then
            the input's.
        use_bias: whether a bias is added.
        kernel_init: initializer of the kernel [kh, kw, Cin, Cout], or [kh, kw, C].
        fixed: whether the kernel is a constant, made by `kernel_init`, rather than a
            parameter.
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
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if len(set(self.kernel_size)) != 1 or self.kernel_size[0] < self.strides:
            raise ValueError(
                f"kernel_size={self.kernel_size} with strides={self.strides}: the "
                "kernel must be a square at least as large as the stride, or the output "
                "has gaps."
            )
        if self.padding not in ("SAME", "VALID"):
            raise ValueError(f'padding={self.padding!r}: use "SAME" or "VALID".')
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H * strides, W * strides, features] if "SAME".

        Raises:
            ValueError: if `per_channel` is set and `features` is not the number of
                input channels.
        """
        _, h, w, channels = x.shape
        if self.per_channel and channels != self.features:
            raise ValueError(
                f"A convolution per channel keeps its {channels} channels, and features="
                f"{self.features}. Set per_channel=False, or features={channels}."
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
        if self.padding == "SAME":  # cuts the last row and column of an odd excess
            x = x[:, : h * self.strides, : w * self.strides]
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), self.param_dtype)
            x = (x + bias.reshape(1, 1, 1, self.features)).astype(self.dtype)
        return pin(x, rows=h)


def depthwise_conv(features: int, kernel_size: tuple[int, int], **kwargs) -> Conv:
    """A depthwise convolution, with the arguments of `nn.Conv`.

    Args:
        features: channels of the input and of the output.
        kernel_size: height and width, in cells.
        **kwargs: further keyword arguments of `nn.Conv`.

    Returns:
        A linen module from [B, H, W, features] to [B, H, W, features].
    """
    return Conv(features, kernel_size, feature_group_count=features, **kwargs)
